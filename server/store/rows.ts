import { createHash } from "node:crypto";
import { type Insertable, type Selectable, sql } from "kysely";
import type { Entry, EntryDraft } from "../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import { formatSelector, type Selector, selectorSet, storedSelector } from "../../src/spiffe/selector.ts";
import type { EntryTable, NodeTable } from "./schema.ts";
import type { AttestedNode } from "./store.ts";

/**
 * Rows come in two forms, from the driver and as JSON of the change feed: numbers may be text, dates may be ISO text.
 * The readers accept both. What is stored was checked when it came in, so IDs are not parsed again.
 */
export type EntryRow = Omit<Selectable<EntryTable>, "seq" | "similar_hash">;
/** A row with as few values as it may have: what is as usual is null, and `plain` is what one text can hold. */
export interface LoadedEntryRow extends Pick<EntryRow, "id" | "spiffe_id" | "parent_id" | "revision_number"> {
  readonly seq: string;
  readonly created_at: EntryRow["created_at"];
  /** Lists are JSON, which is read in a sixth of the time that PostgreSQL's own form takes. */
  readonly selectors: string;
  readonly federates_with: string | null;
  readonly dns_names: string | null;
  readonly hint: string | null;
  readonly plain: string;
}
/** Of a `LoadedEntryRow`. */
export const LOADED_ENTRY = sql`
  seq, id, spiffe_id, parent_id, to_json(selectors)::text as selectors, revision_number, created_at,
  to_json(nullif(federates_with, '{}'))::text as federates_with, to_json(nullif(dns_names, '{}'))::text as dns_names,
  nullif(hint, '') as hint,
  x509_svid_ttl || ' ' || jwt_svid_ttl || ' ' || expires_at || ' ' || admin::int || ' ' || downstream::int || ' ' ||
    store_svid::int || ' ' || disable_x509_svid_prefetch::int || ' ' || jwt_svid_include_jti::int as plain`;
export type NodeRow = Omit<Selectable<NodeTable>, "seq" | "key_hash">;

export function toEntry(row: EntryRow): Entry {
  return {
    id: row.id,
    spiffeId: row.spiffe_id as SpiffeId,
    parentId: row.parent_id as SpiffeId,
    selectors: row.selectors.map(storedSelector),
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

/** As `toEntry`, for many rows of one reading: what they repeat is read once and becomes one object. */
export function loadedEntryReader(): (row: LoadedEntryRow) => Entry {
  const text = shared((one) => one);
  const selector = shared(storedSelector);
  const selectors = shared((list) => readArray(list).map(selector));
  const plain = shared(readPlain);
  return (row) => ({
    id: row.id,
    spiffeId: row.spiffe_id as SpiffeId,
    parentId: text(row.parent_id) as SpiffeId,
    selectors: selectors(row.selectors),
    federatesWith: row.federates_with === null ? NONE : (readArray(row.federates_with) as TrustDomain[]),
    dnsNames: row.dns_names === null ? NONE : readArray(row.dns_names),
    hint: row.hint ?? "",
    revisionNumber: Number(row.revision_number),
    createdAt: Number(row.created_at),
    ...plain(row.plain),
  });
}

function readArray(json: string): string[] {
  return JSON.parse(json) as string[];
}

function readPlain(plain: string) {
  const numbers = plain.split(" ").map(Number);
  const [x509SvidTtl = 0, jwtSvidTtl = 0, expiresAt = 0, ...bits] = numbers;
  const [admin, downstream, storeSvid, disableX509SvidPrefetch, jwtSvidIncludeJti] = bits.map((bit) => bit === 1);
  return {
    ...{ x509SvidTtl, jwtSvidTtl, expiresAt, admin: admin === true, downstream: downstream === true },
    storeSvid: storeSvid === true,
    disableX509SvidPrefetch: disableX509SvidPrefetch === true,
    jwtSvidIncludeJti: jwtSvidIncludeJti === true,
  };
}

const NONE: readonly never[] = Object.freeze([]);
/** A map that grew with the table would stop the event loop to grow. What repeats is soon met again. */
const MOST_SHARED = 20_000;

function shared<T>(read: (text: string) => T): (text: string) => T {
  const known = new Map<string, T>();
  return (text) => {
    const held = known.get(text);
    if (held !== undefined) return held;
    if (known.size === MOST_SHARED) known.clear();
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
