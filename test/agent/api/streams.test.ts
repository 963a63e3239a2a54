import { once } from "node:events";
import { type ClientHttp2Session, type ClientHttp2Stream, connect } from "node:http2";
import { connect as connectSocket } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { dialUnix } from "../../../src/rpc/dial.ts";
import type { X509SVIDResponse__Output } from "../../../src/rpc/gen/X509SVIDResponse.ts";
import { BrokerApi, DelegatedIdentityApi, WorkloadApi } from "../../../src/rpc/protos.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../../support/agent.ts";
import { BROKER_HEADER, dialBroker, pidReference } from "../../support/broker.ts";
import { collect } from "../../support/collect.ts";
import { eventually } from "../../support/eventually.ts";
import { INSPECTED, Inspector } from "../../support/inspector.ts";
import { type RawCall, RawClient, SECURITY_HEADER } from "../../support/raw-client.ts";
import { SdsClient } from "../../support/sds.ts";
import { startServer, type TestServer } from "../../support/server.ts";

const ID = "spiffe://example.org/streams";
const MANY = 1000;
const SOME = 50;
const BROKER = "spiffe://example.org/broker";
/** Encodes every message that an agent sends. */
const ENCODER = { name: "serialize", file: "src/rpc/codecs.ts" };
/** What the agent says to its server meanwhile. */
const OTHERS = 15;

let server: TestServer;
let agent: TestAgent;
let inspector: Inspector;
let entryId: string;
let hint = 0;
let adminSocket: string;
let brokerSocket: string;
beforeAll(async () => {
  const experimental = { feature_flags: ["wit-svid"] };
  server = await startServer({ server: { experimental } });
  adminSocket = `${server.folder}/private/admin.sock`;
  brokerSocket = `${server.folder}/broker/broker.sock`;
  const brokers = [{ id: BROKER, allowed_reference_types: [{ type_url: "*" }] }];
  agent = await startAgent(server, {
    env: { NODE_OPTIONS: INSPECTED },
    agent: {
      log_level: "INFO",
      admin_socket_path: adminSocket,
      authorized_delegates: [ID],
      experimental: { ...experimental, broker: { socket_path: brokerSocket, brokers } },
    },
  });
  inspector = await Inspector.attach(agent.output());
  const entry = { parentId: agent.id(), spiffeId: ID, selectors: [OWN_SELECTOR] };
  ({ id: entryId } = await server.createEntry(entry));
  await eventually("an identity", () => agent.fetch().catch(() => undefined));
});
afterAll(async () => {
  inspector?.[Symbol.dispose]();
  await agent?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
});

/** Something new for every subscriber of the entry. Resolves with it. */
async function change(): Promise<string> {
  const next = `hint-${++hint}`;
  await server.admin.entry.BatchUpdateEntry({ entries: [{ id: entryId, hint: next }], input_mask: { hint: true } });
  return next;
}

async function openSvidStreams(client: RawClient, count: number): Promise<readonly RawCall[]> {
  const streams = Array.from({ length: count }, () => client.svids());
  await Promise.all(streams.map((stream) => stream.next(1)));
  return streams;
}

async function push(streams: readonly RawCall[], times: number): Promise<void> {
  for (let time = 0; time < times; time++) {
    const arrivals = streams.map((stream) => stream.next(stream.messages.length + 1));
    await change();
    await Promise.all(arrivals);
  }
}

describe("many open streams", () => {
  test(`${MANY} of them hold no more memory after 50 changes than after 5`, { timeout: 120_000 }, async () => {
    await using client = new RawClient(agent.socketPath);
    const streams = await openSvidStreams(client, MANY);
    await push(streams, 5);
    const early = await inspector.heapInUse();
    await push(streams, 45);
    const late = await inspector.heapInUse();
    // Sixty bytes that stay of each change at each stream would be more.
    expect(late - early).toBeLessThan(60 * MANY * 45);
  });

  test("leave nothing behind when they are closed", { timeout: 120_000 }, async () => {
    const openAndClose = async (): Promise<void> => {
      await using client = new RawClient(agent.socketPath);
      await openSvidStreams(client, MANY);
    };
    await openAndClose();
    const before = await inspector.heapInUse();
    await openAndClose();
    await eventually("it is given back", async () => (await inspector.heapInUse()) - before < 1000 * MANY, 60_000);
  });
});

