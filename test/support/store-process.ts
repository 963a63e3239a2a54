/**
 * A server's store in a process of its own, to be killed or to compete with others. The argument is a `StoreTask`; each
 * line of output is one report. Ends when standard input ends.
 */
import { setTimeout as delay } from "node:timers/promises";
import { sql } from "kysely";
import { runJanitor } from "../../server/janitor.ts";
import { type DataStoreConfig, openStore, type SqlStore } from "../../server/store/database.ts";
import type { Queries } from "../../server/store/session.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { isFault } from "../../src/runtime/fault.ts";
import type { LogFields } from "../../src/runtime/log.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { RecordingLog } from "./recording-log.ts";
import { draftOf, idOf, selectorsOf } from "./store-data.ts";

export type StoreTask =
  /** Reports `open`, and holds the store. */
  | { readonly task: "hold"; readonly config: DataStoreConfig }
  /** Reports `token <name>` and `alias <name>` for all there is, `open`, then `ack <name>` for each write of both. */
  | { readonly task: "write"; readonly config: DataStoreConfig; readonly prefix: string }
  /** Changes entries in many transactions at once for a while, then reports `done <committed> <rolled back>`. */
  | {
      readonly task: "churn";
      readonly config: DataStoreConfig;
      readonly prefix: string;
      readonly writers: number;
      readonly durationMs: number;
    }
  /** Runs the janitor; reports `open`, then `pruned <entry id>` for each entry that this process removed. */
  | { readonly task: "janitor"; readonly config: DataStoreConfig; readonly roundMs: number };

const EXPIRES = new Date("2030-01-01T00:00:00Z");
const WRITES_AT_ONCE = 4;
const ENTRIES_PER_PROCESS = 1000;

function report(line: string): void {
  process.stdout.write(`${line}\n`);
}

async function write(store: SqlStore, prefix: string): Promise<void> {
  const stored = await store.session.read((db) => db.selectFrom("join_tokens").select("token").execute());
  for (const { token } of stored) report(`token ${token}`);
  for (const { hint } of (await store.entries.list({})).items) report(`alias ${hint}`);
  report("open");
  let count = 0;
  const loop = async (): Promise<never> => {
    for (;;) {
      count += 1;
      const name = `${prefix}-${count}`;
      const alias = draftOf(name, { hint: name, selectors: selectorsOf(`x:${name}`) });
      await store.tokens.create({ token: name, expiresAt: EXPIRES }, alias);
      report(`ack ${name}`);
    }
  };
  await Promise.all(Array.from({ length: WRITES_AT_ONCE }, loop));
}

/** One to three rows in a transaction; a tenth deletes, a tenth rolls back; some are slow to commit. */
async function churnOnce(store: SqlStore, prefix: string): Promise<boolean> {
  const rollback = Math.random() < 0.1;
  const pause = Math.random() < 0.005 ? 600 : Math.random() < 0.3 ? Math.random() * 20 : 0;
  const work = store.session.transaction(async (db) => {
    const names = Array.from({ length: 1 + Math.floor(Math.random() * 3) }, () =>
      Math.floor(Math.random() * ENTRIES_PER_PROCESS),
    );
    for (const name of names.sort((a, b) => a - b)) await churnRow(db, `${prefix}-${name}`);
    if (pause > 0) await delay(pause);
    if (rollback) throw new RolledBack();
  });
  return work.then(
    () => true,
    (error: unknown) => {
      if (error instanceof Error && error.cause instanceof RolledBack) return false;
      // Two writers insert the same row at once: PostgreSQL may meet the other unique index first, and rolls one back.
      if (isFault(error, "already_exists")) return false;
      throw error;
    },
  );
}

class RolledBack extends Error {}

async function churnRow(db: Queries, id: string): Promise<void> {
  if (Math.random() < 0.1) await sql`delete from entries where id = ${id}`.execute(db);
  else {
    await sql`
      insert into entries
      select r.* from jsonb_populate_record(null::entries, ${JSON.stringify(rowOf(id))}::jsonb || jsonb_build_object(
        'seq', nextval(pg_get_serial_sequence('entries', 'seq')), 'similar_hash', '\\x' || encode(convert_to(${id}, 'utf8'), 'hex')
      )) r
      on conflict (id) do update set revision_number = entries.revision_number + 1, hint = excluded.hint`.execute(db);
  }
}

function rowOf(id: string): Record<string, unknown> {
  return {
    id,
    spiffe_id: idOf(`/workload/${id}`),
    parent_id: idOf("/spire/agent/one"),
    selectors: [`x:${id}`],
    x509_svid_ttl: 0,
    jwt_svid_ttl: 0,
    federates_with: [],
    admin: false,
    downstream: false,
    store_svid: false,
    expires_at: 0,
    dns_names: [],
    hint: String(Math.random()),
    disable_x509_svid_prefetch: false,
    jwt_svid_include_jti: false,
    revision_number: 0,
    created_at: 0,
  };
}

async function churn(store: SqlStore, task: StoreTask & { task: "churn" }): Promise<void> {
  const end = performance.now() + task.durationMs;
  let committed = 0;
  let rolledBack = 0;
  const writer = async (): Promise<void> => {
    while (performance.now() < end) {
      if (await churnOnce(store, task.prefix)) committed += 1;
      else rolledBack += 1;
    }
  };
  const slow = store.session.transaction(async (db) => {
    await churnRow(db, `${task.prefix}-slow`);
    await delay(600);
  });
  await Promise.all([slow, ...Array.from({ length: task.writers - 1 }, writer)]);
  report(`done ${committed} ${rolledBack}`);
}

class PrunedEntries extends RecordingLog {
  override info = (message: string, fields?: LogFields): void => {
    if (message === "Pruned an expired registration") report(`pruned ${fields?.["entry_id"]}`);
  };
}

async function janitor(store: SqlStore, roundMs: number): Promise<void> {
  const log = new PrunedEntries();
  const trustDomain = parseTrustDomain("a.test");
  report("open");
  await runJanitor({ store, trustDomain, roundMs, clock: systemClock, log }, new AbortController().signal);
}

const task = JSON.parse(process.argv[2] ?? "") as StoreTask;
process.stdin.on("end", () => process.exit(0)).resume();
const store = await openStore(task.config, { log: new RecordingLog(), clock: systemClock });
if (task.task === "write") await write(store, task.prefix);
else if (task.task === "churn") await churn(store, task);
else if (task.task === "janitor") await janitor(store, task.roundMs);
else report("open");
