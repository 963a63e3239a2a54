import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { X509Context } from "../../src/client/index.ts";
import type { WatchAuthorizedEntriesRequest } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesRequest.ts";
import type { WatchAuthorizedEntriesResponse__Output } from "../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesResponse.ts";
import { EntryDigest } from "../../src/spiffe/entry-digest.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { createCa, type TestCa } from "../support/pki.ts";
import { type Apis, startServer, type TestServer, type TestSvid } from "../support/server.ts";
import { runProgram } from "../support/transcript.ts";

const PARTNER = parseTrustDomain("partner.test");
/** So long that whatever arrives was pushed. */
const NEVER = { experimental: { sync_interval: "1h" } };

let server: TestServer;
beforeAll(async () => {
  server = await startServer({ store: "postgres" });
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
});

const idsOf = (context: { readonly svids: readonly { readonly id: string }[] }) => context.svids.map(({ id }) => id);

describe("changes reach an agent without being asked for", () => {
  let agent: TestAgent;
  beforeAll(async () => {
    agent = await startAgent(server, { agent: NEVER });
    await agent.untilLogged("Changes are pushed by the server");
  });
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
  });

  const create = (path: string) =>
    server.createEntry({
      spiffeId: `spiffe://example.org${path}`,
      parentId: agent.id(),
      selectors: [OWN_SELECTOR],
    });

  test("an entry that is created, changed and removed, on an open stream", async () => {
    const first = await create("/one");
    const watch = agent.watch();
    await watch.until("the first", (context) => idsOf(context).includes("spiffe://example.org/one"));
    const second = await create("/two");
    await watch.until("the second", (context) => idsOf(context).includes("spiffe://example.org/two"));
    await server.admin.entry.BatchUpdateEntry({ entries: [{ ...second, hint: "second" }] });
    await watch.until("the hint", ({ svids }) => svids.some(({ hint }) => hint === "second"));
    await server.admin.entry.BatchDeleteEntry({ ids: [second.id] });
    await watch.until("one", (context) => idsOf(context).length === 1);
    await server.admin.entry.BatchDeleteEntry({ ids: [first.id] });
    await watch[Symbol.asyncDispose]();
  });

  test("one of two identities that gets another SPIFFE ID, or another entry, is never missing on an open stream", async () => {
    const [kept, first] = [await create("/kept"), await create("/before")];
    await using watch = agent.watch();
    const names = (context: X509Context) =>
      idsOf(context)
        .map((id) => id.split("/").at(-1))
        .sort();
    await watch.until("both", (context) => names(context).join() === "before,kept");
    const from = watch.contexts.length;
    await server.admin.entry.BatchUpdateEntry({
      entries: [{ ...first, spiffe_id: { trust_domain: "example.org", path: "/after" } }],
      input_mask: { spiffe_id: true },
    });
    await watch.until("the new ID", (context) => names(context).includes("after"));
    expect(watch.contexts.slice(from).map(names)).toEqual([["after", "kept"]]);
    const second = await server.createEntry({
      spiffeId: "spiffe://example.org/after",
      parentId: agent.id(),
      selectors: [OWN_SELECTOR, `unix:gid:${process.getgid?.() ?? 0}`],
    });
    await watch.until("the second entry's", (context) => context.svids.length === 3);
    await server.admin.entry.BatchDeleteEntry({ ids: [first.id] });
    await watch.until("the second entry's alone", (context, at) => at > from + 1 && context.svids.length === 2);
    expect(watch.contexts.slice(from).every((context) => names(context).includes("after"))).toBe(true);
    await server.admin.entry.BatchDeleteEntry({ ids: [kept.id, second.id] });
  });

  test("an administrator waits until the agents have an entry, and its deletion", async () => {
    const entry = await create("/awaited");
    expect(await server.admin.push.AwaitEntries({ ids: [entry.id] }, { deadlineMs: 30_000 })).toEqual({ agents: 1 });
    expect(agent.logged("Entry created", { entry: entry.id })).toHaveLength(1);
    await server.admin.entry.BatchDeleteEntry({ ids: [entry.id] });
    expect(await server.admin.push.AwaitEntries({ ids: [entry.id] }, { deadlineMs: 30_000 })).toEqual({ agents: 0 });
    expect(agent.logged("Entry removed", { entry: entry.id })).toHaveLength(1);
  });

  test("entry create, update and delete with -wait return when the agent has the change", async () => {
    const run = (line: string) =>
      runProgram(`server entry ${line} -wait -output json`, { flags: ["-socketPath", server.socketPath] });
    const flags = `-parentID ${agent.id()} -spiffeID spiffe://example.org/w -selector ${OWN_SELECTOR} -entryID waited`;
    const created = await run(`create ${flags}`);
    expect(created).toMatchObject({ status: 0, stderr: "1 agent has the change\n" });
    expect(agent.logged("Entry created", { entry: "waited" })).toHaveLength(1);
    await run(`update ${flags} -hint h`);
    expect(agent.logged("Entry updated", { entry: "waited" })).toHaveLength(1);
    const removed = await run("delete -entryID waited");
    expect(removed).toMatchObject({ status: 0, stderr: "0 agents have the change\n" });
    expect(agent.logged("Entry removed", { entry: "waited" })).toHaveLength(1);
  });

  test("a foreign bundle comes with the entry that federates with it, and its changes and its end as well", async () => {
    const [first, second] = [
      await createCa({ trustDomain: "partner.test" }),
      await createCa({ trustDomain: "partner.test" }),
    ];
    const set = (...roots: readonly TestCa[]) =>
      server.admin.bundle.BatchSetFederatedBundle({
        bundle: [
          { trust_domain: "partner.test", x509_authorities: roots.map(({ der }) => ({ asn1: Buffer.from(der) })) },
        ],
      });
    await set(first);
    const entry = await server.createEntry({
      spiffeId: "spiffe://example.org/federated",
      parentId: agent.id(),
      selectors: [OWN_SELECTOR],
      federates_with: ["partner.test"],
    });
    await using watch = agent.watch();
    const rootsOf = ({ bundles }: X509Context) => bundles.get(PARTNER)?.authorities.length ?? 0;
    await watch.until("one root", (context) => rootsOf(context) === 1);
    await set(first, second);
    await watch.until("two roots", (context) => rootsOf(context) === 2);
    await server.admin.bundle.BatchDeleteFederatedBundle({ trust_domains: ["partner.test"], mode: "DISSOCIATE" });
    await watch.until("none, and the identity", (context) => rootsOf(context) === 0 && context.svids.length === 1);
    await server.admin.entry.BatchDeleteEntry({ ids: [entry.id] });
  });

  test("a restart of the server is followed by changes that are pushed again", async () => {
    const restarted = await startServer();
    await using other = await startAgent(restarted, { agent: NEVER });
    await other.untilLogged("Changes are pushed by the server");
    const { folder, port } = restarted;
    await restarted.stop();
    await using again = await startServer({ folder, server: { bind_port: port } });
    await other.untilLogged("Changes are pushed by the server", {}, 2);
    const entry = await again.createEntry({
      spiffeId: "spiffe://example.org/after",
      parentId: other.id(),
      selectors: [OWN_SELECTOR],
    });
    await other.untilLogged("Entry created", { entry: entry.id });
  });

  test("a renewal of the agent's own SVID is followed by changes that are pushed again", async () => {
    await using short = await startServer({ server: { agent_ttl: "8s" } });
    await using other = await startAgent(short, { agent: NEVER });
    await other.untilLogged("Successfully rotated agent SVID");
    const entry = await short.createEntry({
      spiffeId: "spiffe://example.org/renewed",
      parentId: other.id(),
      selectors: [OWN_SELECTOR],
    });
    await other.untilLogged("Entry created", { entry: entry.id });
    expect(other.logged("Agent needs to re-attest; will attempt to re-attest")).toEqual([]);
    expect(other.logged("Changes are not pushed by the server any more; asking for them")).toEqual([]);
  });

  test("T-C5 a ban ends the agent, which would not have asked for an hour", async () => {
    await using banned = await startAgent(server, { agent: NEVER });
    await banned.untilLogged("Changes are pushed by the server");
    const path = banned.id().slice("spiffe://example.org".length);
    await server.admin.agent.BanAgent({ id: { trust_domain: "example.org", path } });
    await banned.untilLogged("Agent is banned: removing SVID and shutting down");
    await banned.exited();
  });
});

