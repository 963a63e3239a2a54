import { fetchX509Svid } from "../../src/client/index.ts";
import { dialUnix } from "../../src/rpc/dial.ts";
import { BrokerApi, DelegatedIdentityApi, SecretDiscoveryApi, WorkloadApi } from "../../src/rpc/protos.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { BROKER_HEADER, dialBroker, pidReference } from "../support/broker.ts";
import { eventually } from "../support/eventually.ts";
import { type RawCall, RawClient, SECURITY_HEADER } from "../support/raw-client.ts";
import { WIT } from "../support/rotation.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { type Bench, type MeasuredAgent, scenario } from "./scenario.ts";
import { calls, cpuMs, rssMb } from "./stats.ts";

const CALLS = 300;
const ID = "spiffe://example.org/bench";

/** Every local RPC from the agent's cache, on connections that stand: attestation and the first answer each time. */
export const localApis = scenario({
  summary: "every local RPC of the agent from its cache, on connections that stand",
  run: measureLocalApis,
});

async function measureLocalApis({ limits, figure }: Bench<unknown>): Promise<void> {
  const limit = await limits.roundTrip("unix", 1024);
  await using house = await openHouse();
  const { agent, server, adminSocket, brokerSocket } = house;
  const { tls } = await server.mint("spiffe://example.org/broker");
  using local = dialUnix(agent.socketPath);
  using admin = dialUnix(adminSocket);
  using broker = dialBroker(brokerSocket, { identity: tls });
  const workload = local.client(WorkloadApi);
  const sds = local.client(SecretDiscoveryApi);
  const delegated = admin.client(DelegatedIdentityApi);
  const brokers = broker.client(BrokerApi);
  const asWorkload = { metadata: SECURITY_HEADER };
  const asBroker = { metadata: BROKER_HEADER };
  const reference = pidReference(process.pid);
  const audience = ["bench"];
  const { svids } = await workload.FetchJWTSVID({ audience }, asWorkload);
  const token = svids[0]?.svid ?? "";
  const methods: Readonly<Record<string, () => Promise<unknown>>> = {
    FetchX509SVID: () => first(workload.FetchX509SVID({}, asWorkload)),
    FetchX509Bundles: () => first(workload.FetchX509Bundles({}, asWorkload)),
    FetchJWTSVID: () => workload.FetchJWTSVID({ audience }, asWorkload),
    FetchJWTBundles: () => first(workload.FetchJWTBundles({}, asWorkload)),
    ValidateJWTSVID: () => workload.ValidateJWTSVID({ audience: "bench", svid: token }, asWorkload),
    FetchWITSVID: () => first(workload.FetchWITSVID({}, asWorkload)),
    FetchWITBundles: () => first(workload.FetchWITBundles({}, asWorkload)),
    "SDS FetchSecrets": () => sds.FetchSecrets({ resource_names: ["default", "ROOTCA"] }),
    "SDS StreamSecrets": () => first(sds.StreamSecrets(one({ resource_names: ["default"] }))),
    "SDS DeltaSecrets": () => first(sds.DeltaSecrets(one({ resource_names_subscribe: ["default"] }))),
    "Delegated SubscribeToX509SVIDs": () => first(delegated.SubscribeToX509SVIDs({ pid: process.pid })),
    "Delegated FetchJWTSVIDs": () => delegated.FetchJWTSVIDs({ pid: process.pid, audience }),
    "Broker SubscribeToX509SVID": () => first(brokers.SubscribeToX509SVID({ reference }, asBroker)),
    "Broker FetchJWTSVID": () => brokers.FetchJWTSVID({ reference, audience }, asBroker),
  };
  for (const [name, call] of Object.entries(methods)) {
    const { ms, cpuUs } = await calls({ count: CALLS, pid: agent.pid }, call);
    figure({ name, unit: "ms", values: ms, limit });
    figure({ name: `${name}, agent CPU`, unit: "us", values: cpuUs ?? Number.NaN });
  }
}

