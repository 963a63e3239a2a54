import { once } from "node:events";
import { connect as connectHttp2, createSecureServer, type ServerHttp2Stream } from "node:http2";
import { createServer as createHttpsServer, request } from "node:https";
import type { AddressInfo } from "node:net";
import { connect, createServer, type Server, type TLSSocket } from "node:tls";
import { beforeAll, describe, expect, test } from "vitest";
import {
  type Authorize,
  authorizeAny,
  authorizeId,
  authorizeMemberOf,
  guardServer,
  MtlsAgent,
  mtlsClientOptions,
  mtlsServerOptions,
  peerId,
} from "../../../src/client/tls.ts";
import { X509Source } from "../../../src/client/x509-source.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { FakeAgent, hold, refuse } from "../../support/fake-agent.ts";
import type { Issued } from "../../support/pki.ts";
import { makeWorld, svidMessage, svidPart, type World } from "./fixtures.ts";

const WEB = parseSpiffeId("spiffe://example.org/web");
const API = parseSpiffeId("spiffe://example.org/api");
const PARTNER = parseSpiffeId("spiffe://partner.test/web");
const A = parseTrustDomain("example.org");
const bothBundles = () => ({
  "spiffe://example.org": world.rootA.der,
  "spiffe://partner.test": world.rootB.der,
});

let world: World;
let api: Issued;
beforeAll(async () => {
  world = await makeWorld();
  api = await world.intA.issue({ id: API });
});

interface Party extends AsyncDisposable {
  readonly source: X509Source;
  readonly agent: FakeAgent;
}

/** A program with this identity, which trusts both trust domains unless told otherwise. */
async function party(issued: Issued, federated?: Record<string, Uint8Array>): Promise<Party> {
  await using scope = new AsyncDisposableStack();
  const own = issued === world.leafB ? world.rootB.der : world.rootA.der;
  const message = { svids: [svidPart(world, issued, { bundle: own })], federated_bundles: federated ?? bothBundles() };
  const agent = scope.use(await FakeAgent.start(systemClock, hold(message), refuse(7)));
  const source = scope.use(await X509Source.open({ socket: agent.socket }));
  const held = scope.move();
  return { source, agent, [Symbol.asyncDispose]: () => held.disposeAsync() };
}

interface Serving extends AsyncDisposable {
  readonly server: Server;
  readonly port: number;
  readonly peers: string[];
  readonly refusals: Error[];
}

/** Answers every accepted peer with its SPIFFE ID. */
async function serve({ source }: Party, authorize: Authorize = authorizeAny): Promise<Serving> {
  const peers: string[] = [];
  const refusals: Error[] = [];
  const server = createServer(mtlsServerOptions({ source }), (socket) => {
    if (socket.destroyed) return;
    const peer = peerId(socket, source);
    peers.push(peer);
    socket.on("error", () => undefined).end(peer);
  });
  guardServer(server, { source, authorize });
  server.on("tlsClientError", (error) => refusals.push(error));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const close = () => new Promise<void>((resolve) => server.close(() => resolve()));
  return { server, port: (server.address() as AddressInfo).port, peers, refusals, [Symbol.asyncDispose]: close };
}

/** What the server says to this client. */
async function call(port: number, { source }: Party, authorize: Authorize = authorizeAny): Promise<string> {
  const socket = connect({ host: "127.0.0.1", port, ...mtlsClientOptions({ source, authorize }) });
  return await textOf(socket);
}

async function textOf(socket: TLSSocket): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of socket) pieces.push(piece as Buffer);
  return Buffer.concat(pieces).toString();
}

