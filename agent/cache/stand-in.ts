import type { CachedEntry } from "./entry.ts";
import type { WorkloadUpdate, X509Identity } from "./update.ts";

/** How long an identity whose entry names another SPIFFE ID now may stand in for the new one, which is being signed. */
export const RENAMING_MS = 5_000;

/** What a workload had before, in place of an identity that has no SVID yet. */
interface StandIn extends X509Identity {
  /** It has another SPIFFE ID than the entry gives now. */
  readonly isFormer: boolean;
}

interface Succession {
  /** What the workload was told last. */
  readonly last: WorkloadUpdate | undefined;
  /** What it may have now. */
  readonly matched: readonly CachedEntry[];
  readonly now: Date;
}

/**
 * What those who have it keep until the entry's first SVID is here: one of the same SPIFFE ID by an entry that has gone,
 * or else what the entry gave before. Hint and federation are the entry's.
 */
export function standInFor(entry: CachedEntry, { last, matched, now }: Succession): StandIn | undefined {
  const held = last?.identities.filter(({ expiresAt }) => expiresAt > now) ?? [];
  const isGone = (id: string): boolean => matched.every((other) => other.id !== id);
  const former =
    held.find(({ entry: { id, spiffeId } }) => spiffeId === entry.spiffeId && (id === entry.id || isGone(id))) ??
    held.find(({ entry: { id } }) => id === entry.id);
  if (former === undefined) return undefined;
  const { spiffeId } = former.entry;
  return { ...former, entry: { ...entry, spiffeId }, isFormer: spiffeId !== entry.spiffeId };
}
