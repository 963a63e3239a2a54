import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { afterEach, beforeAll, describe, expect, test } from "vitest";
import type { TlsListener } from "../../../src/rpc/serve.ts";
import { Feed } from "../../../src/runtime/feed.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { createCa, type TestCa } from "../../support/pki.ts";
import { startRpc } from "../../support/rpc.ts";

let ca: TestCa;
beforeAll(async () => {
  ca = await createCa();
});

const opened: Socket[] = [];
afterEach(() => {
  for (const socket of opened.splice(0)) socket.destroy();
});

async function listen(limits: Partial<TlsListener>) {
  const server = await startRpc();
  const { chain, signer } = await ca.issue({ id: "spiffe://example.org/spire/server" });
  const identity = new Feed({ chain, privateKey: signer.privateKey });
  const verifyPeer = () => parseSpiffeId("spiffe://example.org/x");
  const { port } = await server.rpc.listenTls({ address: "127.0.0.1", port: 0, identity, verifyPeer, ...limits });
  /** A connection on which nothing is ever sent. */
  const open = async (localAddress: string): Promise<Socket> => {
    const socket = connect({ port, host: "127.0.0.1", localAddress });
    opened.push(socket.on("error", () => {}).resume());
    await once(socket, "connect");
    return socket;
  };
  const isAdmitted = (localAddress: string): Promise<boolean> =>
    new Promise((done) => {
      const settings = { port, host: "127.0.0.1", localAddress, rejectUnauthorized: false, ALPNProtocols: ["h2"] };
      const socket = connectTls(settings, () => done(true));
      opened.push(socket.on("error", () => {}).once("close", () => done(false)));
    });
  return { ...server, open, isAdmitted, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

const ended = (socket: Socket) => eventually("the server ends it", () => socket.closed);
const stillOpen = (sockets: readonly Socket[]): number => sockets.filter(({ closed }) => !closed).length;

describe("T-X9 before a byte of TLS is read", () => {
  test("an address has so many connections and no more, and others are not kept out", async () => {
    await using server = await listen({ maxConnectionsPerAddress: 3 });
    const held = [await server.open("127.0.0.2"), await server.open("127.0.0.2"), await server.open("127.0.0.2")];
    await ended(await server.open("127.0.0.2"));
    const other = await server.open("127.0.0.3");
    held[0]?.destroy();
    await eventually("the place is free again", () => server.isAdmitted("127.0.0.2"));
    expect(stillOpen([...held.slice(1), other])).toBe(3);
    expect(server.log.lines.some(({ fields }) => String(fields["error"]).includes("127.0.0.2 has too many"))).toBe(
      true,
    );
  });

  test("so has the server", async () => {
    await using server = await listen({ maxConnections: 4 });
    const held = await Promise.all([2, 3, 4, 5].map((last) => server.open(`127.0.0.${last}`)));
    await ended(await server.open("127.0.0.6"));
    expect(stillOpen(held)).toBe(4);
  });

  test("those who never speak make room for those who do", async () => {
    await using server = await listen({});
    const crowd: Socket[] = [];
    for (let index = 0; index < 512; index += 1) crowd.push(await server.open("127.0.0.2"));
    const answers = Array.from({ length: 100 }, () => server.isAdmitted("127.0.0.2"));
    expect(await Promise.all(answers)).toEqual(Array(100).fill(true));
    expect(stillOpen(crowd)).toBeLessThan(512);
  });

  test("an address with many unfinished handshakes makes room for itself, not at the cost of others", async () => {
    await using server = await listen({});
    const slow = await server.open("127.0.0.3");
    const crowd: Socket[] = [];
    for (let index = 0; index < 600; index += 1) crowd.push(await server.open("127.0.0.2"));
    await eventually("the crowd is thinned out", () => stillOpen(crowd) <= 512);
    expect(stillOpen(crowd)).toBe(512);
    expect(stillOpen([slow])).toBe(1);
  });
});
