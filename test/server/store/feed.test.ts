import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "kysely";
import { describe, expect, test } from "vitest";
import type { DataStoreConfig, SqlStore, StoreOptions } from "../../../server/store/database.ts";
import { type Clock, systemClock } from "../../../src/runtime/clock.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { eventually } from "../../support/eventually.ts";
import { createDatabase, withoutPostgres } from "../../support/postgres.ts";
import { StoreChild } from "../../support/store-child.ts";
import { draftOf, openTestStore, postgresConfig } from "../../support/store-data.ts";

const NEVER_MS = 3_600_000;

/** A replica of the entries that follows the feed, as a server's directory does. */
class Reader implements AsyncDisposable {
  readonly entries = new Map<string, Entry>();
  reloads = 0;
  readonly #store: SqlStore;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  #cursor = "";

  constructor(store: SqlStore) {
    this.#store = store;
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    for await (const _ of this.#store.changes.wake(this.#stop.signal)) await this.#step();
  }

  async #step(): Promise<void> {
    const changes = await this.#store.changes.since(this.#cursor);
    if (typeof changes === "string") return this.#reload();
    for (const [id, entry] of changes.entries) {
      if (entry === undefined) this.entries.delete(id);
      else this.entries.set(id, entry);
    }
    this.#cursor = changes.cursor;
  }

  async #reload(): Promise<void> {
    this.reloads += 1;
    this.#cursor = await this.#store.changes.load(async (snapshot) => {
      this.entries.clear();
      for await (const entries of snapshot.entries) for (const entry of entries) this.entries.set(entry.id, entry);
      return snapshot.cursor;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
    await this.#store[Symbol.asyncDispose]();
  }
}

async function openReader(config: DataStoreConfig, options: Partial<StoreOptions> = {}): Promise<Reader> {
  const reader = new Reader(await openTestStore(config, options));
  await eventually("the reader has loaded", () => reader.reloads === 1);
  return reader;
}

async function tableOf(store: SqlStore): Promise<ReadonlyMap<string, Entry>> {
  return new Map((await store.entries.list({})).items.map((entry) => [entry.id, entry]));
}

/** A feed that skips a change stays wrong, so it is given time to be late and none to be wrong. */
async function expectEqual(reader: Reader, table: ReadonlyMap<string, Entry>): Promise<void> {
  await eventually("the reader equals the table", () => {
    expect(reader.entries).toEqual(table);
    return true;
  });
  expect(reader.reloads).toBe(1);
}

describe.skipIf(withoutPostgres)("the change feed on PostgreSQL", () => {
  test.each([1, 2, 3])(
    "12 writers with rollbacks and slow transactions: 3 readers equal the table, run %i",
    async () => {
      await using database = await createDatabase();
      const config = { ...postgresConfig(database.url), maxOpenConns: 8 } as DataStoreConfig;
      await using one = await openReader(config);
      await using two = await openReader(config);
      await using three = await openReader(config);
      const churn = { task: "churn", config, writers: 6, durationMs: 4000 } as const;
      await using first = new StoreChild({ ...churn, prefix: "p" });
      await using second = new StoreChild({ ...churn, prefix: "q" });
      for (const child of [first, second]) {
        await child.until("done", () => child.all("done").length > 0);
        const [committed = 0, rolledBack = 0] = child.all("done")[0]?.split(" ").map(Number) ?? [];
        expect(committed).toBeGreaterThan(50);
        expect(rolledBack).toBeGreaterThan(0);
      }
      await using store = await openTestStore(config);
      const table = await tableOf(store);
      expect(table.size).toBeGreaterThan(50);
      for (const reader of [one, two, three]) await expectEqual(reader, table);
    },
  );

  test("a commit on one server reaches another by a notification: without any poll, every entry arrives", async () => {
    await using database = await createDatabase();
    const sleep: Clock["sleep"] = (ms, signal) => systemClock.sleep(ms < 1000 ? ms : NEVER_MS, signal);
    await using reader = await openReader(postgresConfig(database.url), { clock: { ...systemClock, sleep } });
    await using writer = await openTestStore(postgresConfig(database.url));
    await eventually("the reader listens", async () => {
      const { rows } = await writer.session.read((db) =>
        sql`select 1 from pg_stat_activity where datname = current_database() and query ilike 'listen%'`.execute(db),
      );
      return rows.length === 1;
    });
    for (let round = 0; round < 20; round += 1) {
      const { entry } = await writer.entries.create(draftOf(`n${round}`));
      await eventually("the entry arrives", () => reader.entries.has(entry.id));
    }
  });
});

test("the change feed on the embedded database follows many writers", async () => {
  const directory = await mkdtemp(join(tmpdir(), "steeple-feed-"));
  try {
    const store = await openTestStore({ kind: "embedded", directory });
    await using reader = new Reader(store);
    await eventually("the reader has loaded", () => reader.reloads === 1);
    const write = async (index: number): Promise<void> => {
      const { entry } = await store.entries.create(draftOf(`n${index}`));
      if (index % 3 === 0) await store.entries.update(entry.id, (now) => ({ ...now, hint: "changed" }));
      if (index % 5 === 0) await store.entries.delete(entry.id);
    };
    await Promise.all(Array.from({ length: 200 }, (_, index) => write(index)));
    const table = await tableOf(store);
    expect(table.size).toBe(160);
    await expectEqual(reader, table);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});
