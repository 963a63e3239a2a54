import { inspect } from "node:util";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { SqlStore } from "../../../server/store/database.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import {
  type Cluster,
  createDatabase,
  findPostgres,
  startCluster,
  type TestDatabase,
  withoutPostgres,
} from "../../support/postgres.ts";
import { withoutNotifications } from "../../support/quiet-postgres.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { draftOf, nodeOf, openTestStore, postgresConfig } from "../../support/store-data.ts";

/** Follows the feed in the background, whatever happens to the database. */
function follow(store: SqlStore): { readonly ids: Set<string>; readonly reloads: () => number } & AsyncDisposable {
  const ids = new Set<string>();
  const stop = new AbortController();
  let reloads = 0;
  let cursor = "";
  const step = async (): Promise<void> => {
    const changes = await store.changes.since(cursor);
    if (typeof changes !== "string") {
      for (const id of changes.entries.keys()) ids.add(id);
      cursor = changes.cursor;
      return;
    }
    reloads += 1;
    cursor = await store.changes.load(async (snapshot) => {
      for await (const entries of snapshot.entries) for (const { id } of entries) ids.add(id);
      return snapshot.cursor;
    });
  };
  const running = (async () => {
    for await (const _ of store.changes.wake(stop.signal)) await step().catch(() => undefined);
  })();
  return {
    ids,
    reloads: () => reloads,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
    },
  };
}

