import { describe, expect, test } from "vitest";
import type { CachedEntry } from "../../../agent/cache/entry.ts";
import { syncEntries } from "../../../agent/cache/entry-sync.ts";
import type { SyncAuthorizedEntriesRequest } from "../../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesRequest.ts";
import type { SyncAuthorizedEntriesResponse__Output } from "../../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesResponse.ts";
import type { Entry__Output } from "../../../src/rpc/gen/spire/api/types/Entry.ts";
import { RecordingLog } from "../../support/recording-log.ts";

type Response = SyncAuthorizedEntriesResponse__Output;

/** The server's half of the protocol, for entries in memory and pages of a given size. */
class Peer {
  readonly entries = new Map<string, Entry__Output>();
  readonly requests: SyncAuthorizedEntriesRequest[] = [];
  readonly pageSize: number;

  constructor(pageSize: number, ...entries: readonly Entry__Output[]) {
    this.pageSize = pageSize;
    for (const each of entries) this.entries.set(each.id, each);
  }

  open = async function* (
    this: Peer,
    requests: AsyncIterable<SyncAuthorizedEntriesRequest>,
  ): AsyncGenerator<Response, void, undefined> {
    const incoming = requests[Symbol.asyncIterator]();
    this.requests.push((await incoming.next()).value);
    if (this.entries.size <= this.pageSize) {
      yield response({ entries: [...this.entries.values()] });
      return;
    }
    const revisions = [...this.entries.values()].map(({ id, revision_number, created_at }) => ({
      id,
      revision_number,
      created_at,
    }));
    for (let from = 0; from < revisions.length; from += this.pageSize) {
      yield response({
        entry_revisions: revisions.slice(from, from + this.pageSize),
        more: from + this.pageSize < revisions.length,
      });
    }
    for (let step = await incoming.next(); step.done !== true; step = await incoming.next()) {
      this.requests.push(step.value);
      const found = (step.value.ids ?? []).flatMap((id: string) => this.entries.get(id) ?? []);
      const half = Math.ceil(found.length / 2);
      yield response({ entries: found.slice(0, half), more: true });
      yield response({ entries: found.slice(half) });
    }
  }.bind(this);

  get asked(): readonly (readonly string[])[] {
    return this.requests.slice(1).map(({ ids }) => ids ?? []);
  }
}

function response(parts: Partial<Response>): Response {
  return { entries: [], entry_revisions: [], more: false, ...parts };
}

function wire(id: string, revision = 0, createdAt = 1000): Entry__Output {
  return {
    id,
    spiffe_id: { trust_domain: "home.test", path: `/${id}` },
    parent_id: null,
    selectors: [{ type: "unix", value: "uid:1000" }],
    x509_svid_ttl: 0,
    federates_with: [],
    admin: false,
    downstream: false,
    expires_at: "0",
    dns_names: [],
    revision_number: String(revision),
    store_svid: false,
    jwt_svid_ttl: 0,
    hint: "",
    created_at: String(createdAt),
  };
}

function setUp() {
  const log = new RecordingLog();
  let held: ReadonlyMap<string, CachedEntry> = new Map();
  return {
    log,
    sync: async (peer: Peer) => {
      held = await syncEntries(peer.open, held, log);
      return held;
    },
    malformed: () => log.lines.filter(({ message }) => message.startsWith("Received malformed entry")),
  };
}

const many = ["a", "b", "c", "d", "e"].map((id) => wire(id));

