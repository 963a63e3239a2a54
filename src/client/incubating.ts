/** What the standards count as incubating: it may change in any version, with the documents. */

export type { UnprovenWitSvid } from "../spiffe/wit-svid.ts";
export { BROKER_SOCKET_VARIABLE, brokerAddress } from "./address.ts";
export {
  BrokerClient,
  type BrokeredFetchOptions,
  type BrokeredJwtSourceOptions,
  type BrokeredWatchOptions,
  BrokeredWorkload,
  type BrokeredX509SourceOptions,
  type BrokerOptions,
} from "./broker.ts";
export {
  type KubernetesObject,
  kubernetesReference,
  pidReference,
  processReference,
  type WorkloadReference,
} from "./broker-reference.ts";
export { type KeptFilesOptions, keepX509Files } from "./kept-files.ts";
export {
  type ReceivedResponse,
  type ReceivedSignedRequest,
  type SignedRequest,
  type SignRequestOptions,
  type SignResponseOptions,
  signRequest,
  signResponse,
  type VerifiedRequest,
  type VerifyRequestOptions,
  type VerifyResponseOptions,
  verifyRequest,
  verifyResponse,
} from "./message-signature.ts";
export { ReplayCache } from "./replay-cache.ts";
export { authorizeAgentOf } from "./tls.ts";
export { type WitContext, type WitSvid, watchWitBundles, watchWitSvids } from "./wit.ts";
export {
  type ProofHeaders,
  type ProofOptions,
  proofRefusal,
  type SignProofOptions,
  signProof,
  verifyProof,
  WIMSE_DRAFTS,
} from "./wit-proof.ts";
export {
  type ProvenWorkload,
  type ReceivedHeaders,
  type ReceivedRequest,
  type TrustContext,
  type VerifyOptions,
  verifyPossession,
} from "./wit-request.ts";
export { WitSource, type WitSourceOptions } from "./wit-source.ts";