describe.skipIf(withoutPostgres)("while PostgreSQL is away", () => {
  let cluster: Cluster;
  let database: TestDatabase;

  beforeAll(async () => {
    cluster = await startCluster((await findPostgres()) ?? "");
    database = await createDatabase(cluster.url);
  });
  afterAll(() => cluster?.[Symbol.asyncDispose]());

  test("it is restarted: the feed goes on by itself, without a reload, and writes work again", async () => {
    await using store = await openTestStore(postgresConfig(database.url));
    await using other = await openTestStore(postgresConfig(database.url));
    await using feed = follow(store);
    const before = (await other.entries.create(draftOf("before"))).entry.id;
    await eventually("the feed runs", () => feed.ids.has(before));
    const reloads = feed.reloads();
    await cluster.stop();
    await cluster.start();
    const after = await eventually("writes work", () =>
      other.entries.create(draftOf("after")).then(({ entry }) => entry.id),
    );
    await eventually("the feed goes on", () => feed.ids.has(after));
    expect(feed.reloads()).toBe(reloads);
  });

  test("it is stopped: reads and writes fail at once as unavailable, and nothing of the driver is told", async () => {
    await using store = await openTestStore(postgresConfig(database.url));
    await cluster.stop();
    try {
      const begun = performance.now();
      for (const work of [
        () => store.entries.create(draftOf("stopped")),
        () => store.entries.find("x"),
        () => store.entries.update("x", (now) => now),
        () => store.nodes.attest(nodeOf("stopped")),
        () => store.tokens.consume("x", "k"),
        () => store.changes.since("x/1:1:"),
        () => store.ping(),
      ]) {
        const fault = await faultFrom(work());
        expect(fault).toMatchObject(refusal("unavailable", "datastore-unavailable"));
        expect(fault.hint).toContain("database");
        expect(fault.message).not.toMatch(/127\.0\.0\.1|postgres|ECONN/i);
      }
      expect(performance.now() - begun).toBeLessThan(5000);
    } finally {
      await cluster.start();
    }
    await eventually("it works again", () => store.ping().then(() => true));
    expect((await store.entries.list({ spiffeId: draftOf("stopped").spiffeId })).items).toEqual([]);
  });

  test("it hangs: statements give up as unavailable, also in a transaction, and it works again afterwards", async () => {
    await using store = await openTestStore(postgresConfig(database.url));
    const { entry } = await store.entries.create(draftOf("hangs"));
    await Promise.all(Array.from({ length: 6 }, () => store.ping()));
    await cluster.freeze(true);
    try {
      const begun = performance.now();
      const faults = await Promise.all([
        faultFrom(store.entries.find(entry.id)),
        faultFrom(store.entries.update(entry.id, (now) => now)),
        faultFrom(store.tokens.consume("x", "k")),
      ]);
      for (const fault of faults) expect(fault).toMatchObject(refusal("unavailable", "datastore-unavailable"));
      expect(performance.now() - begun).toBeLessThan(20_000);
    } finally {
      await cluster.freeze(false);
    }
    await eventually("it works again", () => store.entries.update(entry.id, (now) => ({ ...now, hint: "back" })));
  });

  test("somebody holds a lock: the write gives up as unavailable", async () => {
    await using store = await openTestStore(postgresConfig(database.url));
    const { entry } = await store.entries.create(draftOf("locked"));
    const fault = await store.session.transaction(async (db) => {
      await db.selectFrom("entries").select("id").where("id", "=", entry.id).forUpdate().execute();
      return faultFrom(store.entries.update(entry.id, (now) => now));
    });
    expect(fault).toMatchObject(refusal("unavailable", "datastore-unavailable"));
  });

  test("a server that starts first waits for it, and says so", async () => {
    const log = new RecordingLog();
    await cluster.stop();
    const opening = openTestStore(postgresConfig(database.url), { log });
    await eventually("it waits", () => log.lines.some(({ message }) => message === "Waiting for the datastore"));
    await cluster.start();
    await using store = await opening;
    await store.ping();
  });

  test("T-J8 a server gives up after a minute, naming the address and the reason, and never the password", async () => {
    const log = new RecordingLog();
    const clock = new FakeClock();
    const closed = "postgres://u:canary@127.0.0.1:1/d";
    let fault: Awaited<ReturnType<typeof faultFrom>> | undefined;
    void faultFrom(openTestStore(postgresConfig(closed), { log, clock })).then((thrown) => {
      fault = thrown;
    });
    const thrown = await eventually("it gives up", async () => {
      await clock.advance(5000);
      return fault;
    });
    expect(thrown).toMatchObject(refusal("unavailable", "datastore-unavailable"));
    expect(thrown.message).toBe("cannot connect to PostgreSQL at 127.0.0.1:1: connect ECONNREFUSED 127.0.0.1:1");
    expect(clock.monotonic()).toBeGreaterThanOrEqual(45_000);
    expect(inspect([thrown, log.lines], { depth: 10 })).not.toContain("canary");
  });

  test.each([
    {
      what: "a user",
      url: (it: URL) => Object.assign(it, { username: "nobody_here" }),
      reason: 'role "nobody_here" does not exist',
    },
    {
      what: "a database",
      url: (it: URL) => Object.assign(it, { pathname: "/not_here" }),
      reason: 'database "not_here" does not exist',
    },
  ])("$what that does not exist is said at once, without waiting", async ({ url, reason }) => {
    const fault = await faultFrom(
      openTestStore(postgresConfig(url(new URL(database.url)).href), { clock: new FakeClock() }),
    );
    expect(fault).toMatchObject(refusal("unavailable", "datastore-unavailable"));
    expect(fault.message).toContain(reason);
  });

  test("through a pooler that loses notifications the feed is polled, and the log says so", async () => {
    using pooler = await withoutNotifications(database.url);
    const log = new RecordingLog();
    await using store = await openTestStore(postgresConfig(pooler.url), { log });
    await using other = await openTestStore(postgresConfig(database.url));
    await using feed = follow(store);
    await eventually("it notices", () =>
      log.lines.some(({ message }) => /does not deliver notifications/.test(message)),
    );
    const { entry } = await other.entries.create(draftOf("polled"));
    await eventually("the entry arrives", () => feed.ids.has(entry.id));
  });

  test("libpq's keyword form reaches it over the Unix socket, with limits on the pool", async () => {
    const name = new URL(database.url).pathname.slice(1);
    const connectionString = `host=${cluster.socketDirectory} port=${cluster.port} user=postgres dbname=${name}`;
    const limits = { maxOpenConns: 3, maxIdleConns: 1, connMaxLifetimeMs: 60_000 };
    await using store = await openTestStore({ ...postgresConfig(connectionString), ...limits } as never);
    await Promise.all(Array.from({ length: 20 }, () => store.ping()));
    const sessions = async (): Promise<number> => {
      const { rows } = await store.session.read((db) =>
        sql<{ count: string }>`select count(*) from pg_stat_activity where datname = current_database()`.execute(db),
      );
      return Number(rows[0]?.count);
    };
    await eventually("idle connections beyond the limit are closed", async () => (await sessions()) === 1);
  });
});
