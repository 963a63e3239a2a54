import type { ClientBase } from "pg";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { stateOf } from "./faults.ts";
import { SCHEMA_V1 } from "./schema-v1.ts";
import { SCHEMA_V2 } from "./schema-v2.ts";
import { SCHEMA_V3 } from "./schema-v3.ts";
import { SCHEMA_V4 } from "./schema-v4.ts";
import { SCHEMA_V5 } from "./schema-v5.ts";
import { SCHEMA_NEWER } from "./store.ts";

interface Migration {
  /**
   * Lowest schema version whose programs may still work on it; lets servers of two releases share a database. Programs of
   * lower ones do not start on it, and end when they find it below them (`checkReadable`).
   */
  readonly readableFrom: number;
  readonly sql: string;
}

/** Forward only. The schema at version N is the first N of these. A released one never changes. */
const MIGRATIONS: readonly Migration[] = [
  { readableFrom: 1, sql: SCHEMA_V1 },
  { readableFrom: 1, sql: SCHEMA_V2 },
  // Programs of before would serve agents that are in quarantine.
  { readableFrom: 3, sql: SCHEMA_V3 },
  { readableFrom: 1, sql: SCHEMA_V4 },
  { readableFrom: 1, sql: SCHEMA_V5 },
];

/** The schema that this program reads and writes. */
export const SCHEMA_VERSION = MIGRATIONS.length;

/** "steeple" as a number: one server migrates at a time. */
const MIGRATION_LOCK = "select pg_advisory_xact_lock(32491027304)";
const CREATE_META = `
create table if not exists schema_meta (
  only_row boolean primary key default true check (only_row),
  version integer not null,
  readable_from integer not null
)`;
const FIND_META =
  "select to_regclass('schema_meta') is not null as ours, to_regclass('registered_entries') is not null as spire";
const READ_META = "select version, readable_from from schema_meta";
const WRITE_META = `
insert into schema_meta (version, readable_from) values ($1, $2)
on conflict (only_row) do update set version = excluded.version, readable_from = excluded.readable_from`;
/** Transaction numbers of another cluster mean nothing here: after a restore the feed starts again. */
const SETTLE_FEED = `
with moved as (
  update feed_state set epoch = gen_random_uuid()::text, origin = feed_origin(), horizon = '0'
  where origin <> feed_origin() returning 1
)
delete from change_log where exists (select from moved)`;

export interface MigrationOptions {
  readonly client: ClientBase;
  readonly disableMigration: boolean;
  readonly log: Log;
}

/**
 * Brings the schema to this program's version in one transaction. Safe with several servers starting at once. Throws
 * `precondition` for a newer schema, and for an older one when migration is disabled.
 */
export async function migrate({ client, disableMigration, log }: MigrationOptions): Promise<void> {
  let version = await readVersion(client);
  if (version < SCHEMA_VERSION) {
    if (disableMigration) throw migrationDisabled(version);
    version = await inTransaction(client, () => climb(client, log));
  }
  await client.query(SETTLE_FEED);
}

async function climb(client: ClientBase, log: Log): Promise<number> {
  await client.query(MIGRATION_LOCK);
  // Creating before looking: a name that was not found before the lock is remembered by the session as not there.
  await client.query(CREATE_META);
  const from = await readVersion(client);
  if (from >= SCHEMA_VERSION) return from;
  log.info("Migrating the datastore", { schema_from: from, schema_to: SCHEMA_VERSION });
  for (const { sql } of MIGRATIONS.slice(from)) await client.query(sql);
  const readableFrom = Math.max(...MIGRATIONS.map((migration) => migration.readableFrom));
  await client.query(WRITE_META, [SCHEMA_VERSION, readableFrom]);
  return SCHEMA_VERSION;
}

/** 0 when there is nothing yet. */
async function readVersion(client: ClientBase): Promise<number> {
  const { rows: found } = await client.query<{ ours: boolean; spire: boolean }>(FIND_META);
  if (found[0]?.ours !== true) {
    if (found[0]?.spire === true) throw spireDatabase();
    return 0;
  }
  const { rows } = await client.query<{ version: number; readable_from: number }>(READ_META);
  const meta = rows[0] ?? { version: 0, readable_from: 0 };
  checkReadable(meta);
  return meta.version;
}

/** Throws `precondition` when another release has made of the schema what this program must not work on. */
export function checkReadable(meta: { readonly version: number; readonly readable_from: number }): void {
  if (meta.readable_from > SCHEMA_VERSION) throw newerSchema(meta.version);
}

async function inTransaction<T>(client: ClientBase, work: () => Promise<T>): Promise<T> {
  await client.query("begin");
  try {
    const result = await work();
    await client.query("commit");
    return result;
  } catch (error) {
    await client.query("rollback").catch(() => undefined);
    throw stateOf(error) === "42501" ? notAllowed(error) : error;
  }
}

function newerSchema(version: number): Fault {
  const message = `the datastore has schema version ${version}, and this program knows versions up to ${SCHEMA_VERSION}`;
  return new Fault("precondition", message, {
    code: SCHEMA_NEWER,
    hint: "run the release that wrote it, or a newer one",
  });
}

function migrationDisabled(version: number): Fault {
  const message = `the datastore has schema version ${version}, this program needs ${SCHEMA_VERSION}, and migration is disabled`;
  return new Fault("precondition", message, {
    code: "migration-disabled",
    hint: "start one server without disable_migration",
  });
}

function spireDatabase(): Fault {
  return new Fault("precondition", "the database holds a SPIRE datastore", {
    code: "foreign-schema",
    hint: "create an empty database and name it in connection_string",
  });
}

function notAllowed(cause: unknown): Fault {
  return new Fault("precondition", "the database user may not create tables", {
    code: "migration-denied",
    hint: "make it the owner of the database, or grant it CREATE on the schema",
    cause,
  });
}
