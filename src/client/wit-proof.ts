import { createHash, randomBytes } from "node:crypto";
import { type Jws, jwsHolds, jwsSignerOf, parseJws, signJws } from "../crypto/jws.ts";
import { Fault } from "../runtime/fault.ts";
import { type Claims, numericDate } from "../spiffe/token.ts";
import type { UnprovenWitSvid } from "../spiffe/wit-svid.ts";
import type { WitSvid } from "./wit.ts";
import {
  checkAudience,
  checkExpiry,
  checkSending,
  checkUnused,
  DEFAULT_LIFETIME_MS,
  lowerCased,
  onlyHeader,
  type ProvenWorkload,
  type ReceivedRequest,
  refused,
  TRANSACTION_HEADER,
  type TrustContext,
  targetOf,
  type VerifyOptions,
  valuesOf,
  verifyPossession,
  WIT_HEADER,
} from "./wit-request.ts";

/** The drafts that proofs follow. Later ones may differ, so a change of these is a change of behaviour. */
export const WIMSE_DRAFTS = {
  credentials: "draft-ietf-wimse-workload-creds-02",
  proof: "draft-ietf-wimse-wpt-02",
  signature: "draft-ietf-wimse-http-signature-07",
} as const;

const PROOF_HEADER = "workload-proof-token";
/** Servers remember as many as they let in. */
const MAX_JTI_CHARACTERS = 256;

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
  checkSending(url, { lifetimeMs, allowPlaintext });
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

/**
 * Who sent the request: the WIT-SVID is checked first, then the proof under its key. Claims of the proof other than those
 * of the draft are ignored. Throws `invalid`, which is HTTP 400 and never 401: nobody is asked for a bearer token.
 */
export function verifyProof(request: ReceivedRequest, context: VerifyOptions & TrustContext): Promise<ProvenWorkload> {
  return verifyPossession(request, context, async (wit) => {
    const jws = parsedProof(onlyHeader(request.headers, PROOF_HEADER));
    await checkSignature(jws, wit);
    const { exp, aud, wth, jti } = jws.payload;
    if (typeof exp !== "number") throw refused("the proof does not expire", "proof-exp");
    checkExpiry(exp, context);
    checkAudience(aud, request, context);
    if (wth !== hashOf(wit.token)) throw refused("the proof is for another token", "proof-wth");
    checkCovered(jws.payload, request);
    if (typeof jti !== "string" || jti === "" || jti.length > MAX_JTI_CHARACTERS)
      throw refused("the proof has no jti of at most 256 characters", "proof-jti");
    checkUnused(`${wit.id} ${jti}`, exp, context);
  });
}

/**
 * What an HTTP server answers to what `verifyProof` or `verifyRequest` threw: 400 for a request that proves nobody, and
 * no challenge; 501 for one that wants a signed answer where there is none.
 */
export function proofRefusal(error: unknown): { readonly status: 400 | 501 | 503; readonly message: string } {
  const { kind, message } = Fault.from(error);
  if (kind === "invalid") return { status: 400, message };
  if (kind === "unimplemented") return { status: 501, message };
  return { status: 503, message: "the request cannot be checked now" };
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

/** What the request carries is covered, and what the proof covers is there. */
function checkCovered(claims: Claims, request: ReceivedRequest): void {
  const extra = claims["oth"] ?? {};
  if (typeof extra !== "object" || extra === null || Array.isArray(extra))
    throw refused("the proof covers other tokens in an unknown form", "proof-oth");
  const names = ["authorization", TRANSACTION_HEADER, ...Object.keys(extra)];
  const present = names.filter((name) => valuesOf(request.headers, name).length > 0);
  const found = coveredHashes(Object.fromEntries(present.map((name) => [name, onlyHeader(request.headers, name)])));
  for (const name of ["ath", "tth"] as const)
    if (claims[name] !== found[name]) throw refused(`the proof does not cover the request: ${name}`, `proof-${name}`);
  for (const [name, hash] of Object.entries(extra))
    if (found.oth?.[name] === undefined || found.oth[name] !== hash)
      throw refused(`the proof covers ${JSON.stringify(name.slice(0, 64))}, which is not in the request`, "proof-oth");
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

/** Base64url of the SHA-256 of the token's characters. */
function hashOf(token: string): string {
  return createHash("sha256").update(token, "ascii").digest("base64url");
}
