import pg from "pg";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Directory } from "../../../server/directory/authorized.ts";
import { Follower } from "../../../server/directory/follow.ts";
import type { SqlStore } from "../../../server/store/database.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { type Link, openLink, through } from "../../support/link.ts";
import {
  administer,
  type Cluster,
  createDatabase,
  findPostgres,
  startCluster,
  withoutPostgres,
} from "../../support/postgres.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { draftOf, openTestStore, postgresConfig } from "../../support/store-data.ts";

const REPLACED =
  "The datastore is not the one of before, as after a failover or a restore; everything was loaded again";
const AWAY = "Could not read changes from the datastore; serving what is held";
/** Every transaction takes a number, as those of other databases in the cluster do. */
const SPEND_NUMBERS = `do $$ begin for n in 1..500 loop perform pg_current_xact_id(); commit; end loop; end $$`;

/** What a server holds in memory of its database. */
class Holder implements AsyncDisposable {
  readonly log = new RecordingLog();
  readonly directory: Directory;
  readonly follower: Follower;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  constructor(store: SqlStore) {
    const trustDomain = parseTrustDomain("a.test");
    this.directory = new Directory({ trustDomain, clock: systemClock });
    const { changes } = store;
    this.follower = new Follower({
      changes,
      directory: this.directory,
      clock: systemClock,
      log: this.log,
    });
    this.#running = this.follower.load(this.#stop.signal).then(() => this.follower.run(this.#stop.signal));
  }

  replaced = (): readonly unknown[] => this.log.lines.filter(({ message }) => message === REPLACED);

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }
}

async function hasTokens(url: string): Promise<boolean> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query("select token from join_tokens")).rows.length === 2;
  } finally {
    await client.end();
  }
}

describe.skipIf(withoutPostgres)("a database with another history than the one of before", () => {
  let bin: string;
  let cluster: Cluster;
  let link: Link;
  let url: string;
  let store: SqlStore;
  let holder: Holder;
  const holds = (id: string): Promise<unknown> => eventually(`it holds ${id}`, () => holder.directory.entry(id));

  beforeEach(async () => {
    bin = (await findPostgres()) ?? "";
    cluster = await startCluster(bin);
    link = await openLink(cluster.port);
    url = (await createDatabase(cluster.url)).url;
    store = await openTestStore(postgresConfig(through(link, url)));
    await store.entries.create(draftOf("kept", { id: "kept" }));
    holder = new Holder(store);
    await holds("kept");
  });
  afterEach(async () => {
    await holder?.[Symbol.asyncDispose]();
    await store?.[Symbol.asyncDispose]();
    link?.[Symbol.dispose]();
    await cluster?.[Symbol.asyncDispose]();
  });

  test.each([
    { what: "and is at once behind what was seen", spend: false },
    { what: "and has gone on from there, beyond what was seen", spend: true },
  ])(
    "an older copy that is put in its place $what is loaded whole, and the log says what was lost",
    async ({ spend }) => {
      await cluster.stop();
      const restore = await cluster.copy();
      await cluster.start();
      await eventually("writes work", () => store.entries.create(draftOf("lost", { id: "lost" })));
      await store.entries.update("kept", (entry) => ({ ...entry, hint: "newer" }));
      await eventually("it follows", () => holder.directory.entry("kept")?.hint === "newer");
      await holds("lost");
      expect(holder.replaced()).toEqual([]);

      link.cut(true);
      await cluster.stop();
      await restore();
      await cluster.start();
      if (spend) await administer(url, SPEND_NUMBERS);
      await using other = await openTestStore(postgresConfig(url));
      await other.entries.create(draftOf("since", { id: "since" }));
      expect(holder.directory.entry("lost")).toBeDefined();
      link.cut(false);
      await holds("since");
      expect(holder.directory.entry("lost")).toBeUndefined();
      expect(holder.directory.entry("kept")).toMatchObject({ hint: "", revisionNumber: 0 });
      expect(holder.replaced()).toMatchObject([{ level: "warn", fields: { entries_gone: 1, entries_older: 1 } }]);
      expect(holder.follower.replaced).toBe(1);
    },
  );

  test("T-N3 a standby is never read while it is one, and no token is used there; promoted, it is loaded whole", async () => {
    await using standby = await startCluster(bin, { standbyOf: cluster });
    const behind = new URL(url);
    behind.port = String(standby.port);
    await store.tokens.create({ token: "used", expiresAt: new Date("2030-01-01T00:00:00Z") });
    await store.tokens.create({ token: "unused", expiresAt: new Date("2030-01-01T00:00:00Z") });
    await eventually("the standby has the tokens", () => hasTokens(behind.href));
    await administer(standby.url, "select pg_wal_replay_pause()");
    expect(await store.tokens.consume("used", "key")).toBeDefined();
    await store.entries.create(draftOf("newer", { id: "newer" }));
    await holds("newer");

    link.to(standby.port);
    await eventually("it waits", () => holder.log.lines.some(({ message }) => message === AWAY));
    await expect(store.changes.load(async ({ cursor }) => cursor)).rejects.toMatchObject({ code: "datastore-standby" });
    await expect(store.entries.create(draftOf("refused"))).rejects.toMatchObject({ kind: "unavailable" });
    for (const token of ["used", "unused"])
      await expect(store.tokens.consume(token, "other key")).rejects.toMatchObject({ kind: "unavailable" });
    expect(holder.directory.entry("newer")).toBeDefined();
    expect(holder.replaced()).toEqual([]);

    await cluster.stop();
    await administer(standby.url, "select pg_wal_replay_resume()");
    await administer(standby.url, "select pg_promote()");
    await eventually("writes work", () => store.entries.create(draftOf("after", { id: "after" })));
    await holds("after");
    expect(holder.replaced()).toHaveLength(1);
    expect(await store.tokens.consume("used", "other key")).toBeUndefined();
    expect(await store.tokens.consume("unused", "other key")).toBeDefined();
  });
});
