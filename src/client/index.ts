/** What other programs import: the SPIFFE Workload API, mutual TLS with X509-SVIDs, and tokens. */

export { Fault, type FaultKind } from "../runtime/fault.ts";
export {
  parseSpiffeId as spiffeId,
  parseTrustDomain as trustDomain,
  type SpiffeId,
  type TrustDomain,
} from "../spiffe/id.ts";
export type { JwtSvid } from "../spiffe/jwt-svid.ts";
export { type EndpointAddress, endpointAddress, parseEndpointAddress, SOCKET_VARIABLE } from "./address.ts";
export { checkRevocation, parseRevocationList, type RevocationList } from "./crl.ts";
export type { EndpointOptions, FetchOptions } from "./endpoint.ts";
export { type GrpcListener, grpcChannelCredentials, grpcListener } from "./grpc.ts";
export {
  bearerHeader,
  bearerToken,
  type FetchJwtSvidOptions,
  fetchJwtBundles,
  fetchJwtSvid,
  fetchJwtSvids,
  type ValidateJwtSvidOptions,
  validateJwtSvid,
  watchJwtBundles,
} from "./jwt.ts";
export type { JwtSvidToken, JwtSvidTokens } from "./jwt-context.ts";
export { JwtSource, type JwtSourceOptions, type SourceFetchOptions } from "./jwt-source.ts";
export { listServices } from "./services.ts";
export {
  type Authorize,
  authorizeAny,
  authorizeId,
  authorizeMemberOf,
  guardServer,
  MtlsAgent,
  type MtlsOptions,
  mtlsClientOptions,
  mtlsServerOptions,
  peerId,
} from "./tls.ts";
export type { TokenBundle, TokenBundles } from "./token-context.ts";
export {
  fetchX509Bundles,
  fetchX509Svid,
  type WatchEndpointOptions,
  watchX509Bundles,
  watchX509Svids,
} from "./workload-api.ts";
export type { X509Bundle, X509Bundles, X509Context, X509Svid } from "./x509-context.ts";
export { X509Source, type X509SourceOptions } from "./x509-source.ts";
