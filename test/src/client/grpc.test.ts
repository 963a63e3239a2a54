import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { Client, Server, type ServerUnaryCall, type ServerWritableStream, type sendUnaryData } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type GrpcListener, grpcChannelCredentials, grpcListener } from "../../../src/client/grpc.ts";
import { authorizeAny, authorizeId, authorizeMemberOf, type MtlsOptions } from "../../../src/client/tls.ts";
import { X509Source } from "../../../src/client/x509-source.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { FakeAgent, hold, refuse } from "../../support/fake-agent.ts";
import type { Issued } from "../../support/pki.ts";
import { makeWorld, svidMessage, svidPart, type World } from "./fixtures.ts";

const WEB = parseSpiffeId("spiffe://example.org/web");
const API = parseSpiffeId("spiffe://example.org/api");
const A = parseTrustDomain("example.org");
const B = parseTrustDomain("partner.test");

interface Party {
  readonly agent: FakeAgent;
  readonly source: X509Source;
}

let world: World;
let client: Party;
let server: Party;
let grpc: Server;
let listener: GrpcListener;
let address: string;
const peers: string[] = [];
const scope = new AsyncDisposableStack();

const text = { serialize: (value: string) => Buffer.from(value), deserialize: (bytes: Buffer) => bytes.toString() };
const method = (name: string, responseStream: boolean) => ({
  ...{ path: `/test.Echo/${name}`, requestStream: false, responseStream },
  ...{ requestSerialize: text.serialize, requestDeserialize: text.deserialize },
  ...{ responseSerialize: text.serialize, responseDeserialize: text.deserialize },
});

async function party(issued: Issued): Promise<Party> {
  const agent = scope.use(
    await FakeAgent.start(systemClock, hold(messageFor(issued)), refuse(7, "no identity issued")),
  );
  const source = scope.use(await X509Source.open({ socket: agent.socket }));
  return { agent, source };
}

const messageFor = (issued: Issued) => svidMessage(world, { svids: [svidPart(world, issued)] });

beforeAll(async () => {
  world = await makeWorld();
  client = await party(world.leafA);
  server = await party(await world.intA.issue({ id: API }));
  grpc = new Server();
  const streams: ServerWritableStream<string, string>[] = [];
  grpc.addService(
    { Say: method("Say", false), Follow: method("Follow", true) },
    {
      Say(call: ServerUnaryCall<string, string>, done: sendUnaryData<string>) {
        const peer = listener.peerId(call);
        peers.push(peer);
        for (const stream of streams) stream.write(call.request);
        done(null, peer);
      },
      Follow: (call: ServerWritableStream<string, string>) => void streams.push(call),
    },
  );
  listener = grpcListener(grpc, { source: server.source, authorize: authorizeMemberOf(A) });
  listener.tls.listen(0, "127.0.0.1");
  await once(listener.tls, "listening");
  address = `127.0.0.1:${(listener.tls.address() as AddressInfo).port}`;
});
afterAll(async () => {
  grpc.forceShutdown();
  listener.tls.close();
  await scope.disposeAsync();
});

function connect(options: Partial<MtlsOptions> = {}): Client & Disposable {
  const credentials = grpcChannelCredentials({ source: client.source, authorize: authorizeId(API), ...options });
  const made = new Client(address, credentials, { "grpc.use_local_subchannel_pool": 1 });
  return Object.assign(made, { [Symbol.dispose]: () => made.close() });
}

function say(on: Client, words: string): Promise<string> {
  const { path, requestSerialize, responseDeserialize } = method("Say", false);
  return new Promise((resolve, reject) => {
    on.makeUnaryRequest(path, requestSerialize, responseDeserialize, words, (error, answer) =>
      error === null ? resolve(answer ?? "") : reject(error),
    );
  });
}

describe("gRPC over mutual TLS", () => {
  test("both ends prove who they are", async () => {
    using open = connect();
    expect(await say(open, "hello")).toBe(WEB);
    expect(peers.at(-1)).toBe(WEB);
  });

  test.each([
    { what: "another server ID", options: () => ({ authorize: authorizeId(WEB) }) },
    { what: "another trust domain", options: () => ({ authorize: authorizeMemberOf(B) }) },
    {
      what: "a function that refuses",
      options: () => ({
        authorize: () => {
          throw new Error("no");
        },
      }),
    },
  ])("a client that wants $what makes no call", async ({ options }) => {
    using open = connect(options());
    const before = peers.length;
    await expect(say(open, "hello")).rejects.toMatchObject({ code: 14 });
    expect(peers).toHaveLength(before);
  });

  test("a peer of a trust domain that the server does not take makes no call", async () => {
    const foreign = await party(world.leafB);
    using open = connect({ source: foreign.source, authorize: authorizeAny });
    await expect(say(open, "hello")).rejects.toMatchObject({ code: 14 });
  });

  test("twenty rotations at both ends: an open stream stays, and every new connection is made with what is newest", async () => {
    using old = connect();
    const { path, requestSerialize, responseDeserialize } = method("Follow", true);
    const heard: string[] = [];
    let ended: unknown;
    const stream = old.makeServerStreamRequest(path, requestSerialize, responseDeserialize, "follow");
    stream
      .on("data", (words: string) => heard.push(words))
      .on("error", (error) => {
        ended = error;
      });
    await say(old, "start");
    for (let round = 0; round < 20; round += 1) {
      const [next, nextApi] = await Promise.all([world.intA.issue(), world.intA.issue({ id: API })]);
      client.agent.calls[0]!.stream.send(messageFor(next));
      server.agent.calls[0]!.stream.send(messageFor(nextApi));
      const serial = (each: Party) => each.source.svid.chain[0]?.serialNumber;
      await eventually(
        "the rotation",
        () => serial(client) === next.certificate.serialNumber && serial(server) === nextApi.certificate.serialNumber,
      );
      using fresh = connect();
      expect(await say(fresh, `round ${round}`)).toBe(WEB);
    }
    await eventually("every word on the old stream", () => heard.includes("round 19"));
    expect(ended).toBeUndefined();
    expect(heard.filter((words) => words.startsWith("round"))).toHaveLength(20);
    stream.cancel();
  });

  test("WAPI-31 with the identity withdrawn no connection is made", async () => {
    client.agent.calls[0]!.stream.end(7, "no identity issued");
    await eventually("the withdrawal", () => {
      try {
        return client.source.svid === undefined;
      } catch {
        return true;
      }
    });
    using open = connect();
    await expect(say(open, "hello")).rejects.toMatchObject({ code: 14 });
  });
});
