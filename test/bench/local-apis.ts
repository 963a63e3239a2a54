import { dialUnix } from "../../src/rpc/dial.ts";
import { BrokerApi, DelegatedIdentityApi, SecretDiscoveryApi, WorkloadApi } from "../../src/rpc/protos.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { BROKER_HEADER, dialBroker, pidReference } from "../support/broker.ts";
import { eventually } from "../support/eventually.ts";
import { type RawCall, RawClient, SECURITY_HEADER } from "../support/raw-client.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { cpuMs, ms, rssMb, spread } from "./stats.ts";

const CALLS = 300;
const STREAMS = 2000;
const CONNECTIONS = 4;
const PUSHES = 20;
const ID = "spiffe://example.org/bench";

/** Every local RPC from the agent's cache, on connections that stand: attestation and the first answer each time. */
export async function measureLocalApis(): Promise<string[]> {
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
  const calls: Readonly<Record<string, () => Promise<unknown>>> = {
    FetchX509SVID: () => first(workload.FetchX509SVID({}, asWorkload)),
    FetchX509Bundles: () => first(workload.FetchX509Bundles({}, asWorkload)),
    FetchJWTSVID: () => workload.FetchJWTSVID({ audience }, asWorkload),
    FetchJWTBundles: () => first(workload.FetchJWTBundles({}, asWorkload)),
    ValidateJWTSVID: () => workload.ValidateJWTSVID({ audience: "bench", svid: token }, asWorkload),
    "SDS FetchSecrets": () => sds.FetchSecrets({ resource_names: ["default", "ROOTCA"] }),
    "SDS StreamSecrets": () => first(sds.StreamSecrets(one({ resource_names: ["default"] }))),
    "SDS DeltaSecrets": () => first(sds.DeltaSecrets(one({ resource_names_subscribe: ["default"] }))),
    "Delegated SubscribeToX509SVIDs": () => first(delegated.SubscribeToX509SVIDs({ pid: process.pid })),
    "Delegated FetchJWTSVIDs": () => delegated.FetchJWTSVIDs({ pid: process.pid, audience }),
    "Broker SubscribeToX509SVID": () => first(brokers.SubscribeToX509SVID({ reference }, asBroker)),
    "Broker FetchJWTSVID": () => brokers.FetchJWTSVID({ reference, audience }, asBroker),
  };
  const lines: string[] = [];
  for (const [name, call] of Object.entries(calls)) {
    const times: number[] = [];
    for (let index = 0; index < CALLS; index++) {
      const started = performance.now();
      await call();
      times.push(performance.now() - started);
    }
    lines.push(`${name}: ${spread(times)}`);
  }
  return lines;
}

/** 2,000 open streams: what each costs, and how long a change takes to reach them all. */
export async function measureFanOut(): Promise<string[]> {
  await using house = await openHouse();
  const { agent, server } = house;
  const before = rssMb(agent.pid);
  await using scope = new AsyncDisposableStack();
  const clients = Array.from({ length: CONNECTIONS }, () => scope.use(new RawClient(agent.socketPath)));
  const opened = performance.now();
  const streams: RawCall[] = [];
  for (const client of clients) {
    const some = Array.from({ length: STREAMS / CONNECTIONS }, () => client.svids());
    await Promise.all(some.map((call) => call.x509Svids()));
    streams.push(...some);
  }
  const openMs = performance.now() - opened;
  const open = rssMb(agent.pid);
  const [firsts, lasts, cpus]: [number[], number[], number[]] = [[], [], []];
  for (let push = 0; push < PUSHES; push++) {
    const [cpu, started] = [cpuMs(agent.pid), performance.now()];
    const arrivals = streams.map(async (call) => {
      await call.next(push + 2);
      return performance.now() - started;
    });
    await renameHint(server, house.entryId, `hint-${push}`);
    const times = await Promise.all(arrivals);
    firsts.push(Math.min(...times));
    lasts.push(Math.max(...times) - Math.min(...times));
    cpus.push(cpuMs(agent.pid) - cpu);
  }
  const after = rssMb(agent.pid);
  return [
    `${STREAMS} streams of FetchX509SVID on ${CONNECTIONS} connections, opened in ${ms(openMs)}`,
    `agent RSS ${before.toFixed(0)} MB before, ${open.toFixed(0)} MB with them (${(STREAMS / Math.max(1, open - before)).toFixed(0)} streams per MB), ${after.toFixed(0)} MB after ${PUSHES} pushes`,
    `from the first stream to hear of a change to the last: ${spread(lasts)}`,
    `agent CPU for one push to all, its sync included: ${spread(cpus)}`,
    `from the change at the server to the first stream: ${spread(firsts)}`,
  ];
}

interface House extends AsyncDisposable {
  readonly server: TestServer;
  readonly agent: TestAgent;
  readonly entryId: string;
  readonly adminSocket: string;
  readonly brokerSocket: string;
}

async function openHouse(): Promise<House> {
  const scope = new AsyncDisposableStack();
  const server = scope.use(await startServer({ server: { log_level: "INFO" } }));
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
          sync_interval: "200ms",
          broker: {
            socket_path: brokerSocket,
            brokers: [{ id: "spiffe://example.org/broker", allowed_reference_types }],
          },
        },
      },
    }),
  );
  const { id: entryId } = await server.createEntry({ parentId: agent.id(), spiffeId: ID, selectors: [OWN_SELECTOR] });
  await eventually("an identity", () => agent.fetch().catch(() => undefined));
  return { server, agent, entryId, adminSocket, brokerSocket, [Symbol.asyncDispose]: () => scope.disposeAsync() };
}

async function renameHint(server: TestServer, id: string, hint: string): Promise<void> {
  await server.admin.entry.BatchUpdateEntry({ entries: [{ id, hint }], input_mask: { hint: true } });
}

async function first<T>(answers: AsyncIterable<T>): Promise<T> {
  for await (const answer of answers) return answer;
  throw new Error("the stream ended without an answer");
}

async function* one<T>(request: T): AsyncGenerator<T, void, undefined> {
  yield request;
}