describe("mutual TLS between two programs", () => {
  test("each proves its SPIFFE ID to the other, across trust domains", async () => {
    await using web = await party(world.leafA);
    await using partner = await party(world.leafB);
    await using serving = await serve(web, authorizeId(PARTNER));
    expect(await call(serving.port, partner, authorizeId(WEB))).toBe(PARTNER);
    expect(serving.peers).toEqual([PARTNER]);
  });

  test.each<{ what: string; allow: Authorize; code: string }>([
    { what: "another ID is expected", allow: authorizeId(WEB), code: "unexpected-id" },
    { what: "another trust domain is expected", allow: authorizeMemberOf(A), code: "unexpected-trust-domain" },
  ])("a server refuses a proved peer when $what", async ({ allow, code }) => {
    await using web = await party(world.leafA);
    await using partner = await party(world.leafB);
    await using serving = await serve(web, allow);
    expect(await call(serving.port, partner).catch(() => "")).toBe("");
    expect(serving.refusals).toMatchObject([{ kind: "denied", code }]);
    expect(serving.peers).toEqual([]);
  });

  test("a client refuses a server of another ID than it wants", async () => {
    await using web = await party(world.leafA);
    await using partner = await party(world.leafB);
    await using serving = await serve(web);
    await expect(call(serving.port, partner, authorizeId(API))).rejects.toMatchObject({ code: "unexpected-id" });
    expect(await call(serving.port, partner, authorizeId(WEB))).toBe(PARTNER);
  });

  test("a server refuses a client without a certificate", async () => {
    await using web = await party(world.leafA);
    await using serving = await serve(web);
    const { cert: _cert, key: _key, ...anonymous } = mtlsClientOptions({ source: web.source, authorize: authorizeAny });
    expect(await textOf(connect({ host: "127.0.0.1", port: serving.port, ...anonymous })).catch(() => "")).toBe("");
    expect(serving.refusals).toMatchObject([{ kind: "denied", code: "empty-chain" }]);
    expect(serving.peers).toEqual([]);
  });

  test("WAPI-19 X509-34 a CA of another trust domain vouches for nobody here", async () => {
    const forged = await world.rootB.issue({ id: WEB });
    await using web = await party(world.leafA);
    await using liar = await party(forged);
    await using serving = await serve(web);
    expect(await call(serving.port, liar).catch(() => "")).toBe("");
    expect(serving.refusals).toMatchObject([{ kind: "denied" }]);
    await using lying = await serve(liar);
    await expect(call(lying.port, web)).rejects.toThrow();
    expect(lying.peers).toEqual([]);
  });

  test("WAPI-15 a bundle that is gone is refused on the next connection", async () => {
    await using web = await party(world.leafA);
    await using partner = await party(world.leafB);
    await using serving = await serve(web);
    expect(await call(serving.port, partner)).toBe(PARTNER);
    web.agent.calls[0]?.stream.send(svidMessage(world));
    await eventually("the withdrawal", () => !web.source.context.bundles.has(parseTrustDomain("partner.test")));
    expect(await call(serving.port, partner).catch(() => "")).toBe("");
    expect(serving.refusals).toMatchObject([{ code: "no-bundle" }]);
  });

  test("a running server shows a renewed certificate to new connections", async () => {
    await using web = await party(world.leafA);
    await using partner = await party(world.leafB);
    await using serving = await serve(web);
    const renewed = await world.intA.issue();
    web.agent.calls[0]?.stream.send({ svids: [svidPart(world, renewed)], federated_bundles: bothBundles() });
    await eventually("the new certificate on the wire", async () => {
      const socket = connect({
        host: "127.0.0.1",
        port: serving.port,
        ...mtlsClientOptions({ source: partner.source, authorize: authorizeAny }),
      });
      await once(socket, "secureConnect");
      const shown = socket.getPeerX509Certificate()?.raw;
      socket.destroy();
      return shown !== undefined && Buffer.compare(shown, renewed.der) === 0;
    });
  });

  test("WAPI-31 a server whose identity is withdrawn stops offering it", async () => {
    await using web = await party(world.leafA);
    await using partner = await party(world.leafB);
    await using serving = await serve(web);
    expect(await call(serving.port, partner)).toBe(PARTNER);
    web.agent.calls[0]?.stream.end(7);
    await eventually("handshakes to fail", async () => {
      const failure = await call(serving.port, partner).then(
        () => undefined,
        (error: NodeJS.ErrnoException) => error.code,
      );
      return failure?.startsWith("ERR_SSL");
    });
    expect(() => mtlsClientOptions({ source: web.source, authorize: authorizeAny })).toThrow(
      expect.objectContaining({ kind: "denied" }),
    );
  });

  test("an authority that is not self-signed anchors peers too", async () => {
    const own = { "spiffe://partner.test": world.rootB.der, "spiffe://example.org": world.intA.der };
    const leaf = { ...world.leafA, chain: [world.leafA.der] } as Issued;
    await using web = await party(leaf);
    await using partner = await party(world.leafB, own);
    await using serving = await serve(web);
    expect(await call(serving.port, partner, authorizeId(WEB))).toBe(PARTNER);
  });
});

