import { createHash, randomBytes } from "node:crypto";
import { type Jws, jwsHolds, jwsSignerOf, parseJws, signJws } from "../crypto/jws.ts";
import { Fault } from "../runtime/fault.ts";
import type { SpiffeId } from "../spiffe/id.ts";
import { type Claims, numericDate, type TokenAuthorities } from "../spiffe/token.ts";
import { type UnprovenWitSvid, validateWitSvid } from "../spiffe/wit-svid.ts";
import { isConfidential } from "./confidential.ts";
import type { ReplayCache } from "./replay-cache.ts";
import type { WitSvid } from "./wit.ts";

/** The drafts that proofs follow. Later ones may differ, so a change of these is a change of behaviour. */
export const WIMSE_DRAFTS = {
  credentials: "draft-ietf-wimse-workload-creds-02",
  proof: "draft-ietf-wimse-wpt-02",
} as const;

const WIT_HEADER = "workload-identity-token";
const PROOF_HEADER = "workload-proof-token";
const TRANSACTION_HEADER = "txn-token";
const DEFAULT_LIFETIME_MS = 60_000;
/** Of a proof that is accepted. WIT-SVID, section 7.2. */
const MAX_LIFETIME_MS = 300_000;
const LEEWAY_MS = 60_000;

export interface ProofOptions {
  /** How long the proof counts, at most five minutes. Default: one minute. */
  readonly lifetimeMs?: number;
  /** Further headers of the request whose values the proof covers; `authorization` and `txn-token` always are. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Send token and proof where others can read them. */
  readonly allowPlaintext?: boolean;
}

export interface SignProofOptions extends ProofOptions {
  readonly svid: Pick<WitSvid, "token" | "privateKey" | "algorithm">;
  /** Where the request goes; query and fragment are not covered. */
  readonly target: string | URL;
  readonly at: Date;
}

/** For the request that the proof was made for, once. */
export type ProofHeaders = Readonly<Record<typeof WIT_HEADER | typeof PROOF_HEADER, string>>;

/**
 * The headers that show a WIT-SVID to a server, with a proof that the key is held. Throws `invalid` for an address that
 * others could read them at, and for a lifetime that no server has to accept.
 */
export async function signProof(options: SignProofOptions): Promise<ProofHeaders> {
  const { svid, target, at, lifetimeMs = DEFAULT_LIFETIME_MS, headers = {}, allowPlaintext = false } = options;
  const url = new URL(target);
  if (!isConfidential(url) && !allowPlaintext)
    throw refused(`a WIT-SVID does not go to ${url.protocol}//${url.hostname} without TLS`, "wit-plaintext");
  if (!(lifetimeMs > 0 && lifetimeMs <= MAX_LIFETIME_MS))
    throw refused("a proof lives for five minutes at most", "proof-lifetime");
  const signer = jwsSignerOf(svid.algorithm, svid.privateKey);
  const claims = {
    aud: targetOf(url),
    exp: numericDate(new Date(at.getTime() + lifetimeMs)),
    jti: randomBytes(16).toString("base64url"),
    wth: hashOf(svid.token),
    ...coveredHashes(lowerCased(headers)),
  };
  const proof = await signJws({ alg: signer.algorithm, typ: "wpt+jwt" }, claims, signer);
  return { [WIT_HEADER]: svid.token, [PROOF_HEADER]: proof };
}

/** A request as the server got it. */
export interface ReceivedRequest {
  /** As Node has them: by lower-case name. */
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  /** The address by which this server is known and the path that was asked for; never taken from `host` or forwarded headers. */
  readonly target: string | URL;
}

export interface VerifyOptions {
  /** Other addresses of this server that a proof may name. */
  readonly aliases?: readonly string[];
  /** Refuses a proof that was used before. */
  readonly replays?: ReplayCache;
  /** Longest time that a proof may still count. Default: five minutes. */
  readonly maxLifetimeMs?: number;
  /** The request came without TLS, over a way that is confidential otherwise. */
  readonly allowPlaintext?: boolean;
}

interface VerifyContext extends VerifyOptions {
  readonly authorities: TokenAuthorities;
  readonly at: Date;
}

/** A workload that has proved who it is. */
export interface ProvenWorkload {
  readonly id: SpiffeId;
  /** All claims of the WIT-SVID. */
  readonly claims: Claims;
}

/**
 * Who sent the request: the WIT-SVID is checked first, then the proof under its key. Claims of the proof other than those
 * of the draft are ignored. Throws `invalid`, which is HTTP 400 and never 401: nobody is asked for a bearer token.
 */
export async function verifyProof(request: ReceivedRequest, context: VerifyContext): Promise<ProvenWorkload> {
  if (!isConfidential(new URL(request.target)) && context.allowPlaintext !== true)
    throw refused("a WIT-SVID was sent without TLS", "wit-plaintext");
  const token = onlyHeader(request, WIT_HEADER);
  const proof = onlyHeader(request, PROOF_HEADER);
  if (valuesOf(request, "authorization").some((value) => value.includes(token)))
    throw refused("a WIT-SVID is no bearer token", "wit-bearer");
  const wit = await checkedWit(token, context);
  const jws = parsedProof(proof);
  await checkSignature(jws, wit);
  checkTimes(jws.payload, context);
  checkTarget(jws.payload, request, context);
  if (jws.payload["wth"] !== hashOf(token)) throw refused("the proof is for another token", "proof-wth");
  checkCovered(jws.payload, request);
  checkReplay(jws.payload, wit, context);
  return Object.freeze({ id: wit.id, claims: wit.claims });
}

