/** What the standards count as incubating: it may change in any version, with the documents. */
export { ReplayCache } from "./replay-cache.ts";
export { type WitContext, type WitSvid, watchWitBundles, watchWitSvids } from "./wit.ts";
export {
  type ProofHeaders,
  type ProofOptions,
  type ProvenWorkload,
  proofRefusal,
  type ReceivedRequest,
  type SignProofOptions,
  signProof,
  type VerifyOptions,
  verifyProof,
  WIMSE_DRAFTS,
} from "./wit-proof.ts";
export { WitSource, type WitSourceOptions } from "./wit-source.ts";
