import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "kysely";
import { describe, expect, test } from "vitest";
import type { DataStoreConfig } from "../../../server/store/database.ts";
import { SCHEMA_VERSION } from "../../../server/store/migrations.ts";
import { SCHEMA_V1 } from "../../../server/store/schema-v1.ts";
import { SCHEMA_V2 } from "../../../server/store/schema-v2.ts";
import type { Store } from "../../../server/store/store.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { administer, createDatabase, withoutPostgres } from "../../support/postgres.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { draftOf, idOf, nodeOf, openTestStore, postgresConfig } from "../../support/store-data.ts";

/** As another release would leave the schema. */
async function setSchema(config: DataStoreConfig, version: number, readableFrom: number): Promise<void> {
  await using store = await openTestStore(config);
  await store.session.write((db) =>
    sql`update schema_meta set version = ${version}, readable_from = ${readableFrom}`.execute(db),
  );
}

async function expectNewerRefused(config: DataStoreConfig): Promise<void> {
  await setSchema(config, 99, 98);
  const fault = await faultFrom(openTestStore(config));
  expect(fault).toMatchObject(refusal("precondition", "schema-newer"));
  expect(fault.message).toBe(
    `the datastore has schema version 99, and this program knows versions up to ${SCHEMA_VERSION}`,
  );
}

const EARLIER_NODE = `
insert into attested_nodes (spiffe_id, attestation_type, serial_number, expires_at, new_serial_number, can_reattest, agent_version, selectors, superseded)
values ('spiffe://a.test/spire/agent/earlier', 'x509pop', '7', '2030-01-01', '', true, '', '{a:1}', '{6}')`;

/** What an earlier release left is there and can be used as if this one had made it. */
async function expectTakenOver(store: Store): Promise<void> {
  const id = idOf("/spire/agent/earlier");
  const earlier = nodeOf("earlier", { attestationType: "x509pop", serialNumber: "7", canReattest: true });
  expect(await store.nodes.find(id)).toMatchObject({ ...earlier, selectors: [{ type: "a", value: "1" }] });
  expect(await store.nodes.find(id)).toMatchObject({ superseded: ["6"], quarantine: undefined });
  const quarantine = { since: new Date("2029-01-01T00:00:00Z"), reason: "later" };
  expect(await store.nodes.quarantine(id, quarantine)).toMatchObject({ quarantine });
  expect(await store.links.list()).toEqual([]);
}

