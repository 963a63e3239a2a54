import { expect, test } from "vitest";
import { rpcNames } from "../../../src/rpc/names.ts";

test.each([
  ["/spire.api.server.entry.v1.Entry/GetEntry", "entry.v1.Entry", "entry.v1.entry.get_entry"],
  ["/spire.api.server.svid.v1.SVID/BatchNewX509SVID", "svid.v1.SVID", "svid.v1.svid.batch_new_x509svid"],
  ["/spire.api.server.svid.v1.SVID/NewJWTSVID", "svid.v1.SVID", "svid.v1.svid.new_jwtsvid"],
  ["/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", "svid.v1.SVID", "svid.v1.svid.new_downstream_x509ca"],
  [
    "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority",
    "bundle.v1.Bundle",
    "bundle.v1.bundle.publish_jwt_authority",
  ],
  [
    "/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle",
    "trustdomain.v1.TrustDomain",
    "trustdomain.v1.trust_domain.refresh_bundle",
  ],
  ["/spire.api.server.logger.v1.Logger/SetLogLevel", "Logger", "logger.set_log_level"],
  ["/spire.api.server.debug.v1.Debug/GetInfo", "debug.v1.Debug", "debug.v1.debug.get_info"],
  ["/grpc.health.v1.Health/Check", "Health", "health.check"],
  ["/SpiffeWorkloadAPI/FetchX509SVID", "WorkloadAPI", "workload_api.fetch_x509svid"],
  ["/SpiffeWorkloadAPI/FetchJWTBundles", "WorkloadAPI", "workload_api.fetch_jwt_bundles"],
  ["/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", "SDS.v3", "sds.v3.stream_secrets"],
  [
    "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509SVIDs",
    "DelegatedIdentity",
    "delegated_identity.subscribe_to_x509_svids",
  ],
])("%s is %s in logs and %s in metrics, as SPIRE spells it", (path, service, metricKey) => {
  expect(rpcNames(path)).toEqual({ service, metricKey });
});
