import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Directory } from "../../../server/directory/authorized.ts";
import { Follower } from "../../../server/directory/follow.ts";
import type { ChangeStore, Store } from "../../../server/store/store.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { EntryDigest } from "../../../src/spiffe/entry-digest.ts";
import { parseTrustDomain, type SpiffeId, spiffeId, type TrustDomain } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { makeEntry, messagesOf, openTestStore, type TestStore } from "../ca/support.ts";
import { makeNode } from "./support.ts";

let opened: TestStore;
let store: Store;
let trustDomain: TrustDomain;
let agent: SpiffeId;
let tests = 0;

beforeAll(async () => {
  opened = await openTestStore();
  store = opened.store;
});
afterAll(() => opened[Symbol.asyncDispose]());

beforeEach(() => {
  tests += 1;
  trustDomain = parseTrustDomain(`td-${tests}.test`);
  agent = spiffeId(trustDomain, "/spire/agent/join_token/t");
});

type Feed = Pick<ChangeStore, "load" | "since" | "wake">;

/** The feed of the real store, which a test can cut off and listen to. */
class Line implements Feed {
  away = false;
  lost = false;
  /** Whoever loads gets the entries, and then no more. */
  cut = false;
  loads = 0;
  reads = 0;
  /** Answers that were read stay on the line until it resolves. */
  held: Promise<void> | undefined;

  load: ChangeStore["load"] = async (receive) => {
    this.loads += 1;
    this.#answer();
    if (!this.cut) return store.changes.load(receive);
    return store.changes.load((snapshot) => receive({ ...snapshot, nodes: brokenOff() }));
  };

  since: ChangeStore["since"] = async (cursor) => {
    this.reads += 1;
    this.#answer();
    const changes = await (this.lost ? "reload" : store.changes.since(cursor));
    await this.held;
    return changes;
  };

  wake = (signal: AbortSignal): AsyncIterable<void> => store.changes.wake(signal);

  #answer(): void {
    if (this.away) throw new Fault("unavailable", "the database is away");
  }
}

interface Followed extends AsyncDisposable {
  readonly directory: Directory;
  readonly follower: Follower;
  readonly line: Line;
  readonly log: RecordingLog;
}

async function follow(): Promise<Followed> {
  const directory = new Directory({ trustDomain, clock: systemClock });
  const [line, log] = [new Line(), new RecordingLog()];
  const follower = new Follower({ changes: line, directory, clock: systemClock, log });
  const stop = new AbortController();
  await follower.load(stop.signal);
  const ended = follower.run(stop.signal);
  return {
    directory,
    follower,
    line,
    log,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await ended;
    },
  };
}

function addEntry(path: string, fields: Partial<Entry> = {}): Promise<unknown> {
  return store.entries.create(makeEntry({ id: "", spiffeId: spiffeId(trustDomain, path), parentId: agent, ...fields }));
}

function names(directory: Directory): readonly string[] {
  return directory
    .authorizedEntries(agent)
    .map((entry) => entry.spiffeId.slice(`spiffe://${trustDomain}`.length))
    .sort();
}

