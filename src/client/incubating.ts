/** What the standards count as incubating: it may change in any version, with the documents. */
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
export { ReplayCache } from "./replay-cache.ts";
export { authorizeAgentOf } from "./tls.ts";
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