/** Many open streams: what each costs, and how long a change takes to reach them all. */
export const fanOut = scenario({
  summary: "many open streams of FetchX509SVID at one agent, and a change that reaches them all",
  parameters: {
    streams: { doc: "Open streams.", default: 2000 },
    connections: { doc: "Connections that carry them.", default: 4 },
    changes: { doc: "Changes, one after the other.", default: 20 },
  },
  async run({ parameters: { streams: count, connections, changes }, onAgents }) {
    const agent = { experimental: { sync_interval: "200ms" } };
    await onAgents({ agent, wireOnly: true }, async ({ pid, id, server, socketPath }, { figure }) => {
      const spiffeId = `spiffe://${server.trustDomain}/bench/fan-out`;
      const entry = await server.createEntry({ parentId: id, spiffeId, selectors: [OWN_SELECTOR] });
      await eventually("an identity", () => fetchX509Svid({ socket: `unix://${socketPath}` }));
      const rss = (): number => (pid === undefined ? Number.NaN : rssMb(pid));
      const [at, before] = [{ streams: count }, rss()];
      await using scope = new AsyncDisposableStack();
      const clients = Array.from({ length: connections }, () => scope.use(new RawClient(socketPath)));
      const opened = performance.now();
      const streams: RawCall[] = [];
      for (const client of clients) {
        const some = Array.from({ length: count / connections }, () => client.svids());
        await Promise.all(some.map((call) => call.x509Svids()));
        streams.push(...some);
      }
      figure({ name: "open all streams", unit: "ms", values: performance.now() - opened, at });
      const open = rss();
      const [firsts, lasts, cpus]: [number[], number[], number[]] = [[], [], []];
      for (let change = 0; change < changes; change++) {
        const [cpu, started] = [pid === undefined ? 0 : cpuMs(pid), performance.now()];
        const arrivals = streams.map(async (call) => {
          await call.next(change + 2);
          return performance.now() - started;
        });
        await renameHint(server, entry.id, `hint-${change}`);
        const arrived = await Promise.all(arrivals);
        const first = arrived.reduce((a, b) => Math.min(a, b));
        firsts.push(first);
        lasts.push(arrived.reduce((a, b) => Math.max(a, b)) - first);
        if (pid !== undefined) cpus.push(cpuMs(pid) - cpu);
      }
      figure({ name: "from the change at the server to the first stream", unit: "ms", values: firsts, at });
      figure({ name: "from the first stream to the last", unit: "ms", values: lasts, at });
      if (pid === undefined) return;
      figure({ name: "agent CPU for one change to all, its sync included", unit: "ms", values: cpus, at });
      figure({ name: "agent RSS before", unit: "MB", values: before, at });
      figure({ name: "agent RSS of one stream", unit: "kB", values: ((open - before) * 1024) / streams.length, at });
      figure({ name: "agent RSS afterwards", unit: "MB", values: rss(), at });
    });
  },
});

interface House extends AsyncDisposable {
  readonly server: TestServer;
  readonly agent: TestAgent;
  readonly adminSocket: string;
  readonly brokerSocket: string;
}

async function openHouse(): Promise<House> {
  const scope = new AsyncDisposableStack();
  const server = scope.use(await startServer({ server: { log_level: "INFO", experimental: WIT } }));
  const folder = server.folder;
  const adminSocket = `${folder}/private/admin.sock`;
  const brokerSocket = `${folder}/broker/broker.sock`;
  const allowed_reference_types = [{ type_url: "*" }];
  const agent = scope.use(
    await startAgent(server, {
      agent: {
        log_level: "INFO",
        admin_socket_path: adminSocket,
        authorized_delegates: [ID],
        experimental: {
          ...WIT,
          sync_interval: "200ms",
          broker: {
            socket_path: brokerSocket,
            brokers: [{ id: "spiffe://example.org/broker", allowed_reference_types }],
          },
        },
      },
    }),
  );
  await server.createEntry({ parentId: agent.id(), spiffeId: ID, selectors: [OWN_SELECTOR] });
  await eventually("an identity", () => agent.fetch().catch(() => undefined));
  return { server, agent, adminSocket, brokerSocket, [Symbol.asyncDispose]: () => scope.disposeAsync() };
}

async function renameHint(server: MeasuredAgent["server"], id: string, hint: string): Promise<void> {
  await server.admin.entry.BatchUpdateEntry({ entries: [{ id, hint }], input_mask: { hint: true } });
}

async function first<T>(answers: AsyncIterable<T>): Promise<T> {
  for await (const answer of answers) return answer;
  throw new Error("the stream ended without an answer");
}

async function* one<T>(request: T): AsyncGenerator<T, void, undefined> {
  yield request;
}