/** What an HTTP server answers to what `verifyProof` threw: 400 for a request that proves nobody, and no challenge. */
export function proofRefusal(error: unknown): { readonly status: 400 | 503; readonly message: string } {
  const { kind, message } = Fault.from(error);
  return kind === "invalid" ? { status: 400, message } : { status: 503, message: "the request cannot be checked now" };
}

async function checkedWit(token: string, { authorities, at }: VerifyContext): Promise<UnprovenWitSvid> {
  try {
    return await validateWitSvid({ token, authorities, at });
  } catch (error) {
    const { message, code } = Fault.from(error);
    throw refused(`the WIT-SVID is not valid: ${message}`, code);
  }
}

function parsedProof(proof: string): Jws {
  const jws = parseJws(proof);
  if (jws.header["typ"] === "wpt+jwt") return jws;
  throw refused("the proof has an unexpected type; expected wpt+jwt", "proof-typ");
}

async function checkSignature(jws: Jws, { confirmation }: UnprovenWitSvid): Promise<void> {
  if (jws.algorithm !== confirmation.algorithm)
    throw refused("the proof is signed with another algorithm than the token names", "proof-alg");
  if (!(await jwsHolds(jws, confirmation.key)))
    throw refused("the proof is not signed with the key of the token", "proof-signature");
}

function checkTimes(claims: Claims, { at, maxLifetimeMs = MAX_LIFETIME_MS }: VerifyContext): void {
  const { exp } = claims;
  if (typeof exp !== "number") throw refused("the proof does not expire", "proof-exp");
  const left = exp * 1000 - at.getTime();
  if (left <= -LEEWAY_MS) throw refused("the proof has expired", "proof-expired");
  if (left > maxLifetimeMs) throw refused("the proof lives longer than is allowed here", "proof-lifetime");
}

function checkTarget({ aud }: Claims, { target }: ReceivedRequest, { aliases = [] }: VerifyContext): void {
  const accepted = [targetOf(new URL(target)), ...aliases];
  if (typeof aud !== "string" || !accepted.includes(aud))
    throw refused("the proof is for another address", "proof-aud");
}

/** What the request carries is covered, and what the proof covers is there. */
function checkCovered(claims: Claims, request: ReceivedRequest): void {
  const extra = claims["oth"] ?? {};
  if (typeof extra !== "object" || extra === null || Array.isArray(extra))
    throw refused("the proof covers other tokens in an unknown form", "proof-oth");
  const names = ["authorization", TRANSACTION_HEADER, ...Object.keys(extra)];
  const present = names.filter((name) => valuesOf(request, name).length > 0);
  const found = coveredHashes(Object.fromEntries(present.map((name) => [name, onlyHeader(request, name)])));
  for (const name of ["ath", "tth"] as const)
    if (claims[name] !== found[name]) throw refused(`the proof does not cover the request: ${name}`, `proof-${name}`);
  for (const [name, hash] of Object.entries(extra))
    if (found.oth?.[name] === undefined || found.oth[name] !== hash)
      throw refused(`the proof covers ${JSON.stringify(name.slice(0, 64))}, which is not in the request`, "proof-oth");
}

function checkReplay({ jti, exp }: Claims, { id }: UnprovenWitSvid, { replays, at }: VerifyContext): void {
  if (typeof jti !== "string" || jti === "") throw refused("the proof has no jti", "proof-jti");
  const until = new Date(Number(exp) * 1000 + LEEWAY_MS);
  if (replays?.isNew(`${id} ${jti}`, { until, at }) === false)
    throw refused("the proof has been used before", "proof-replayed");
}

interface CoveredHashes {
  readonly ath?: string;
  readonly tth?: string;
  readonly oth?: Readonly<Record<string, string>>;
}

/** Of the tokens themselves: an access token without the name of its scheme. */
function coveredHashes(headers: Readonly<Record<string, string>>): CoveredHashes {
  const { authorization, [TRANSACTION_HEADER]: transaction, ...others } = headers;
  const oth = Object.fromEntries(Object.entries(others).map(([name, value]) => [name, hashOf(value)]));
  return {
    ...(authorization === undefined ? {} : { ath: hashOf(authorization.replace(/^\S+ +/, "")) }),
    ...(transaction === undefined ? {} : { tth: hashOf(transaction) }),
    ...(Object.keys(oth).length === 0 ? {} : { oth }),
  };
}

function lowerCased(headers: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  const lower = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]);
  return Object.fromEntries(lower);
}

/** Node joins headers that occur twice with a comma, which neither kind of token has. */
function onlyHeader(request: ReceivedRequest, name: string): string {
  const values = valuesOf(request, name);
  const [value] = values;
  if (value === undefined || value === "") throw refused(`the request has no ${name} header`, "header-missing");
  if (values.length > 1) throw refused(`the request has several ${name} headers`, "header-repeated");
  return value;
}

function valuesOf({ headers }: ReceivedRequest, name: string): readonly string[] {
  return Object.hasOwn(headers, name) ? [headers[name] ?? []].flat() : [];
}

/** Without query and fragment, as both ends write it. */
function targetOf(url: URL): string {
  return `${url.protocol}//${url.host}${url.pathname}`;
}

/** Base64url of the SHA-256 of the token's characters. */
function hashOf(token: string): string {
  return createHash("sha256").update(token, "ascii").digest("base64url");
}

function refused(reason: string, code: string): Fault {
  return new Fault("invalid", reason, { code });
}