describe.skipIf(withoutPostgres)("migration on PostgreSQL", () => {
  test("a database of an earlier release is taken over, with its nodes", async () => {
    await using database = await createDatabase();
    const meta =
      "create table schema_meta (only_row boolean primary key default true, version integer not null, readable_from integer not null)";
    const steps = [meta, SCHEMA_V1, SCHEMA_V2, "insert into schema_meta values (true, 2, 1)", EARLIER_NODE];
    for (const step of steps) await administer(database.url, step);
    await using store = await openTestStore(postgresConfig(database.url));
    await expectTakenOver(store);
  });

  test("of five servers that start at once on an empty database, one migrates and all work", async () => {
    await using database = await createDatabase();
    const log = new RecordingLog();
    const stores = await Promise.all(
      Array.from({ length: 5 }, () => openTestStore(postgresConfig(database.url), { log })),
    );
    expect(log.lines.filter(({ message }) => message === "Migrating the datastore")).toHaveLength(1);
    await Promise.all(stores.map((store, index) => store.entries.create(draftOf(`n${index}`))));
    for (const store of stores) {
      expect(await store.entries.count({})).toBe(5);
      await store[Symbol.asyncDispose]();
    }
  });

  test("a newer schema is refused, naming both versions", async () => {
    await using database = await createDatabase();
    await expectNewerRefused(postgresConfig(database.url));
  });

  test("programs that know nothing of quarantine must not work on a database that does", async () => {
    await using database = await createDatabase();
    await using store = await openTestStore(postgresConfig(database.url));
    const { rows } = await store.session.read((db) => sql`select readable_from from schema_meta`.execute(db));
    expect(rows).toEqual([{ readable_from: 3 }]);
  });

  test("a newer schema that says it can be read by this release is used", async () => {
    await using database = await createDatabase();
    await setSchema(postgresConfig(database.url), 99, SCHEMA_VERSION);
    await using store = await openTestStore(postgresConfig(database.url));
    await store.entries.create(draftOf("one"));
  });

  test("with migration disabled, a schema that needs it is refused and a current one is used", async () => {
    await using database = await createDatabase();
    const config: DataStoreConfig = { kind: "postgres", connectionString: database.url, disableMigration: true };
    const fault = await faultFrom(openTestStore(config));
    expect(fault).toMatchObject(refusal("precondition", "migration-disabled"));
    await (await openTestStore(postgresConfig(database.url)))[Symbol.asyncDispose]();
    await using store = await openTestStore(config);
    await store.ping();
  });

  test("a migration that fails leaves nothing behind", async () => {
    await using database = await createDatabase();
    await administer(database.url, "create table change_log (in_the_way integer)");
    await expect(openTestStore(postgresConfig(database.url))).rejects.toThrow();
    await administer(database.url, "drop table change_log");
    await using store = await openTestStore(postgresConfig(database.url));
    await store.entries.create(draftOf("one"));
  });

  test("a database with a SPIRE datastore is left alone", async () => {
    await using database = await createDatabase();
    await administer(database.url, "create table registered_entries (id integer)");
    const fault = await faultFrom(openTestStore(postgresConfig(database.url)));
    expect(fault).toMatchObject(refusal("precondition", "foreign-schema"));
    await administer(database.url, "create table schema_meta (nothing_was_made integer)");
  });

  test("a user who may not create tables is told so", async () => {
    await using database = await createDatabase();
    const role = `r${new URL(database.url).pathname.slice(1)}`;
    await administer(database.url, `create role ${role} login; revoke create on schema public from public`);
    const url = new URL(database.url);
    url.username = role;
    const fault = await faultFrom(openTestStore(postgresConfig(url.href)));
    expect(fault).toMatchObject(refusal("precondition", "migration-denied"));
    await administer(database.url, `drop role ${role}`);
  });

  test.each([
    {
      what: "PostgreSQL 12",
      lies: "create function lie.current_setting(text) returns text language sql as $$ select case $1 when 'server_version_num' then '120022' else '12.22' end $$",
      code: "datastore-version",
      message: "PostgreSQL 12.22 is too old",
    },
    {
      what: "a read-only standby",
      lies: "create function lie.pg_is_in_recovery() returns boolean language sql as 'select true'",
      code: "datastore-standby",
      message: "the datastore is a read-only standby",
    },
  ])("$what is refused", async ({ lies, code, message }) => {
    await using database = await createDatabase();
    const name = new URL(database.url).pathname.slice(1);
    await administer(
      database.url,
      `create schema lie; ${lies}; alter database ${name} set search_path = lie, pg_catalog`,
    );
    const fault = await faultFrom(openTestStore(postgresConfig(database.url)));
    expect(fault).toMatchObject(refusal("precondition", code));
    expect(fault.message).toBe(message);
    expect(fault.hint).toBeDefined();
  });

  test("after a restore into another cluster the feed starts again, without the old transaction numbers", async () => {
    await using database = await createDatabase();
    await using before = await openTestStore(postgresConfig(database.url));
    const cursor = await before.changes.load(async (snapshot) => snapshot.cursor);
    await administer(
      database.url,
      "update feed_state set origin = 'another', horizon = '999999999'; insert into change_log (xid, kind, entity) values ('888888888', 'entry', 'x')",
    );
    await using after = await openTestStore(postgresConfig(database.url));
    expect(await before.changes.since(cursor)).toBe("other");
    const fresh = await after.changes.load(async (snapshot) => snapshot.cursor);
    expect(await after.changes.since(fresh)).toMatchObject({ entries: new Map() });
  });
});

test("a folder of an earlier release is taken over, with its nodes", async () => {
  const directory = await mkdtemp(join(tmpdir(), "steeple-schema-"));
  {
    await using store = await openTestStore({ kind: "embedded", directory });
    const back = [
      "alter table attested_nodes drop column quarantined_at, drop column quarantine_reason",
      "drop table leases",
      "drop table bundle_links",
      "update schema_meta set version = 2, readable_from = 1",
      EARLIER_NODE,
    ];
    for (const step of back) await store.session.write((db) => sql.raw(step).execute(db));
  }
  {
    await using store = await openTestStore({ kind: "embedded", directory });
    await expectTakenOver(store);
  }
  await rm(directory, { recursive: true });
});

test("a newer schema is refused by the embedded database", async () => {
  const directory = await mkdtemp(join(tmpdir(), "steeple-schema-"));
  await expectNewerRefused({ kind: "embedded", directory });
  await rm(directory, { recursive: true });
});