describe("the directory", () => {
  test("holds everything after load: entries, nodes, bundles", async () => {
    await addEntry("/a");
    await store.nodes.attest(makeNode({ id: agent, selectors: ["k8s:x"] }));
    await store.bundles.change(trustDomain, () => ({
      x509Authorities: [],
      jwtAuthorities: [],
      witAuthorities: [],
      refreshHint: 7,
    }));
    await using followed = await follow();
    expect(names(followed.directory)).toEqual(["/a"]);
    expect(followed.directory.node(agent)?.selectors).toEqual([{ type: "k8s", value: "x" }]);
    expect(followed.directory.ownBundle.value?.refreshHint).toBe(7);
  });

  test("follows entries, updates, deletions, nodes and bundles", async () => {
    await using followed = await follow();
    const { directory } = followed;
    await addEntry("/a");
    const { entry } = await store.entries.create(
      makeEntry({ id: "", spiffeId: spiffeId(trustDomain, "/b"), parentId: agent }),
    );
    await eventually("both are there", () => names(directory).join() === "/a,/b");
    await store.entries.update(entry.id, (current) => ({ ...current, spiffeId: spiffeId(trustDomain, "/c") }));
    await eventually("the update is there", () => names(directory).join() === "/a,/c");
    await store.entries.delete(entry.id);
    await eventually("the deletion is there", () => names(directory).join() === "/a");
    await store.nodes.attest(makeNode({ id: agent }));
    await eventually("the node is there", () => directory.node(agent));
    await store.nodes.ban(agent);
    await eventually("the ban is there", () => names(directory).length === 0);
    const bundle = { x509Authorities: [], jwtAuthorities: [], witAuthorities: [], refreshHint: 9 };
    await store.bundles.change(trustDomain, () => bundle);
    await eventually("the bundle is there", () => directory.ownBundle.value?.refreshHint === 9);
  });

  test("caughtUp: whatever was committed before the call is there afterwards, for many who ask at once", async () => {
    await using followed = await follow();
    await Promise.all(
      Array.from({ length: 40 }, async (_, n) => {
        await addEntry(`/w${n}`);
        await followed.follower.caughtUp();
        expect(names(followed.directory)).toContain(`/w${n}`);
      }),
    );
    expect(names(followed.directory)).toHaveLength(40);
  });

  test("caughtUp: an answer that was read before the commit does not count", async () => {
    const directory = new Directory({ trustDomain, clock: systemClock });
    const [line, log] = [new Line(), new RecordingLog()];
    const follower = new Follower({ changes: line, directory, clock: systemClock, log });
    await follower.load(new AbortController().signal);
    const { promise, resolve } = Promise.withResolvers<void>();
    line.held = promise;
    const early = follower.caughtUp();
    await store.bundles.list({});
    await addEntry("/late");
    const late = [follower.caughtUp(), follower.caughtUp()];
    resolve();
    await early;
    expect(names(directory)).toEqual([]);
    await Promise.all(late);
    expect([names(directory), line.reads]).toEqual([["/late"], 2]);
  });

  test("questions about authorized entries, agents and bundles read no database", async () => {
    await addEntry("/a");
    await store.nodes.attest(makeNode({ id: agent }));
    const directory = new Directory({ trustDomain, clock: systemClock });
    const line = new Line();
    const follower = new Follower({
      changes: line,
      directory,
      clock: systemClock,
      log: new RecordingLog(),
    });
    await follower.load(new AbortController().signal);
    const before = [line.loads, line.reads];
    line.away = true;
    for (let n = 0; n < 1000; n += 1) {
      expect(names(directory)).toEqual(["/a"]);
      expect(directory.node(agent)?.id).toBe(agent);
      directory.bundle(trustDomain);
    }
    expect([line.loads, line.reads]).toEqual(before);
  });

  test("a database that goes away loses nothing: what is held is served, and caught up with later", async () => {
    await addEntry("/a");
    await using followed = await follow();
    const { directory, line, log, follower } = followed;
    line.away = true;
    await addEntry("/b");
    await eventually("the failure is logged", () => messagesOf(log, "warn").length === 1);
    expect(await faultFrom(follower.caughtUp())).toMatchObject({ kind: "unavailable" });
    expect(names(directory)).toEqual(["/a"]);
    const reads = line.reads;
    await eventually("it is tried again", () => line.reads > reads);
    expect(messagesOf(log, "warn")).toHaveLength(1);
    line.away = false;
    await eventually("the rest is there", () => names(directory).join() === "/a,/b");
    expect(messagesOf(log, "info")).toEqual(["Reading changes from the datastore again"]);
  });

  test("a feed that no longer reaches back is answered by loading everything, in one swap", async () => {
    const { entry } = await store.entries.create(
      makeEntry({ id: "", spiffeId: spiffeId(trustDomain, "/gone"), parentId: agent }),
    );
    await addEntry("/a");
    await using followed = await follow();
    const { directory, line } = followed;
    line.away = true;
    await store.entries.delete(entry.id);
    await addEntry("/b");
    line.lost = true;
    line.away = false;
    await eventually("all is right again", () => names(directory).join() === "/a,/b");
    expect(line.loads).toBeGreaterThan(1);
    expect(directory.entry(entry.id)).toBeUndefined();
  });

  test("a load that breaks off leaves what was held, and the next one is whole", async () => {
    await addEntry("/a");
    await using followed = await follow();
    const { directory, line, follower } = followed;
    await addEntry("/b");
    await follower.caughtUp();
    line.lost = true;
    line.cut = true;
    await addEntry("/c");
    expect(await faultFrom(follower.caughtUp())).toMatchObject({ kind: "unavailable" });
    expect([names(directory), directory.counts.entries]).toEqual([["/a", "/b"], 2]);
    line.cut = false;
    await follower.caughtUp();
    expect([names(directory), directory.counts.entries]).toEqual([["/a", "/b", "/c"], 3]);
  });

  test("T-C1 thousands of entries that change in one transaction are seen at once, and the digest is the database's", async () => {
    await using followed = await follow();
    const { directory, follower } = followed;
    const drafts = Array.from({ length: 4000 }, (_, n) =>
      makeEntry({ id: "", spiffeId: spiffeId(trustDomain, `/w/${n}`), parentId: agent }),
    );
    const ids: string[] = [];
    for (const created of await store.entries.createMany(drafts)) if ("entry" in created) ids.push(created.entry.id);
    await follower.caughtUp();
    const old = new EntryDigest(directory.authorizedEntries(agent));
    expect(directory.counts.entries).toBe(4000);
    const gone = store.entries.deleteMany(ids.slice(1000)).then(() => follower.caughtUp());
    const sizes = new Set<number>();
    let isOver = false;
    for (const over = gone.then(() => (isOver = true)); !isOver; await Promise.race([over, turn()])) {
      const seen = directory.authorizedEntries(agent);
      sizes.add(seen.length);
      expect(directory.counts.entries).toBe(seen.length);
      if (seen.length === 4000) expect(new EntryDigest(seen).equals(old.bytes())).toBe(true);
    }
    await gone;
    sizes.add(directory.authorizedEntries(agent).length);
    expect([...sizes]).toEqual([4000, 1000]);
    const left = (await store.entries.list({ parentId: agent })).items;
    expect(new EntryDigest(directory.authorizedEntries(agent)).equals(new EntryDigest(left).bytes())).toBe(true);
  });

  test("a follower that is stopped while it takes a large change in ends with all of it", async () => {
    const directory = new Directory({ trustDomain, clock: systemClock });
    const [line, log] = [new Line(), new RecordingLog()];
    const follower = new Follower({ changes: line, directory, clock: systemClock, log });
    const stop = new AbortController();
    await follower.load(stop.signal);
    const drafts = Array.from({ length: 3000 }, (_, n) =>
      makeEntry({ id: "", spiffeId: spiffeId(trustDomain, `/w/${n}`), parentId: agent }),
    );
    await store.entries.createMany(drafts);
    const { promise, resolve } = Promise.withResolvers<void>();
    line.held = promise;
    const running = follower.run(stop.signal);
    await eventually("the change is read", () => line.reads > 0);
    resolve();
    stop.abort();
    await running;
    expect(directory.authorizedEntries(agent)).toHaveLength(3000);
  });

  test("a start without the database is refused", async () => {
    const directory = new Directory({ trustDomain, clock: systemClock });
    const line = new Line();
    line.away = true;
    const follower = new Follower({
      changes: line,
      directory,
      clock: systemClock,
      log: new RecordingLog(),
    });
    expect(await faultFrom(follower.load(new AbortController().signal))).toMatchObject({ kind: "unavailable" });
  });

  test("loading many rows leaves the event loop its turns", async () => {
    const parentId = agent;
    const rows = Array.from({ length: 30_000 }, (_, n) =>
      makeEntry({ id: `row-${n}`, spiffeId: spiffeId(trustDomain, `/r${n}`), parentId }),
    );
    const directory = new Directory({ trustDomain, clock: systemClock });
    const changes: Feed = {
      load: (receive) => receive({ cursor: "c", entries: from(rows), nodes: from([]), bundles: from([]) }),
      since: (cursor) => store.changes.since(cursor),
      wake: (signal) => store.changes.wake(signal),
    };
    const follower = new Follower({ changes, directory, clock: systemClock, log: new RecordingLog() });
    let turns = 0;
    const timer = setInterval(() => {
      turns += 1;
    }, 1);
    await follower.load(new AbortController().signal);
    clearInterval(timer);
    expect(directory.counts.entries).toBe(30_000);
    expect(turns).toBeGreaterThan(5);
  });
});

// biome-ignore lint/correctness/useYield: it never gets so far
async function* brokenOff(): AsyncGenerator<never> {
  throw new Fault("unavailable", "the connection is gone");
}

const turn = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve));

/** Ready at once, so that nothing but the reader itself gives way. */
async function* from<T>(rows: readonly T[]): AsyncGenerator<readonly T[]> {
  for (let at = 0; at < rows.length; at += 1000) yield rows.slice(at, at + 1000);
}

test("whoever asks is given the same object, as long as the entry does not change", async () => {
  await addEntry("/a");
  await using followed = await follow();
  const { directory, follower } = followed;
  const [one] = directory.authorizedEntries(agent);
  await addEntry("/b");
  await follower.caughtUp();
  expect(directory.authorizedEntries(agent)).toHaveLength(2);
  expect(directory.authorizedEntries(agent)).toContain(one);
  expect(directory.entry(one?.id ?? "")).toBe(one);
});
