import type { KeyObject } from "node:crypto";
import { type Jws, jwsHolds, parseJws } from "../crypto/jws.ts";
import type { Signer } from "../crypto/key.ts";
import { checkPublicKey } from "../crypto/public-key.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import type { TokenAuthority } from "./bundle.ts";
import { parseSpiffeId, pathOf, type SpiffeId, type TrustDomain, trustDomainOf } from "./id.ts";

export type Claims = Readonly<Record<string, unknown>>;

/** The token authorities of one trust domain, or undefined without its bundle. Asked for the subject's own, and no other. */
export type TokenAuthorities = (trustDomain: TrustDomain) => readonly TokenAuthority[] | undefined;

/** A key that signs tokens, under the id by which the bundle names it. */
export interface TokenKey {
  readonly keyId: string;
  readonly signer: Signer;
}

/** Keys of one trust domain that are tried for a token that names none. */
const MAX_TRIED_KEYS = 8;
/** Of a `Date`. */
const MAX_TIME_MS = 8.64e15;

/** Throws `denied`. */
export function parseToken(token: string): Jws {
  try {
    return parseJws(token);
  } catch (thrown) {
    const { message, code } = Fault.from(thrown);
    throw tokenRefused(`unable to parse JWT token: ${message}`, code);
  }
}

/** A workload's SPIFFE ID; the ID of a whole trust domain is none. Throws `denied`. */
export function subjectOf({ sub }: Claims): SpiffeId {
  if (sub === undefined || sub === "") throw tokenRefused("token missing subject claim", "token-subject");
  if (typeof sub !== "string") throw tokenRefused("token has a subject claim that is not text", "token-subject");
  const id = parseSubject(sub);
  if (pathOf(id) === "") throw tokenRefused("token has a subject claim without a path", "token-subject");
  return id;
}

function parseSubject(subject: string): SpiffeId {
  try {
    return parseSpiffeId(subject);
  } catch (error) {
    throw tokenRefused(`token has an invalid subject claim: ${Fault.from(error).message}`, "token-subject");
  }
}

/** Undefined when the claim is absent. Throws `denied` unless it is a NumericDate: RFC 7519, section 2. */
export function timeOf(claims: Claims, name: "exp" | "nbf" | "iat"): Date | undefined {
  const value = claims[name];
  if (value === undefined) return undefined;
  if (typeof value !== "number") throw tokenRefused(`token ${name} claim is not a number of seconds`, `token-${name}`);
  return new Date(Math.max(-MAX_TIME_MS, Math.min(MAX_TIME_MS, Math.floor(value * 1000))));
}

/** Throws `denied` without the claim, and from then on. */
export function expiryOf(claims: Claims, at: Date, leewayMs: number): Date {
  const expiresAt = timeOf(claims, "exp");
  if (expiresAt === undefined) throw tokenRefused("token missing exp claim", "token-exp");
  if (at.getTime() - leewayMs >= expiresAt.getTime()) throw tokenRefused("token has expired", "token-expired");
  return expiresAt;
}

/** Throws `denied` before the time that the claim names, if there is one. */
export function notBeforeOf(claims: Claims, at: Date, leewayMs: number): Date | undefined {
  const notBefore = timeOf(claims, "nbf");
  if (notBefore !== undefined && at.getTime() + leewayMs < notBefore.getTime())
    throw tokenRefused("token is not valid yet", "token-not-yet-valid");
  return notBefore;
}

/** Throws `denied` unless the key that is named made the signature; without a name, one of a few of the subject's trust domain. */
export async function checkSignature(jws: Jws, question: KeyQuestion): Promise<void> {
  for (const key of keysOf(question)) if (await jwsHolds(jws, key)) return;
  throw tokenRefused("token signature is not valid", "token-signature");
}

function keysOf({ subject, keyId, authorities }: KeyQuestion): readonly KeyObject[] {
  const trustDomain = trustDomainOf(subject);
  const all = authorities(trustDomain);
  if (all === undefined) throw tokenRefused(`no keys found for trust domain "${trustDomain}"`, "no-bundle");
  if (all.length === 0)
    throw tokenRefused(`trust domain "${trustDomain}" does not support tokens of this kind`, "token-unsupported");
  if (keyId === undefined) return all.slice(0, MAX_TRIED_KEYS).flatMap(keyOf);
  const named = all.filter((authority) => authority.keyId === keyId);
  if (named.length === 1) return named.flatMap(keyOf);
  const shown = JSON.stringify(keyId.slice(0, 64));
  throw tokenRefused(`public key ${shown} not found in trust domain "${trustDomain}"`, "token-kid");
}

/** The one fault of every token that is not accepted. */
export function tokenRefused(reason: string, code: string): Fault {
  return new Fault("denied", reason, { code });
}

interface KeyQuestion {
  readonly subject: SpiffeId;
  readonly keyId: string | undefined;
  readonly authorities: TokenAuthorities;
}

const parsedKeys = new WeakMap<TokenAuthority, readonly KeyObject[]>();

/** Empty for a key that is too weak: it verifies nothing, and the others of its bundle go on doing so. */
function keyOf(authority: TokenAuthority): readonly KeyObject[] {
  const known = parsedKeys.get(authority);
  if (known !== undefined) return known;
  const keys = usable(authority.publicKey);
  parsedKeys.set(authority, keys);
  return keys;
}

function usable(publicKey: Uint8Array): readonly KeyObject[] {
  try {
    return [checkPublicKey(publicKey)];
  } catch (error) {
    if (isFault(error, "invalid")) return [];
    throw error;
  }
}

/** Whole seconds, as tokens have them. */
export function numericDate(time: Date): number {
  return Math.floor(time.getTime() / 1000);
}