describe("what the two ends say to each other", () => {
  let node: TestSvid;
  let apis: Apis;
  beforeAll(async () => {
    node = await server.attest();
    apis = server.connect(node.tls);
  });
  afterAll(() => {
    apis?.[Symbol.dispose]();
  });

  test("equal digests are confirmed; after a difference the agent's revisions are answered by what it lacks", async () => {
    const create = (path: string, parentId = node.id) =>
      server.createEntry({ spiffeId: `spiffe://example.org${path}`, parentId });
    const [kept, changed, added] = [await create("/kept"), await create("/changed"), await create("/added")];
    await create("/nobody", "spiffe://example.org/spire/agent/other");
    await server.admin.push.AwaitEntries({ ids: [added.id] });
    const talk = new Talk(apis);
    talk.say({ held: { digest: new EntryDigest().bytes() } });
    expect((await talk.hear()).event).toBe("divergence");
    const revision = ({ id, created_at }: { readonly id: string; readonly created_at: string }) => ({
      id,
      revision_number: "0",
      created_at,
    });
    await server.admin.entry.BatchUpdateEntry({ entries: [{ ...changed, hint: "new" }] });
    const gone = { id: "gone", revision_number: "4", created_at: "7" };
    const revisions = [revision(kept), revision(changed), gone];
    talk.say({ held: { revisions: { revisions: revisions.slice(0, 1), more: true } } });
    talk.say({ held: { revisions: { revisions: revisions.slice(1), more: false } } });
    expect((await talk.hear()).bundles?.changed.map(({ trust_domain }) => trust_domain)).toEqual(["example.org"]);
    const removal = await talk.hear();
    expect(removal.entries).toMatchObject({ removed: ["gone"], changed: [], more: true });
    const rest = await talk.hear();
    expect(rest.entries?.changed.map(({ id }) => id).sort()).toEqual([changed.id, added.id].sort());
    const versions = [kept, changed, added].map(({ id, created_at }) => ({
      id,
      revisionNumber: id === changed.id ? 1 : 0,
      createdAt: Number(created_at),
    }));
    const digest = new EntryDigest(versions).bytes();
    expect(rest.entries?.digest).toEqual(digest);
    expect([removal.number, rest.number].map(Number)).toEqual([3, 4]);

    talk.say({ held: { digest } });
    expect((await talk.hear()).entries).toMatchObject({ changed: [], removed: [], digest });
    talk.end();
    expect(await talk.status).toBeUndefined();
  });

  test("a digest that the server finds right is enough: nothing is sent again", async () => {
    const { entries } = await apis.entry.GetAuthorizedEntries({});
    const versions = entries.map(({ id, revision_number, created_at }) => ({
      id,
      revisionNumber: Number(revision_number),
      createdAt: Number(created_at),
    }));
    const talk = new Talk(apis);
    const digest = new EntryDigest(versions).bytes();
    talk.say({ held: { digest } });
    expect((await talk.hear()).entries).toMatchObject({ changed: [], removed: [], digest });
    expect((await talk.hear()).event).toBe("bundles");
    talk.end();
  });

  test("a number that was never sent is refused", async () => {
    const talk = new Talk(apis);
    talk.say({ applied: 7 });
    expect(await talk.status).toMatchObject({ kind: "invalid" });
  });
});

