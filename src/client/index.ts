/** What other programs import: the SPIFFE Workload API and mutual TLS with X509-SVIDs. */
export { type EndpointAddress, endpointAddress, parseEndpointAddress, SOCKET_VARIABLE } from "./address.ts";
export { checkRevocation, parseRevocationList, type RevocationList } from "./crl.ts";
export type { EndpointOptions, FetchOptions } from "./endpoint.ts";
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
export {
  fetchX509Bundles,
  fetchX509Svid,
  type WatchEndpointOptions,
  watchX509Bundles,
  watchX509Svids,
} from "./workload-api.ts";
export type { X509Bundle, X509Bundles, X509Context, X509Svid } from "./x509-context.ts";
export { X509Source, type X509SourceOptions } from "./x509-source.ts";
