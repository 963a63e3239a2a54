import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { fetchJwtSvids } from "../../src/client/index.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { knowing } from "../support/names.ts";
import { createDatabase, type TestDatabase, withoutPostgres } from "../support/postgres.ts";
import { openServerClient, startServer, type TestServer } from "../support/server.ts";
import { SimulatedAgent } from "../support/simulated-agent.ts";
import { WorkloadStreams } from "../support/workload-streams.ts";

const NAME = "servers.test";
const ADDRESSES = ["127.0.0.1", "127.0.0.2"] as const;
const STREAMS = 10;
const SENT_AWAY = 60;
const SPREAD_MS = 3000;

/** Several programs start, one after the other. */
const START_MS = 120_000;

describe.skipIf(withoutPostgres)("an agent of two servers on one database", () => {
  let database: TestDatabase;
  const servers: TestServer[] = [];
  let agent: TestAgent;
  let entries = 0;

  beforeAll(async () => {
    database = await createDatabase();
    servers.push(await start(ADDRESSES[0]));
    servers.push(await start(ADDRESSES[1], servers[0]?.port));
    const both = { server_address: NAME, experimental: { sync_interval: "1h" } };
    agent = await startAgent(server(0), { agent: both, env: knowing(NAME, ADDRESSES) });
    await agent.untilLogged("Changes are pushed by the server");
    await createEntry(server(0));
  }, START_MS);
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await Promise.all(servers.map((one) => one[Symbol.asyncDispose]()));
    await database?.dispose();
  });

  const server = (at: number): TestServer => servers[at] ?? expect.fail("no server");

  async function start(bind_address: string, port?: number, folder?: string): Promise<TestServer> {
    const bound = { bind_address, ...(port === undefined ? {} : { bind_port: port }), log_level: "INFO" };
    return startServer({
      store: { url: database.url },
      server: { ...bound, ratelimit: { attestation: false, signing: false } },
      ...(folder === undefined ? {} : { folder }),
    });
  }

  /** One whose SVIDs are renewed every few seconds. */
  async function createEntry(at: TestServer): Promise<string> {
    entries += 1;
    const spiffeId = `spiffe://example.org/w/${entries}`;
    await at.createEntry({ spiffeId, parentId: agent.id(), selectors: [OWN_SELECTOR], x509_svid_ttl: 12 });
    return spiffeId;
  }

  /** Workloads that fetch all the time, each answer made by the server or the agent; resolves with what failed. */
  function load(signal: AbortSignal): { readonly failures: string[]; readonly ended: Promise<unknown> } {
    const failures: string[] = [];
    let asked = 0;
    const loop = async (fetch: () => Promise<unknown>): Promise<void> => {
      while (!signal.aborted) await fetch().catch((error: unknown) => failures.push(String(error)));
    };
    const { socket } = agent;
    const fetches = [
      () => agent.fetch(),
      () => agent.fetch(),
      () => {
        asked += 1;
        return fetchJwtSvids(`audience ${asked}`, { socket, deadlineMs: 30_000 });
      },
    ];
    return { failures, ended: Promise.all(fetches.map(loop)) };
  }

  test.each([0, 1])("server %i killed under load: no fetch fails, and new SVIDs are signed", async (victim) => {
    const survivor = server(1 - victim);
    const { folder, port } = server(victim);
    await using streams = await WorkloadStreams.open(agent.socket, STREAMS);
    await using watch = agent.watch();
    const stop = new AbortController();
    const { failures, ended } = load(stop.signal);
    await server(victim).kill();
    const id = await createEntry(survivor);
    await watch.until("the new SVID", ({ svids }) => svids.some((svid) => svid.id === id));
    servers[victim] = await start(ADDRESSES[victim] ?? "", port, folder);
    const next = await createEntry(server(victim));
    await watch.until("one more", ({ svids }) => svids.some((svid) => svid.id === next));
    stop.abort();
    await ended;
    expect(failures).toEqual([]);
    expect(streams.troubles).toEqual([]);
  });

  test("what one server was told, the other signs for at once", async () => {
    const node = await server(0).attest();
    using apis = server(1).connect(node.tls);
    for (let round = 0; round < 10; round += 1) {
      const { id } = await server(0).createEntry({ spiffeId: `spiffe://example.org/r/${round}`, parentId: node.id });
      const { svid } = await apis.svid.NewJWTSVID({ entry_id: id, audience: ["a"] });
      expect(svid?.token).not.toBe("");
    }
  });

  test("a server that ends in order sends its agents away, each for a time of its own, and no call is refused", async () => {
    Object.assign(process.env, knowing(NAME, ADDRESSES), { NODE_OPTIONS: process.env["NODE_OPTIONS"] ?? "" });
    using both = await openServerClient({ socketPath: server(1).socketPath, address: NAME, port: server(1).port });
    const node = await server(0).attest();
    const { id } = await server(0).createEntry({ spiffeId: "spiffe://example.org/drain", parentId: node.id });
    await using scope = new AsyncDisposableStack();
    let target = server(0);
    const agents = Array.from({ length: SENT_AWAY }, () => scope.use(SimulatedAgent.of(node, () => target)));
    const agreed = (): boolean => agents.every((one) => one.agreed);
    await eventually("all are told what they may have", agreed, 30_000);
    target = server(1);

    await using streams = await WorkloadStreams.open(agent.socket, STREAMS);
    const stop = new AbortController();
    const { failures, ended } = load(stop.signal);
    using apis = scope.use(both.connect(node.tls));
    const calls = (async () => {
      for (let count = 0; ; count += 1) {
        if (stop.signal.aborted) return count;
        await apis.svid
          .NewJWTSVID({ entry_id: id, audience: ["a"] }, { deadlineMs: 30_000 })
          .catch((error: unknown) => failures.push(`call ${count}: ${error}`));
      }
    })();
    expect(await server(0).stop()).toBe(0);
    await eventually("all have found the other server", agreed, 30_000);
    stop.abort();
    await ended;
    const count = await calls;
    expect(failures).toEqual([]);
    expect(count).toBeGreaterThan(0);
    expect(streams.troubles).toEqual([]);
    const away = agents.flatMap(({ drains }) => drains);
    expect(away).toHaveLength(SENT_AWAY);
    const thirds = [0, 1, 2].map((third) => away.filter((ms) => Math.floor((3 * ms) / SPREAD_MS) === third).length);
    for (const third of thirds) expect(third).toBeGreaterThan(SENT_AWAY / 10);
    expect(thirds.reduce((sum, count) => sum + count)).toBe(SENT_AWAY);
  });
});
