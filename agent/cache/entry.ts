import { idFromProto, selectorsFromProto } from "../../src/rpc/convert.ts";
import type { Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import { parseTrustDomainOrId } from "../../src/spiffe/id.ts";
import { selectorSet } from "../../src/spiffe/selector.ts";

/** What the server tells an agent of an entry. TTLs, DNS names and the parent stay at the server. */
export type CachedEntry = Pick<
  Entry,
  | "id"
  | "spiffeId"
  | "selectors"
  | "federatesWith"
  | "admin"
  | "downstream"
  | "storeSvid"
  | "hint"
  | "disableX509SvidPrefetch"
  | "jwtSvidIncludeJti"
  | "revisionNumber"
  | "createdAt"
>;

/** The fields of `CachedEntry`, and nothing more. */
export const ENTRY_MASK = {
  spiffe_id: true,
  selectors: true,
  federates_with: true,
  admin: true,
  downstream: true,
  revision_number: true,
  store_svid: true,
  hint: true,
  additional_attributes: true,
  created_at: true,
} as const;

/** Throws `invalid` for an entry that cannot be held: the caller skips it. */
export function entryFromServer(entry: Entry__Output): CachedEntry {
  if (entry.id === "") throw new Fault("invalid", "missing entry ID");
  if (entry.selectors.length === 0) throw new Fault("invalid", "selector list is empty");
  return Object.freeze({
    id: entry.id,
    spiffeId: idFromProto(entry.spiffe_id),
    selectors: selectorSet(selectorsFromProto(entry.selectors)),
    federatesWith: entry.federates_with.map(parseTrustDomainOrId),
    admin: entry.admin,
    downstream: entry.downstream,
    storeSvid: entry.store_svid,
    hint: entry.hint,
    disableX509SvidPrefetch: entry.additional_attributes?.disable_x509_svid_prefetch ?? false,
    jwtSvidIncludeJti: entry.additional_attributes?.jwt_svid_include_jti ?? false,
    revisionNumber: Number(entry.revision_number),
    createdAt: Number(entry.created_at),
  });
}

/** What tells one version of an entry from another. Both numbers as the wire spells them. */
export interface EntryRevision {
  readonly id: string;
  readonly revision_number: string;
  readonly created_at: string;
}

/**
 * True when the held version is not the server's. An entry deleted and made again under its id may carry the same
 * revision, so the time of creation counts too, except from servers that do not send it.
 */
export function isStale(held: CachedEntry, revision: EntryRevision): boolean {
  if (held.revisionNumber !== Number(revision.revision_number)) return true;
  const createdAt = Number(revision.created_at);
  return createdAt !== 0 && createdAt !== held.createdAt;
}

/** Oldest first, then by id: the order in which a workload gets its identities, the default one first (WAPI-62). */
export function byAge(a: CachedEntry, b: CachedEntry): number {
  return a.createdAt - b.createdAt || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
}

/** Of entries that share a hint only the first stays (WAPI-27). Expects them in order of age. */
export function withUniqueHints(entries: readonly CachedEntry[]): {
  readonly kept: readonly CachedEntry[];
  readonly ignored: readonly CachedEntry[];
} {
  const seen = new Set<string>();
  const kept: CachedEntry[] = [];
  const ignored: CachedEntry[] = [];
  for (const entry of entries) {
    if (entry.hint !== "" && seen.has(entry.hint)) ignored.push(entry);
    else kept.push(entry);
    seen.add(entry.hint);
  }
  return { kept, ignored };
}