describe("syncing entries", () => {
  test("the first request carries the mask and no ids", async () => {
    const { sync } = setUp();
    const peer = new Peer(10, wire("a"));
    await sync(peer);
    expect(peer.requests).toHaveLength(1);
    expect(peer.requests[0]?.ids).toBeUndefined();
    expect(peer.requests[0]?.output_mask).toMatchObject({ revision_number: true, created_at: true, spiffe_id: true });
    expect(peer.requests[0]?.output_mask).not.toHaveProperty("parent_id");
  });

  test("a short list comes whole, and unchanged entries stay the same objects", async () => {
    const { sync } = setUp();
    const first = await sync(new Peer(10, wire("a"), wire("b")));
    const second = await sync(new Peer(10, wire("a"), wire("b", 1)));
    expect([...second.keys()]).toEqual(["a", "b"]);
    expect(second.get("a")).toBe(first.get("a"));
    expect(second.get("b")).not.toBe(first.get("b"));
    expect(second.get("b")?.revisionNumber).toBe(1);
  });

  test("of a long list only missing and stale entries are asked for, sorted and in pages of the server's size", async () => {
    const { sync } = setUp();
    await sync(new Peer(10, wire("a"), wire("b")));
    const peer = new Peer(2, ...[...many].reverse().map((each) => (each.id === "b" ? wire("b", 7) : each)));
    const entries = await sync(peer);
    expect(peer.asked).toEqual([
      ["b", "c"],
      ["d", "e"],
    ]);
    expect([...entries.keys()].sort()).toEqual(["a", "b", "c", "d", "e"]);
    expect(entries.get("b")?.revisionNumber).toBe(7);
  });

  test("when nothing changed nothing is asked for", async () => {
    const { sync } = setUp();
    const first = await sync(new Peer(2, ...many));
    const again = new Peer(2, ...many);
    const second = await sync(again);
    expect(again.asked).toEqual([]);
    for (const [id, entry] of second) expect(entry).toBe(first.get(id));
  });

  test("an entry made anew under its old id and revision is fetched", async () => {
    const { sync } = setUp();
    await sync(new Peer(2, ...many));
    const peer = new Peer(2, ...many.map((each) => (each.id === "c" ? wire("c", 0, 2000) : each)));
    const entries = await sync(peer);
    expect(peer.asked).toEqual([["c"]]);
    expect(entries.get("c")?.createdAt).toBe(2000);
  });

  test.each([{ pageSize: 10 }, { pageSize: 1 }])(
    "entries the server no longer names are dropped (pages of $pageSize)",
    async ({ pageSize }) => {
      const { sync } = setUp();
      await sync(new Peer(10, ...many));
      const entries = await sync(new Peer(pageSize, wire("a"), wire("b")));
      expect([...entries.keys()].sort()).toEqual(["a", "b"]);
    },
  );

  test("an empty answer clears everything", async () => {
    const { sync } = setUp();
    await sync(new Peer(10, ...many));
    expect((await sync(new Peer(10))).size).toBe(0);
  });

  test.each([{ pageSize: 10 }, { pageSize: 1 }])(
    "a malformed entry is skipped with a warning (pages of $pageSize)",
    async ({ pageSize }) => {
      const { sync, malformed } = setUp();
      const entries = await sync(new Peer(pageSize, wire("a"), { ...wire("b"), selectors: [] }, wire("c")));
      expect([...entries.keys()].sort()).toEqual(["a", "c"]);
      expect(malformed().map(({ level, fields }) => [level, fields["entry_id"], fields["error"]])).toEqual([
        ["warn", "b", "selector list is empty"],
      ]);
    },
  );

  test("a malformed revision is skipped with a warning", async () => {
    const { sync, malformed } = setUp();
    const entries = await sync(new Peer(1, wire("a"), wire("b", -1), wire("c")));
    expect([...entries.keys()].sort()).toEqual(["a", "c"]);
    expect(malformed()).toHaveLength(1);
  });

  test.each([
    {
      what: "entries among the revisions",
      pages: [response({ entry_revisions: [wire("a")], more: true }), response({ entries: [wire("b")] })],
      reason: "unexpected entry in response",
    },
    {
      what: "revisions among the entries",
      pages: [response({ entry_revisions: [wire("a")] }), response({ entry_revisions: [wire("a")] })],
      reason: "unexpected entry revisions",
    },
    {
      what: "an end in the middle",
      pages: [response({ entry_revisions: [wire("a")], more: true })],
      reason: "too early",
    },
    { what: "no answer at all", pages: [], reason: "too early" },
  ])("$what fails the sync", async ({ pages, reason }) => {
    const open = async function* () {
      yield* pages;
    };
    await expect(syncEntries(open, new Map(), new RecordingLog())).rejects.toThrow(reason);
  });
});