describe("an answer that goes to many subscribers is encoded once", () => {
  interface Subscriber {
    next(count: number): Promise<unknown>;
  }
  const collected = <T>(open: (options: { readonly signal: AbortSignal }) => AsyncIterable<T>) => {
    const stream = collect(open);
    return {
      next: (count: number) => stream.answer(count),
      [Symbol.asyncDispose]: async () => stream[Symbol.dispose](),
    };
  };
  type Open = (scope: AsyncDisposableStack) => () => Subscriber | Promise<Subscriber>;
  const workload =
    (open: (api: ReturnType<typeof workloadClient>, options: object) => AsyncIterable<object>): Open =>
    (scope) => {
      const api = workloadClient(scope);
      return () => scope.use(collected((options) => open(api, { ...options, metadata: SECURITY_HEADER })));
    };
  const workloadClient = (scope: AsyncDisposableStack) => scope.use(dialUnix(agent.socketPath)).client(WorkloadApi);
  const delegated =
    (open: (api: ReturnType<typeof delegatedClient>, options: object) => AsyncIterable<object>): Open =>
    (scope) => {
      const api = delegatedClient(scope);
      return () => scope.use(collected((options) => open(api, options)));
    };
  const delegatedClient = (scope: AsyncDisposableStack) =>
    scope.use(dialUnix(adminSocket)).client(DelegatedIdentityApi);
  type BrokerMethod = "SubscribeToX509SVID" | "SubscribeToX509Bundles" | "SubscribeToJWTBundles";
  const broker =
    (method: BrokerMethod): Open =>
    (scope) =>
    async () => {
      brokerIdentity ??= (await server.mint(BROKER)).tls;
      brokerChannel ??= dialBroker(brokerSocket, { identity: brokerIdentity });
      const api = brokerChannel.client(BrokerApi);
      const request = { reference: pidReference(process.pid) };
      const open = (options: object): AsyncIterable<object> =>
        api[method](request, { ...options, metadata: BROKER_HEADER });
      return scope.use(collected(open));
    };
  let brokerIdentity: Awaited<ReturnType<TestServer["mint"]>>["tls"] | undefined;
  let brokerChannel: ReturnType<typeof dialBroker> | undefined;
  afterAll(() => brokerChannel?.[Symbol.dispose]());
  const target = { pid: process.pid };

  const methods: Readonly<Record<string, Open>> = {
    FetchX509SVID: workload((api, options) => api.FetchX509SVID({}, options)),
    FetchX509Bundles: workload((api, options) => api.FetchX509Bundles({}, options)),
    FetchJWTBundles: workload((api, options) => api.FetchJWTBundles({}, options)),
    FetchWITBundles: workload((api, options) => api.FetchWITBundles({}, options)),
    SubscribeToX509SVIDs: delegated((api, options) => api.SubscribeToX509SVIDs(target, options)),
    SubscribeToX509Bundles: delegated((api, options) => api.SubscribeToX509Bundles({}, options)),
    SubscribeToJWTBundles: delegated((api, options) => api.SubscribeToJWTBundles({}, options)),
    "SubscribeToX509SVID of a broker": broker("SubscribeToX509SVID"),
    "SubscribeToX509Bundles of a broker": broker("SubscribeToX509Bundles"),
    "SubscribeToJWTBundles of a broker": broker("SubscribeToJWTBundles"),
  };

  test.each(Object.entries(methods))("%s", async (_, open) => {
    await using scope = new AsyncDisposableStack();
    const subscribe = open(scope);
    await (await subscribe()).next(1);
    const encoded = await inspector.callsDuring(ENCODER, async () => {
      const subscribers = await Promise.all(Array.from({ length: SOME }, () => subscribe()));
      await Promise.all(subscribers.map((subscriber) => subscriber.next(1)));
    });
    expect(encoded).toBeLessThan(OTHERS);
  });

  test("FetchX509SVID, when it changes", async () => {
    await using client = new RawClient(agent.socketPath);
    const streams = await openSvidStreams(client, SOME);
    const encoded = await inspector.callsDuring(ENCODER, () => push(streams, 1));
    expect(encoded).toBeGreaterThan(0);
    expect(encoded).toBeLessThan(OTHERS);
  });

  test("StreamSecrets: each secret once, and what only one stream has, its nonce, for each", async () => {
    using client = new SdsClient(agent.socketPath);
    const names = ["default", "ROOTCA"];
    const encoded = await inspector.callsDuring(ENCODER, async () => {
      const streams = Array.from({ length: SOME }, () => client.world());
      for (const stream of streams) stream.send({ resource_names: names });
      await Promise.all(streams.map((stream) => stream.response(1)));
      for (const stream of streams) stream[Symbol.dispose]();
    });
    expect(encoded).toBeLessThan(SOME + OTHERS);
  });
});

/** Grants the server so many bytes of each stream, and reads none before it is told to. */
class SlowClient implements AsyncDisposable {
  readonly #session: ClientHttp2Session;

  constructor(path: string, windowBytes: number) {
    const settings = { initialWindowSize: windowBytes };
    this.#session = connect("http://localhost", { settings, createConnection: () => connectSocket(path) });
    this.#session.on("error", () => undefined);
  }

  async open(): Promise<ClientHttp2Stream> {
    const fixed = { ":method": "POST", ":path": "/SpiffeWorkloadAPI/FetchX509SVID", te: "trailers" };
    const stream = this.#session.request({ ...fixed, "content-type": "application/grpc", ...SECURITY_HEADER });
    stream.end(Buffer.alloc(5));
    await once(stream, "response");
    return stream;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#session.destroy();
  }
}

describe("a client that does not read", () => {
  const SLOW = 300;
  const CHANGES = 40;

  test("makes nothing grow, hinders nobody, and gets what is newest once it reads", { timeout: 120_000 }, async () => {
    await using slow = new SlowClient(agent.socketPath, 100);
    await using quick = new RawClient(agent.socketPath);
    const streams = await Promise.all(Array.from({ length: SLOW }, () => slow.open()));
    const [reader] = await openSvidStreams(quick, 1);
    await push([reader!], 2);
    const before = await inspector.heapInUse();
    await push([reader!], CHANGES);
    const grown = (await inspector.heapInUse()) - before;
    // An answer is larger than a kilobyte: were each kept, it would be ten times as much.
    expect(grown).toBeLessThan((SLOW * CHANGES * 1024) / 10);
    const messages: X509SVIDResponse__Output[] = [];
    const decode = WorkloadApi.methods()["FetchX509SVID"]!.responseDeserialize;
    let pending = Buffer.alloc(0);
    streams[0]!.on("data", (data: Buffer) => {
      pending = Buffer.concat([pending, data]);
      while (pending.length >= 5 && pending.length >= 5 + pending.readUInt32BE(1)) {
        const end = 5 + pending.readUInt32BE(1);
        messages.push(decode(pending.subarray(5, end)) as X509SVIDResponse__Output);
        pending = pending.subarray(end);
      }
    });
    await eventually("the newest answer", () => messages.at(-1)?.svids[0]?.hint === `hint-${hint}`, 60_000);
    expect(messages.length).toBeLessThan(5);
  });
});
