import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { CachedEntry } from "./entry.ts";

/** Own and foreign authorities, as of the last sync. */
export interface TrustBundles {
  readonly own: Bundle;
  readonly federated: ReadonlyMap<TrustDomain, Bundle>;
}

export interface X509Identity {
  readonly entry: CachedEntry;
  /** DER, leaf first. */
  readonly chain: readonly Uint8Array[];
  /** PKCS#8 DER. */
  readonly privateKey: Uint8Array;
  readonly expiresAt: Date;
}

/** Everything a workload may have, whole. Immutable. */
export interface WorkloadUpdate {
  /** The default identity first; the same order every time. Only those with a valid SVID. */
  readonly identities: readonly X509Identity[];
  readonly bundle: Bundle;
  readonly federatedBundles: ReadonlyMap<TrustDomain, Bundle>;
  /** True when at least one entry matches, even if its SVID is not here yet. */
  readonly entitled: boolean;
}

export function updateFor(
  identities: readonly X509Identity[],
  bundles: TrustBundles,
  entitled: boolean,
): WorkloadUpdate {
  const entries = identities.map(({ entry }) => entry);
  return Object.freeze({ identities, ...bundlesFor(entries, bundles), entitled });
}

/** The own bundle, and those that the entries federate with as far as they are here. */
export function bundlesFor(
  entries: readonly CachedEntry[],
  bundles: TrustBundles,
): Pick<WorkloadUpdate, "bundle" | "federatedBundles"> {
  const names = new Set(entries.flatMap(({ federatesWith }) => federatesWith));
  const federatedBundles = new Map<TrustDomain, Bundle>();
  for (const name of [...names].sort()) {
    const bundle = bundles.federated.get(name);
    if (bundle !== undefined) federatedBundles.set(name, bundle);
  }
  return { bundle: bundles.own, federatedBundles };
}

/** True when a workload would see no difference: what the API delivers is compared, not the entries behind it. */
export function sameUpdate(a: WorkloadUpdate, b: WorkloadUpdate): boolean {
  return (
    a.entitled === b.entitled &&
    a.identities.length === b.identities.length &&
    a.identities.every((identity, at) => sameIdentity(identity, b.identities[at])) &&
    sameX509Authorities(a.bundle, b.bundle) &&
    a.federatedBundles.size === b.federatedBundles.size &&
    [...a.federatedBundles].every(([name, bundle]) => sameX509Authorities(bundle, b.federatedBundles.get(name)))
  );
}

/** By identity: unchanged bundles are the same objects. */
export function sameBundles(a: TrustBundles, b: TrustBundles): boolean {
  return (
    a.own === b.own &&
    a.federated.size === b.federated.size &&
    [...a.federated].every(([name, bundle]) => bundle === b.federated.get(name))
  );
}

function sameIdentity(a: X509Identity, b: X509Identity | undefined): boolean {
  return a.chain === b?.chain && a.entry.id === b.entry.id && a.entry.hint === b.entry.hint;
}

function sameX509Authorities(a: Bundle, b: Bundle | undefined): boolean {
  if (a === b) return true;
  return (
    a.x509Authorities.length === b?.x509Authorities.length &&
    a.x509Authorities.every(
      ({ asn1 }, at) => Buffer.compare(asn1, b.x509Authorities[at]?.asn1 ?? new Uint8Array()) === 0,
    )
  );
}
