import { createHash } from "node:crypto";
import type { Insertable, Selectable } from "kysely";
import type { Entry, EntryDraft } from "../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import { formatSelector, type Selector, selectorSet } from "../../src/spiffe/selector.ts";
import type { EntryTable, NodeTable } from "./schema.ts";
import type { AttestedNode } from "./store.ts";

/**
 * Rows come in two forms, from the driver and as JSON of the change feed: numbers may be text, dates may be ISO text.
 * The readers accept both. What is stored was checked when it came in, so IDs are not parsed again.
 */
export type EntryRow = Omit<Selectable<EntryTable>, "seq" | "similar_hash">;
/** Those of an `EntryRow`, with its place in the order of creation. */
export const ENTRY_COLUMNS = [
  "seq",
  "id",
  "spiffe_id",
  "parent_id",
  "selectors",
  "x509_svid_ttl",
  "jwt_svid_ttl",
  "federates_with",
  "admin",
  "downstream",
  "store_svid",
  "expires_at",
  "dns_names",
  "hint",
  "disable_x509_svid_prefetch",
  "jwt_svid_include_jti",
  "revision_number",
  "created_at",
] as const;
export type NodeRow = Omit<Selectable<NodeTable>, "seq" | "key_hash">;

export function toEntry(row: EntryRow): Entry {
  return entryOf(row, NOT_SHARED);
}

/** As `toEntry`, for many rows of one reading: what they repeat becomes one object. */
export function sharingEntryReader(): (row: EntryRow) => Entry {
  const sharing = { parent: once((text) => text), selector: once(storedSelector) };
  return (row) => entryOf(row, sharing);
}

function entryOf(row: EntryRow, share: Sharing): Entry {
  return {
    id: row.id,
    spiffeId: row.spiffe_id as SpiffeId,
    parentId: share.parent(row.parent_id) as SpiffeId,
    selectors: row.selectors.map(share.selector),
    x509SvidTtl: row.x509_svid_ttl,
    jwtSvidTtl: row.jwt_svid_ttl,
    federatesWith: row.federates_with.length === 0 ? NONE : (row.federates_with as TrustDomain[]),
    admin: row.admin,
    downstream: row.downstream,
    storeSvid: row.store_svid,
    expiresAt: Number(row.expires_at),
    dnsNames: row.dns_names.length === 0 ? NONE : row.dns_names,
    hint: row.hint,
    disableX509SvidPrefetch: row.disable_x509_svid_prefetch,
    jwtSvidIncludeJti: row.jwt_svid_include_jti,
    revisionNumber: Number(row.revision_number),
    createdAt: Number(row.created_at),
  };
}

const NONE: readonly never[] = Object.freeze([]);

interface Sharing {
  readonly parent: (text: string) => string;
  readonly selector: (text: string) => Selector;
}

const NOT_SHARED: Sharing = { parent: (text) => text, selector: storedSelector };

/** Never throws: one row that should not be there must not keep the others from being read. */
function storedSelector(text: string): Selector {
  const colon = text.indexOf(":");
  return colon < 0 ? { type: text, value: "" } : { type: text.slice(0, colon), value: text.slice(colon + 1) };
}

function once<T>(read: (text: string) => T): (text: string) => T {
  const known = new Map<string, T>();
  return (text) => {
    const held = known.get(text);
    if (held !== undefined) return held;
    const value = read(text);
    known.set(text, value);
    return value;
  };
}

/** The columns that a draft decides. */
export function entryColumns(draft: EntryDraft): Omit<Insertable<EntryTable>, "id" | "revision_number" | "created_at"> {
  const selectors = selectorTexts(draft.selectors);
  return {
    spiffe_id: draft.spiffeId,
    parent_id: draft.parentId,
    selectors,
    similar_hash: similarHash(draft.parentId, draft.spiffeId, selectors),
    x509_svid_ttl: draft.x509SvidTtl,
    jwt_svid_ttl: draft.jwtSvidTtl,
    federates_with: [...new Set(draft.federatesWith)],
    admin: draft.admin,
    downstream: draft.downstream,
    store_svid: draft.storeSvid,
    expires_at: draft.expiresAt,
    dns_names: [...draft.dnsNames],
    hint: draft.hint,
    disable_x509_svid_prefetch: draft.disableX509SvidPrefetch,
    jwt_svid_include_jti: draft.jwtSvidIncludeJti,
  };
}

/** Each part with its length before it, so that no two different entries hash the same bytes. */
function similarHash(...[parentId, spiffeId, selectors]: readonly [SpiffeId, SpiffeId, readonly string[]]): Buffer {
  const hash = createHash("sha256");
  for (const part of [parentId, spiffeId, ...selectors]) {
    const bytes = Buffer.from(part);
    hash.update(`${bytes.length}:`).update(bytes);
  }
  return hash.digest();
}

/** Sorted, each once, as they are stored. */
export function selectorTexts(selectors: readonly Selector[]): string[] {
  return selectorSet(selectors).map(formatSelector);
}

export function toNode(row: NodeRow): AttestedNode {
  return {
    id: row.spiffe_id as SpiffeId,
    attestationType: row.attestation_type,
    serialNumber: row.serial_number,
    expiresAt: new Date(row.expires_at),
    newSerialNumber: row.new_serial_number,
    newExpiresAt: row.new_expires_at === null ? undefined : new Date(row.new_expires_at),
    canReattest: row.can_reattest,
    agentVersion: row.agent_version,
    superseded: row.superseded,
    selectors: row.selectors.map(storedSelector),
    quarantine:
      row.quarantined_at === null ? undefined : { since: new Date(row.quarantined_at), reason: row.quarantine_reason },
  };
}
