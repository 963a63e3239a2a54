import { once } from "node:events";
import { type ClientHttp2Session, type ClientHttp2Stream, connect, type Settings } from "node:http2";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { TlsIdentity } from "../../../src/rpc/tls.ts";
import { contextOptions } from "../../../src/rpc/tls.ts";
import { startServer, type TestServer } from "../../support/server.ts";

const GET_BUNDLE = "/spire.api.server.bundle.v1.Bundle/GetBundle";
const GET_LINKS = "/steeple.api.server.continuity.v1.Continuity/GetBundleLinks";
const EMPTY = Buffer.alloc(5);
const MIB = 1024 * 1024;
const [UNIMPLEMENTED, EXHAUSTED] = ["12", "8"];

let server: TestServer;
beforeAll(async () => {
  server = await startServer({ keyManager: "memory" });
});
afterAll(() => server[Symbol.asyncDispose]());

/** HTTP/2 by no library of gRPC's, which would not do such things. */
async function open(settings: Settings = {}, identity?: TlsIdentity): Promise<ClientHttp2Session> {
  const session = connect(`https://127.0.0.1:${server.port}`, {
    ...contextOptions(identity),
    ...{ rejectUnauthorized: false, settings },
  });
  session.on("error", () => undefined);
  await once(session, "remoteSettings");
  return session;
}

function call(session: ClientHttp2Session, path: string, more = {}): ClientHttp2Stream {
  const fixed = { ":method": "POST", ":path": path, te: "trailers", "content-type": "application/grpc" };
  return session.request({ ...fixed, ...more }).on("error", () => undefined);
}

async function statusOf(stream: ClientHttp2Stream): Promise<string> {
  const [headers] = (await once(stream, "response")) as [Record<string, string | undefined>];
  if (headers["grpc-status"] !== undefined) return headers["grpc-status"];
  const [trailers] = (await once(stream.resume(), "trailers")) as [Record<string, string | undefined>];
  return trailers["grpc-status"] ?? "";
}

function framed(message: Buffer, { packed = false, announced = message.length } = {}): Buffer {
  const head = Buffer.alloc(5);
  head[0] = packed ? 1 : 0;
  head.writeUInt32BE(announced, 1);
  return Buffer.concat([head, message]);
}

test("T-F4 nothing that comes packed is unpacked, as SPIRE has it: 4 KB would become 4 MB", async () => {
  const session = await open();
  const bomb = gzipSync(Buffer.alloc(4_000_000, Buffer.from([0x0a, 0x00])), { level: 9 });
  const packed = call(session, GET_LINKS, { "grpc-encoding": "gzip" });
  packed.end(framed(bomb, { packed: true }));
  expect(await statusOf(packed)).toBe(UNIMPLEMENTED);
  const plain = call(session, GET_LINKS, { "grpc-encoding": "gzip" });
  plain.end(EMPTY);
  expect(await statusOf(plain)).toBe("0");
  session.destroy();
});

describe("T-X9 a client without a certificate", () => {
  test("has fewer streams, and sends smaller messages, than one with", async () => {
    const agent = await server.attest();
    const [stranger, known] = [await open(), await open({}, agent.tls)];
    expect([stranger, known].map(({ remoteSettings }) => remoteSettings.maxConcurrentStreams)).toEqual([20, 100]);
    const sends = async (session: ClientHttp2Session, bytes: number): Promise<string> => {
      const stream = call(session, GET_BUNDLE);
      // An unknown field, which is passed over.
      const head = Buffer.from([0xfa, 0x7f, ...varint(bytes)]);
      stream.end(framed(Buffer.concat([head, Buffer.alloc(bytes)])));
      return statusOf(stream);
    };
    expect([await sends(stranger, MIB / 2), await sends(stranger, MIB)]).toEqual(["0", EXHAUSTED]);
    expect(await sends(known, 2 * MIB)).toBe("0");
    for (const session of [stranger, known]) session.destroy();
  });

  test.each<{ what: string; settings: Settings; act: (session: ClientHttp2Session) => void }>([
    {
      what: "sends half a request",
      settings: {},
      act: (session) => void call(session, GET_BUNDLE).write(framed(Buffer.alloc(1000), { announced: 1001 })),
    },
    {
      what: "never says that its request has ended",
      settings: {},
      act: (session) => void call(session, GET_BUNDLE).write(EMPTY),
    },
    {
      what: "does not take the answer",
      settings: { initialWindowSize: 0 },
      act: (session) => void call(session, GET_BUNDLE).end(EMPTY),
    },
  ])("that $what loses its connection, and others do not", { timeout: 60_000 }, async ({ settings, act }) => {
    const [slow, idle] = [await open(settings), await open()];
    act(slow);
    await once(slow, "close");
    expect(idle.closed).toBe(false);
    const stream = call(idle, GET_BUNDLE);
    stream.end(EMPTY);
    expect(await statusOf(stream)).toBe("0");
    idle.destroy();
    await server.untilLogged("Connection refused", { error: "the client does not go on with its call" });
  });
});

function varint(value: number): readonly number[] {
  return value < 128 ? [value] : [(value & 127) | 128, ...varint(Math.floor(value / 128))];
}
