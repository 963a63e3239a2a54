import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { SyncAuthorizedEntriesRequest } from "../../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesRequest.ts";
import type { SyncAuthorizedEntriesResponse__Output } from "../../../src/rpc/gen/spire/api/server/entry/v1/SyncAuthorizedEntriesResponse.ts";
import { faultFrom } from "../../support/faults.ts";
import {
  type Apis,
  collect,
  entryMessage,
  from,
  protoId,
  startServer,
  type TestServer,
  type TestSvid,
} from "../../support/server.ts";

type Response = SyncAuthorizedEntriesResponse__Output;

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

/** A conversation of requests that the test makes as it goes. */
class Sync implements AsyncDisposable {
  readonly #requests: SyncAuthorizedEntriesRequest[] = [];
  readonly #responses: AsyncIterator<Response>;
  #wake: (() => void) | undefined;
  #closed = false;

  constructor(apis: Apis) {
    this.#responses = apis.entry.SyncAuthorizedEntries(this.#feed())[Symbol.asyncIterator]();
  }

  async *#feed(): AsyncGenerator<SyncAuthorizedEntriesRequest> {
    while (!this.#closed || this.#requests.length > 0) {
      const next = this.#requests.shift();
      if (next !== undefined) yield next;
      else await new Promise<void>((wake) => (this.#wake = wake));
    }
  }

  send(request: SyncAuthorizedEntriesRequest): void {
    this.#requests.push(request);
    this.#wake?.();
  }

  close(): void {
    this.#closed = true;
    this.#wake?.();
  }

  /** The next response, or undefined when the server has ended the stream. */
  async next(): Promise<Response | undefined> {
    const { value, done } = await this.#responses.next();
    return done === true ? undefined : value;
  }

  /** Responses up to the one without `more`. */
  async page(): Promise<Response[]> {
    const all: Response[] = [];
    for (let response = await this.next(); response !== undefined; response = await this.next()) {
      all.push(response);
      if (!response.more) return all;
    }
    return all;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.#responses.return?.();
  }
}

async function createMany(parentId: string, count: number, hint = ""): Promise<readonly string[]> {
  const ids: string[] = [];
  for (let done = 0; done < count; done += 500) {
    const size = Math.min(500, count - done);
    const entries = Array.from({ length: size }, (_, index) =>
      entryMessage({ spiffeId: `spiffe://example.org/m/${done + index}`, parentId, hint }),
    );
    const { results } = await server.admin.entry.BatchCreateEntry({ entries }, { deadlineMs: 60_000 });
    ids.push(...results.map(({ entry }) => entry?.id ?? ""));
  }
  return ids;
}

describe("SyncAuthorizedEntries", () => {
  describe("with few entries", () => {
    let svid: TestSvid;
    let agent: Apis;
    beforeAll(async () => {
      svid = await server.attest();
      agent = server.connect(svid.tls);
    });
    afterAll(() => agent[Symbol.dispose]());

    test("an agent without entries gets one empty response, so that it clears what it holds", async () => {
      expect(await collect(agent.entry.SyncAuthorizedEntries(from([{}])))).toEqual([
        { entry_revisions: [], entries: [], more: false },
      ]);
    });

    test("sends all of them in one message, as the mask says, and ends", async () => {
      const entry = await server.createEntry({
        spiffeId: "spiffe://example.org/few",
        parentId: svid.id,
        admin: true,
        hint: "h",
      });
      const [whole] = await collect(agent.entry.SyncAuthorizedEntries(from([{}])));
      expect(whole).toEqual({ entry_revisions: [], entries: [entry], more: false });
      const output_mask = { spiffe_id: true, revision_number: true };
      const masked = await collect(agent.entry.SyncAuthorizedEntries(from([{ output_mask }])));
      expect(masked).toHaveLength(1);
      expect(masked[0]?.entries[0]).toMatchObject({
        id: entry.id,
        spiffe_id: entry.spiffe_id,
        revision_number: "0",
        admin: false,
        hint: "",
        selectors: [],
        created_at: "0",
      });
      expect((await agent.entry.GetAuthorizedEntries({ output_mask })).entries).toEqual(masked[0]?.entries);
    });

    test("T-S9 no mask turns one privilege into another", async () => {
      const [admin, downstream] = [{ admin: true }, { downstream: true }];
      await server.createEntry({
        spiffeId: "spiffe://example.org/few/downstream",
        parentId: svid.id,
        downstream: true,
      });
      const { entries: asAdmin } = await agent.entry.GetAuthorizedEntries({ output_mask: admin });
      const { entries: asDownstream } = await agent.entry.GetAuthorizedEntries({ output_mask: downstream });
      expect(asAdmin.map((entry) => [entry.admin, entry.downstream]).sort()).toEqual([
        [false, false],
        [true, false],
      ]);
      expect(asDownstream.map((entry) => [entry.admin, entry.downstream]).sort()).toEqual([
        [false, false],
        [false, true],
      ]);
    });

    test.each([
      {
        what: "ids in the first request",
        request: { ids: ["x"] },
        message: "specifying IDs on initial request is not supported",
      },
      {
        what: "a mask that hides the revision",
        request: { output_mask: { spiffe_id: true } },
        message: "revision number cannot be masked",
      },
    ])("refuses $what", async ({ request, message }) => {
      expect(await faultFrom(collect(agent.entry.SyncAuthorizedEntries(from([request]))))).toMatchObject({
        kind: "invalid",
        message,
      });
    });

    test("a stream that ends, or is cancelled, before its first request is no error", async () => {
      expect(await collect(agent.entry.SyncAuthorizedEntries(from([])))).toEqual([]);
      const leave = new AbortController();
      const sync = agent.entry.SyncAuthorizedEntries(from([]), { signal: leave.signal })[Symbol.asyncIterator]();
      leave.abort();
      await sync.next().catch(() => {});
      expect(await agent.entry.GetAuthorizedEntries({})).toBeDefined();
    });
  });

  describe("with more than 500 entries", () => {
    let agent: Apis;
    let parent: string;
    let ids: readonly string[];
    beforeAll(async () => {
      const svid = await server.attest();
      parent = svid.id;
      ids = await createMany(parent, 1201);
      agent = server.connect(svid.tls);
    });
    afterAll(() => agent[Symbol.dispose]());

    test("sends revisions in pages of 500, then the entries that are asked for, also in pages of 500", async () => {
      await using sync = new Sync(agent);
      sync.send({ output_mask: { revision_number: true, spiffe_id: true, created_at: true } });
      const pages = await sync.page();
      expect(pages.map(({ entry_revisions, entries, more }) => [entry_revisions.length, entries.length, more])).toEqual(
        [
          [500, 0, true],
          [500, 0, true],
          [201, 0, false],
        ],
      );
      const revisions = pages.flatMap(({ entry_revisions }) => entry_revisions);
      expect(revisions.map(({ id }) => id).sort()).toEqual([...ids].sort());
      expect(new Set(revisions.map(({ revision_number }) => revision_number))).toEqual(new Set(["0"]));
      expect(revisions.every(({ created_at }) => Number(created_at) > 1_700_000_000)).toBe(true);

      const wanted = [...ids.slice(0, 600), "no-such-entry", ids[0] ?? ""];
      sync.send({ ids: wanted, output_mask: { admin: true } });
      const answers = await sync.page();
      expect(
        answers.map(({ entry_revisions, entries, more }) => [entry_revisions.length, entries.length, more]),
      ).toEqual([
        [0, 500, true],
        [0, 100, false],
      ]);
      const entries = answers.flatMap(({ entries }) => entries);
      expect(entries.map(({ id }) => id)).toEqual([...ids.slice(0, 600)].sort());
      expect(entries[0]).toMatchObject({ spiffe_id: { trust_domain: "example.org" }, selectors: [] });

      sync.send({ ids: ["no-such-entry"] });
      expect(await sync.page()).toEqual([{ entry_revisions: [], entries: [], more: false }]);
      sync.close();
      expect(await sync.next()).toBeUndefined();
    });

    test("an entry that was updated meanwhile comes as it is now; one that was revoked does not come", async () => {
      await using sync = new Sync(agent);
      sync.send({});
      await sync.page();
      const [changed = "", revoked = ""] = ids;
      await server.admin.entry.BatchUpdateEntry({
        entries: [{ id: changed, hint: "new" }],
        input_mask: { hint: true },
      });
      await server.admin.entry.BatchUpdateEntry({
        entries: [{ id: revoked, parent_id: protoId("spiffe://example.org/elsewhere") }],
        input_mask: { parent_id: true },
      });
      sync.send({ ids: [changed, revoked] });
      const [answer] = await sync.page();
      expect(answer?.entries.map(({ id, hint, revision_number }) => [id, hint, revision_number])).toEqual([
        [changed, "new", "1"],
      ]);
      await server.admin.entry.BatchUpdateEntry({
        entries: [{ id: revoked, parent_id: protoId(parent) }],
        input_mask: { parent_id: true },
      });
    });

    test("an id of an entry that is another agent's is skipped", async () => {
      const other = await server.attest();
      const foreign = await server.createEntry({ spiffeId: "spiffe://example.org/foreign", parentId: other.id });
      await using sync = new Sync(agent);
      sync.send({});
      await sync.page();
      sync.send({ ids: [foreign.id] });
      expect(await sync.page()).toEqual([{ entry_revisions: [], entries: [], more: false }]);
    });
  });

  test("T-F4 entries that do not fit into one message come as revisions and in shorter pages", async () => {
    const svid = await server.attest();
    using agent = server.connect(svid.tls);
    const selectors = Array.from(
      { length: 100 },
      (_, index) => `t:${String(index).padStart(3, "0")}${"v".repeat(480)}`,
    );
    const created: string[] = [];
    for (let index = 0; index < 120; index += 20) {
      const entries = Array.from({ length: 20 }, (_, offset) =>
        entryMessage({ spiffeId: `spiffe://example.org/large/${index + offset}`, parentId: svid.id, selectors }),
      );
      const { results } = await server.admin.entry.BatchCreateEntry({ entries });
      created.push(...results.map(({ entry }) => entry?.id ?? ""));
    }
    expect(await faultFrom(agent.entry.GetAuthorizedEntries({}))).toMatchObject({
      kind: "exhausted",
      hint: "use SyncAuthorizedEntries",
    });
    await using sync = new Sync(agent);
    sync.send({});
    expect((await sync.page()).map(({ entry_revisions, entries }) => [entry_revisions.length, entries.length])).toEqual(
      [[120, 0]],
    );
    sync.send({ ids: created });
    const pages = await sync.page();
    expect(pages.length).toBeGreaterThan(1);
    expect(pages.flatMap(({ entries }) => entries.map(({ id }) => id))).toEqual([...created].sort());

    const filter = {
      by_parent_id: protoId(svid.id),
      by_spiffe_id: null,
      by_selectors: null,
      by_federates_with: null,
      by_hint: null,
      by_downstream: null,
    };
    expect(await faultFrom(server.admin.entry.ListEntries({ filter }))).toMatchObject({
      kind: "exhausted",
      hint: "ask for pages with page_size",
    });
    const listed: string[] = [];
    let page_token = "";
    do {
      const page = await server.admin.entry.ListEntries({ filter, page_size: 1000, page_token });
      expect(page.entries.length).toBeGreaterThan(0);
      listed.push(...page.entries.map(({ id }) => id));
      page_token = page.next_page_token;
    } while (page_token !== "");
    expect(listed).toEqual(created);
  });
});

describe("T-F4 a page size of two thousand million", () => {
  test("gives a page of bearable size and takes no memory of that size", async () => {
    const before = residentBytes(server.pid);
    const page = await server.admin.entry.ListEntries({
      page_size: 2 ** 31 - 1,
      output_mask: { revision_number: true },
    });
    expect(page.entries).toHaveLength(1000);
    expect(page.next_page_token).not.toBe("");
    await Promise.all(Array.from({ length: 20 }, () => server.admin.agent.ListAgents({ page_size: 2 ** 31 - 1 })));
    expect(residentBytes(server.pid) - before).toBeLessThan(300 * 1024 * 1024);
  });
});

function residentBytes(pid: number): number {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(kib) * 1024;
}
