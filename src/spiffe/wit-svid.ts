import type { KeyObject } from "node:crypto";
import { jwkFromPublicKey, PRIVATE_JWK_MEMBERS, publicKeyFromJwk } from "../crypto/jwk.ts";
import { JWS_ALGORITHMS, type JwsAlgorithm, jwsSigner, keyFits, signJws } from "../crypto/jws.ts";
import { checkPublicKey } from "../crypto/public-key.ts";
import { Fault } from "../runtime/fault.ts";
import type { SpiffeId } from "./id.ts";
import {
  type Claims,
  checkSignature,
  expiryOf,
  notBeforeOf,
  numericDate,
  parseToken,
  subjectOf,
  type TokenAuthorities,
  type TokenKey,
  timeOf,
  tokenRefused,
} from "./token.ts";

/** What an issuer puts into a WIT-SVID. WIT-SVID, section 3. */
export interface WitSvidTemplate {
  readonly subject: SpiffeId;
  /** SubjectPublicKeyInfo, DER: the key that the workload proves to hold. */
  readonly publicKey: Uint8Array;
  /** What that key signs proofs with. */
  readonly algorithm: JwsAlgorithm;
  readonly issuedAt: Date;
  readonly expiresAt: Date;
  readonly issuer?: string;
  readonly jti?: string;
}

/**
 * A WIT-SVID that its issuer signed. It says whose key `confirmation` is, not who sent it: that takes a proof made with
 * that key, so nobody is to be let in by this alone. WIT-SVID, sections 4 and 7.1.
 */
export interface UnprovenWitSvid {
  readonly id: SpiffeId;
  readonly token: string;
  readonly expiresAt: Date;
  readonly confirmation: Confirmation;
  /** All claims of the token. */
  readonly claims: Claims;
}

/** The key of `cnf.jwk`, and the one algorithm it signs with. */
export interface Confirmation {
  readonly key: KeyObject;
  readonly algorithm: JwsAlgorithm;
}

export interface WitSvidOptions {
  readonly token: string;
  readonly authorities: TokenAuthorities;
  readonly at: Date;
  /** How long after its end a token still counts: at most two minutes. Default: one minute. */
  readonly leewayMs?: number;
  /** Longest time between `nbf` and `exp`, where a token has both. Default: no limit. */
  readonly maxLifetimeMs?: number;
}

const LEEWAY_MS = 60_000;
const MAX_LEEWAY_MS = 120_000;

/** Throws `invalid` for a key that is weak or doesn't fit the algorithm. */
export async function signWitSvid(template: WitSvidTemplate, { keyId, signer }: TokenKey): Promise<string> {
  const { subject, publicKey, algorithm, issuedAt, expiresAt, issuer, jti } = template;
  if (!keyFits(algorithm, checkPublicKey(publicKey)))
    throw new Fault("invalid", `the key does not fit signature algorithm ${algorithm}`, { code: "jws-algorithm" });
  const jws = jwsSigner(signer);
  const claims = {
    cnf: { jwk: { ...jwkFromPublicKey(publicKey), alg: algorithm } },
    exp: numericDate(expiresAt),
    iat: numericDate(issuedAt),
    ...(issuer === undefined ? {} : { iss: issuer }),
    ...(jti === undefined ? {} : { jti }),
    sub: subject,
  };
  return signJws({ alg: jws.algorithm, kid: keyId, typ: "wit+jwt" }, claims, jws);
}

/**
 * Every check of WIT-SVID, sections 2 to 4, but for the proof of possession. Throws `denied`, or `invalid` for a
 * leeway that the standard doesn't allow.
 */
export async function validateWitSvid(options: WitSvidOptions): Promise<UnprovenWitSvid> {
  const { token, authorities, at, leewayMs = LEEWAY_MS } = options;
  if (!(leewayMs >= 0 && leewayMs <= MAX_LEEWAY_MS))
    throw new Fault("invalid", "leeway must be from 0 to 120 seconds", { code: "leeway" });
  const jws = parseToken(token);
  const keyId = keyIdOf(jws.header);
  const claims = jws.payload;
  const id = subjectOf(claims);
  await checkSignature(jws, { subject: id, keyId, authorities });
  const expiresAt = expiryOf(claims, at, leewayMs);
  const notBefore = notBeforeOf(claims, at, 0);
  timeOf(claims, "iat");
  checkLifetime(notBefore, expiresAt, options.maxLifetimeMs);
  if (claims["aud"] !== undefined) throw tokenRefused("token has an aud claim, which is not allowed", "token-aud");
  return { id, token, expiresAt, confirmation: confirmationOf(claims), claims };
}

function keyIdOf({ typ, kid }: Claims): string {
  if (typ !== "wit+jwt") throw tokenRefused("token header has an unexpected type; expected wit+jwt", "token-typ");
  if (typeof kid === "string" && kid !== "") return kid;
  throw tokenRefused("token header missing key id", "token-kid");
}

function checkLifetime(notBefore: Date | undefined, expiresAt: Date, maxMs: number | undefined): void {
  if (notBefore === undefined || maxMs === undefined) return;
  if (expiresAt.getTime() - notBefore.getTime() > maxMs)
    throw tokenRefused("token lives longer than is allowed here", "token-lifetime");
}

/**
 * The key of the `cnf` claim. Only a whole public key counts: a key id, a thumbprint or an encrypted key would have to be
 * looked up. Throws `denied`.
 */
export function confirmationOf({ cnf }: Claims): Confirmation {
  const jwk = isObject(cnf) ? cnf["jwk"] : undefined;
  if (!isObject(jwk)) throw unconfirmed("token has no public key in its cnf claim");
  if (PRIVATE_JWK_MEMBERS.some((name) => name in jwk)) throw unconfirmed("token has a private key in its cnf claim");
  const algorithm = JWS_ALGORITHMS.find((name) => name === jwk["alg"]);
  if (algorithm === undefined) throw unconfirmed("token has a cnf key without a supported alg");
  const key = publicKeyOf(jwk);
  if (!keyFits(algorithm, key)) throw unconfirmed(`token has a cnf key that does not fit ${algorithm}`);
  return { key, algorithm };
}

function publicKeyOf(jwk: Claims): KeyObject {
  try {
    return checkPublicKey(publicKeyFromJwk(jwk));
  } catch (error) {
    throw unconfirmed(`token has a cnf key that is not accepted: ${Fault.from(error).message}`);
  }
}

function isObject(value: unknown): value is Claims {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function unconfirmed(reason: string): Fault {
  return tokenRefused(reason, "token-cnf");
}
