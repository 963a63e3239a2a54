import { createPrivateKey, createPublicKey, type KeyObject } from "node:crypto";
import { type JwsAlgorithm, parseJws } from "../crypto/jws.ts";
import type { WITBundlesResponse__Output } from "../rpc/gen/WITBundlesResponse.ts";
import type { WITSVID__Output } from "../rpc/gen/WITSVID.ts";
import type { WITSVIDResponse__Output } from "../rpc/gen/WITSVIDResponse.ts";
import { WorkloadApi } from "../rpc/protos.ts";
import { parseSpiffeId, type SpiffeId } from "../spiffe/id.ts";
import { timeOf } from "../spiffe/token.ts";
import { confirmationOf } from "../spiffe/wit-svid.ts";
import { type FetchOptions, overChannel } from "./endpoint.ts";
import { firstOfEachHint, readTokenBundles, type TokenBundles, unusable } from "./token-context.ts";
import { type WatchOptions, watch } from "./watch.ts";

/** One identity of this process: a token, and the key that proves it is not stolen. Immutable. */
export interface WitSvid {
  readonly id: SpiffeId;
  /** What the operator calls this identity; empty when there is no name. */
  readonly hint: string;
  readonly token: string;
  readonly privateKey: KeyObject;
  /** What the key signs proofs with. */
  readonly algorithm: JwsAlgorithm;
  readonly expiresAt: Date;
}

export interface WitContext {
  /** Never empty; the first is the default identity. SPIFFE Workload API, section 8. */
  readonly svids: readonly [WitSvid, ...WitSvid[]];
}

/** All WIT-SVIDs of this process, now and after each change. As `watchX509Svids`. */
export function watchWitSvids(options: FetchOptions & WatchOptions): AsyncGenerator<WitContext, void, undefined> {
  const open = overChannel(options, (channel, call) => channel.client(WorkloadApi).FetchWITSVID({}, call));
  return watch(open, readWitContext, options);
}

/** The keys that verify WIT-SVIDs, now and after each change. As `watchX509Bundles`. */
export function watchWitBundles(options: FetchOptions & WatchOptions): AsyncGenerator<TokenBundles, void, undefined> {
  const open = overChannel(options, (channel, call) => channel.client(WorkloadApi).FetchWITBundles({}, call));
  return watch(open, readWitBundles, options);
}

function readWitBundles({ bundles }: WITBundlesResponse__Output): TokenBundles {
  return readTokenBundles(bundles, "wit-svid");
}

/** Throws `invalid` when anything mandatory is unset or does not fit. */
function readWitContext({ svids }: WITSVIDResponse__Output): WitContext {
  const [first, ...others] = firstOfEachHint(svids).map(readSvid);
  if (first === undefined) throw unusable("no SVIDs in response");
  return { svids: [first, ...others] };
}

function readSvid({ spiffe_id, wit_svid: token, wit_svid_key, hint }: WITSVID__Output): WitSvid {
  if (spiffe_id === "") throw unusable("WIT-SVID without SPIFFE ID");
  const id = parseSpiffeId(spiffe_id);
  if (token === "") throw unusable(`missing token for SVID with SPIFFE ID "${id}"`);
  if (wit_svid_key === "") throw unusable(`missing private key for SVID with SPIFFE ID "${id}"`);
  const claims = parseJws(token).payload;
  const expiresAt = timeOf(claims, "exp");
  if (claims["sub"] !== id) throw unusable(`token of SVID "${id}" names another SPIFFE ID`);
  if (expiresAt === undefined) throw unusable(`token of SVID "${id}" does not expire`);
  const { key, algorithm } = confirmationOf(claims);
  const privateKey = readPrivateKey(wit_svid_key, id);
  if (!createPublicKey(privateKey).equals(key)) throw unusable(`private key of SVID "${id}" does not match its token`);
  return Object.freeze({ id, hint, token, privateKey, algorithm, expiresAt });
}

/** The message never holds key material. */
function readPrivateKey(text: string, id: SpiffeId): KeyObject {
  try {
    return createPrivateKey({ key: JSON.parse(text), format: "jwk" });
  } catch {
    throw unusable(`private key of SVID "${id}" is not a private JWK`);
  }
}