/** One stream, sentence by sentence. */
class Talk {
  readonly status: Promise<unknown>;
  readonly #said: WatchAuthorizedEntriesRequest[] = [];
  readonly #heard: WatchAuthorizedEntriesResponse__Output[] = [];
  #wake: () => void = () => undefined;
  #listen: () => void = () => undefined;
  #ended = false;

  constructor({ push }: Apis) {
    this.status = this.#run(push).catch((error: unknown) => error);
  }

  say(request: WatchAuthorizedEntriesRequest): void {
    this.#said.push(request);
    this.#wake();
  }

  async hear(): Promise<WatchAuthorizedEntriesResponse__Output> {
    for (;;) {
      const next = this.#heard.shift();
      if (next !== undefined) return next;
      const more = new Promise<void>((resolve) => {
        this.#listen = resolve;
      });
      const ended = this.status.then((status) => Promise.reject(status ?? new Error("the stream ended")));
      await Promise.race([more, ended]);
    }
  }

  end(): void {
    this.#ended = true;
    this.#wake();
  }

  async #run(push: Apis["push"]): Promise<undefined> {
    const stop = new AbortController();
    try {
      for await (const response of push.WatchAuthorizedEntries(this.#requests(stop), { signal: stop.signal })) {
        this.#heard.push(response);
        this.#listen();
      }
    } catch (error) {
      if (!this.#ended) throw error;
    }
    return undefined;
  }

  async *#requests(stop: AbortController): AsyncGenerator<WatchAuthorizedEntriesRequest> {
    for (;;) {
      const next = this.#said.shift();
      if (next !== undefined) yield next;
      else if (this.#ended) return stop.abort();
      else
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
    }
  }
}
