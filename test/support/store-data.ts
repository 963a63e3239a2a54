import { sql } from "kysely";
import type { DataStoreConfig, StoreOptions } from "../../server/store/database.ts";
import { openStore, type SqlStore } from "../../server/store/database.ts";
import type { AuthorityRecord, NodeDraft } from "../../server/store/store.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { EntryDraft } from "../../src/spiffe/entry.ts";
import { parseTrustDomain, type SpiffeId, spiffeId, type TrustDomain } from "../../src/spiffe/id.ts";
import { parseSelector, type Selector } from "../../src/spiffe/selector.ts";
import { RecordingLog } from "./recording-log.ts";

const TRUST_DOMAIN: TrustDomain = parseTrustDomain("a.test");

export function idOf(path: string): SpiffeId {
  return spiffeId(TRUST_DOMAIN, path);
}

export function selectorsOf(...texts: readonly string[]): readonly Selector[] {
  return texts.map(parseSelector);
}

export function draftOf(name: string, fields: Partial<EntryDraft> = {}): EntryDraft {
  return {
    id: "",
    spiffeId: idOf(`/workload/${name}`),
    parentId: idOf("/spire/agent/one"),
    selectors: selectorsOf(`unix:user:${name}`),
    x509SvidTtl: 0,
    jwtSvidTtl: 0,
    federatesWith: [],
    admin: false,
    downstream: false,
    storeSvid: false,
    expiresAt: 0,
    dnsNames: [],
    hint: "",
    disableX509SvidPrefetch: false,
    jwtSvidIncludeJti: false,
    ...fields,
  };
}

export function nodeOf(name: string, fields: Partial<NodeDraft> = {}): NodeDraft {
  return {
    id: idOf(`/spire/agent/${name}`),
    attestationType: "join_token",
    serialNumber: "1001",
    expiresAt: new Date("2030-01-01T00:00:00Z"),
    canReattest: false,
    selectors: [],
    ...fields,
  };
}

export type BundleContent = Omit<Bundle, "trustDomain" | "sequenceNumber">;

export function bundleOf(...bytes: readonly number[]): BundleContent {
  return {
    x509Authorities: bytes.map((byte) => ({ asn1: Uint8Array.of(48, byte), tainted: false })),
    jwtAuthorities: [],
    witAuthorities: [],
    refreshHint: 300,
  };
}

export function authorityOf(authorityId: string, fields: Partial<AuthorityRecord> = {}): AuthorityRecord {
  return {
    authorityId,
    kind: "x509",
    status: "active",
    keyId: "x509-CA-A",
    certificateChain: [Uint8Array.of(0, 255, 92, 34), Uint8Array.of(1)],
    publicKey: Uint8Array.of(0, 1, 2, 255),
    issuedAt: new Date("2026-01-01T00:00:00Z"),
    expiresAt: new Date("2026-01-02T00:00:00.123Z"),
    tainted: false,
    upstreamAuthorityId: "",
    ...fields,
  };
}

/** Opens a store the way a server does, with a log that the test can read. */
export async function openTestStore(config: DataStoreConfig, options: Partial<StoreOptions> = {}): Promise<SqlStore> {
  return openStore(config, { log: new RecordingLog(), clock: systemClock, ...options });
}

export function postgresConfig(connectionString: string): DataStoreConfig {
  return { kind: "postgres", connectionString, disableMigration: false };
}

/** Back to an empty store. */
export async function emptyStore(store: SqlStore): Promise<void> {
  await store.session.write((db) =>
    sql`
      with a as (delete from entries), b as (delete from attested_nodes), c as (delete from bundles),
        d as (delete from join_tokens), e as (delete from federation_relationships), f as (delete from authorities),
        g as (delete from bundle_links)
      select 1`.execute(db),
  );
}
