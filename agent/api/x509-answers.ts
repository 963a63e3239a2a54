import type { X509BundlesResponse } from "../../src/rpc/gen/X509BundlesResponse.ts";
import type { X509SVID } from "../../src/rpc/gen/X509SVID.ts";
import type { X509SVIDResponse } from "../../src/rpc/gen/X509SVIDResponse.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { trustDomainId } from "../../src/spiffe/id.ts";
import type { WorkloadUpdate, X509Identity } from "../cache/update.ts";

/** The whole state as one message; undefined while there is none to tell. SPIFFE Workload API, section 5.2.1. */
export function x509SvidAnswer(update: WorkloadUpdate): X509SVIDResponse | undefined {
  const bundle = derOf(update.bundle);
  if (bundle.length === 0 || update.identities.length === 0) return undefined;
  return {
    svids: update.identities.map((identity) => x509Svid(identity, bundle)),
    federated_bundles: x509Bundles(update.federatedBundles.values()),
  };
}

/** Foreign bundles go to callers with an identity only. SPIFFE Workload API, section 5.2.2. */
export function x509BundlesAnswer(update: WorkloadUpdate): X509BundlesResponse {
  const foreign = update.entitled ? update.federatedBundles.values() : [];
  return { bundles: x509Bundles([update.bundle, ...foreign]) };
}

function x509Svid({ entry, chain, privateKey }: X509Identity, bundle: Buffer): X509SVID {
  return {
    spiffe_id: entry.spiffeId,
    x509_svid: Buffer.concat(chain),
    x509_svid_key: privateKey,
    bundle,
    hint: entry.hint,
  };
}

/** DER certificates end to end, by trust domain ID. */
export function x509Bundles(bundles: Iterable<Bundle>): Record<string, Buffer> {
  return Object.fromEntries([...bundles].map((bundle) => [trustDomainId(bundle.trustDomain), derOf(bundle)]));
}

function derOf(bundle: Bundle): Buffer {
  return Buffer.concat(bundle.x509Authorities.map(({ asn1 }) => asn1));
}