describe("HTTPS with SPIFFE IDs", () => {
  async function get(port: number, options: ConstructorParameters<typeof MtlsAgent>[0]): Promise<string> {
    const agent = new MtlsAgent(options);
    try {
      const sent = request({ host: "127.0.0.1", port, agent, path: "/" });
      sent.end();
      const [response] = (await once(sent, "response")) as [NodeJS.ReadableStream];
      const pieces: Buffer[] = [];
      for await (const piece of response) pieces.push(Buffer.from(piece));
      return Buffer.concat(pieces).toString();
    } finally {
      agent.destroy();
    }
  }

  test("a refused client's request never reaches the handler", async () => {
    await using web = await party(world.leafA);
    await using partner = await party(world.leafB);
    let requests = 0;
    const server = createHttpsServer(mtlsServerOptions({ source: web.source }), (incoming, response) => {
      requests += 1;
      response.end(peerId(incoming.socket as TLSSocket, web.source));
    });
    guardServer(server, { source: web.source, authorize: authorizeId(PARTNER) });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    await using apiParty = await party(api);
    expect(await get(port, { source: partner.source, authorize: authorizeId(WEB) })).toBe(PARTNER);
    await expect(get(port, { source: apiParty.source, authorize: authorizeId(WEB) })).rejects.toThrow();
    await expect(get(port, { source: partner.source, authorize: authorizeId(API) })).rejects.toMatchObject({
      code: "unexpected-id",
    });
    expect(requests).toBe(1);
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
});

test("T-C6 a request without MtlsAgent is made over no connection, and by no session, of an earlier one", async () => {
  await using web = await party(world.leafA);
  await using partner = await party(world.leafB);
  const server = createHttpsServer(mtlsServerOptions({ source: web.source }), (_request, response) => response.end());
  guardServer(server, { source: web.source, authorize: authorizeAny });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const ask = async (authorize: Authorize): Promise<number | undefined> => {
    const sent = request({
      host: "127.0.0.1",
      port,
      ...mtlsClientOptions({ source: partner.source, authorize }),
    }).end();
    const [response] = await once(sent, "response");
    response.resume();
    await once(response, "end");
    return response.statusCode;
  };
  expect(await ask(authorizeId(WEB))).toBe(200);
  for (let time = 0; time < 3; time += 1)
    await expect(ask(authorizeId(API))).rejects.toMatchObject({ code: "unexpected-id" });
  expect(await ask(authorizeId(WEB))).toBe(200);
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

describe("HTTP/2", () => {
  test("a secure server and a session, each sure of the other", async () => {
    await using web = await party(world.leafA);
    await using apiParty = await party(api);
    const server = createSecureServer(mtlsServerOptions({ source: apiParty.source }));
    guardServer(server, { source: apiParty.source, authorize: authorizeId(WEB) });
    server.on("stream", (stream: ServerHttp2Stream) => stream.respond({ ":status": 204 }, { endStream: true }));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const session = connectHttp2(
      `https://127.0.0.1:${port}`,
      mtlsClientOptions({ source: web.source, authorize: authorizeId(API) }),
    );
    const stream = session.request({ ":path": "/" });
    const [headers] = await once(stream, "response");
    expect(headers[":status"]).toBe(204);
    session.close();
    const refused = connectHttp2(
      `https://127.0.0.1:${port}`,
      mtlsClientOptions({ source: web.source, authorize: authorizeId(WEB) }),
    );
    expect(await once(refused, "error")).toMatchObject([{ code: "unexpected-id" }]);
    server.close();
  });
});
