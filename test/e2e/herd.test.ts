import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { SharedConnection, SimulatedAgent } from "../support/simulated-agent.ts";
import { WorkloadStreams } from "../support/workload-streams.ts";

const STREAMS = 1000;
/** As many handshakes are for `npm run bench herd`: here this process would be busy with its own side of them. */
const STREAMS_PER_CONNECTION = 20;
const WORKLOADS = 10;
const PATIENCE_MS = 60_000;

/** Several programs start, one after the other. */
const START_MS = 120_000;

describe("a server with 1,000 streams of agents that is started again", () => {
  let server: TestServer;
  let agent: TestAgent;
  const herd: SimulatedAgent[] = [];
  const connections: SharedConnection[] = [];

  beforeAll(async () => {
    server = await start();
    agent = await startAgent(server, { agent: { experimental: { sync_interval: "1h" } } });
    await createEntry("/kept");
    const node = await server.attest();
    for (let index = 0; index < STREAMS; index += 1) {
      if (index % STREAMS_PER_CONNECTION === 0) connections.unshift(new SharedConnection(node, () => server));
      const [connection] = connections;
      herd.push(SimulatedAgent.of(node, () => server, connection === undefined ? {} : { connection }));
    }
    await settled();
  }, START_MS);
  afterAll(async () => {
    await Promise.all(herd.map((one) => one[Symbol.asyncDispose]()));
    for (const connection of connections) connection[Symbol.dispose]();
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
  });

  const config = { log_level: "INFO", ratelimit: { attestation: false, signing: true } };
  const start = (again: { readonly folder?: string; readonly server?: object } = {}): Promise<TestServer> =>
    startServer({ ...again, server: { ...config, ...again.server }, startMs: PATIENCE_MS });

  const settled = (): Promise<unknown> =>
    eventually("every agent agrees with the server", () => herd.every((one) => one.agreed), PATIENCE_MS);

  async function createEntry(path: string): Promise<string> {
    const spiffeId = `spiffe://example.org${path}`;
    await server.createEntry({ spiffeId, parentId: agent.id(), selectors: [OWN_SELECTOR], x509_svid_ttl: 60 });
    return spiffeId;
  }

  test.each([
    { how: "in order", end: async (it: TestServer) => expect(await it.stop()).toBe(0) },
    { how: "by a kill", end: (it: TestServer) => it.kill() },
  ])("$how settles, and no workload sees an error", async ({ how, end }) => {
    await using streams = await WorkloadStreams.open(agent.socket, WORKLOADS);
    await using watch = agent.watch();
    const { folder, port } = server;
    const before = herd.map(({ agreements }) => agreements);
    await end(server);
    server = await start({ folder, server: { bind_port: port } });
    const isBack = ({ agreements }: SimulatedAgent, index: number): boolean => agreements > (before[index] ?? 0);
    await eventually("all are back", () => herd.every(isBack), PATIENCE_MS);
    await settled();
    const id = await createEntry(`/${how.replaceAll(" ", "-")}`);
    await watch.until("the new SVID", ({ svids }) => svids.some((svid) => svid.id === id));
    expect(streams.troubles).toEqual([]);
    expect(server.output().match(/"level":"error".*/g) ?? []).toEqual([]);
  });
});
