import type { Entitlement } from "../cache/entries.ts";
import type { CachedEntry } from "../cache/entry.ts";
import type { WorkloadUpdate } from "../cache/update.ts";

// What others than the workload may have in its place: brokers and delegates. Admin and downstream identities could act
// on the server in the workload's name (T-W7).

function isOrdinary({ admin, downstream }: CachedEntry): boolean {
  return !admin && !downstream;
}

/** Without the identities that may act on the server, and without the bundles that only those federate with. */
export function ordinaryUpdate(update: WorkloadUpdate): WorkloadUpdate {
  const identities = update.identities.filter(({ entry }) => isOrdinary(entry));
  const entries = identities.map(({ entry }) => entry);
  return { ...update, identities, federatedBundles: federatedWith(entries, update.federatedBundles) };
}

export function ordinaryEntitlement({ entries, bundle, federatedBundles }: Entitlement): Entitlement {
  const ordinary = entries.filter(isOrdinary);
  return { entries: ordinary, bundle, federatedBundles: federatedWith(ordinary, federatedBundles) };
}

function federatedWith(
  entries: readonly CachedEntry[],
  bundles: WorkloadUpdate["federatedBundles"],
): WorkloadUpdate["federatedBundles"] {
  const names = new Set(entries.flatMap(({ federatesWith }) => federatesWith));
  return new Map([...bundles].filter(([name]) => names.has(name)));
}
