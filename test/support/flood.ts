import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as tlsConnect } from "node:tls";

/** What anyone can send to a port on this machine. Each resolves when it has done its worst. */
export type Flood = (port: number) => Promise<void>;

const CONNECTIONS = 40;
const FRAMES = 20_000;
const FRAMES_PER_WRITE = 500;
/** A peer that has hung up is no reason to wait. */
const PATIENCE_MS = 5_000;

const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");
const SETTINGS = frame(4, 0, 0);
/** POST / over https, from HPACK's static table. */
const REQUEST = Buffer.from([0x83, 0x84, 0x87]);
const CANCEL = Buffer.from([0, 0, 0, 8]);

/** Without TLS: what comes before any handshake. */
export const plainFloods: Readonly<Record<string, Flood>> = {
  "random bytes": (port) => many((index) => send(port, [randomBytes(64 + index * 100)])),
  "half a TLS handshake": (port) => many(() => send(port, [Buffer.from("16030102000100", "hex"), randomBytes(40)])),
  "a megabyte of HTTP/1.1 headers": (port) =>
    send(port, ["GET / HTTP/1.1\r\n", ...Array.from({ length: 1000 }, (_, at) => `x-${at}: ${"y".repeat(1000)}\r\n`)]),
  "HTTP/1.1 that never ends": (port) => many(() => send(port, ["GET / HTTP/1.1\r\nhost: x\r\n", "x"])),
  "connections that vanish": (port) =>
    many(async () => {
      connect(port, "127.0.0.1")
        .on("error", () => undefined)
        .destroy();
    }),
};

/** Over TLS without a client certificate, in HTTP/2 where the server speaks that. */
export const http2Floods: Readonly<Record<string, Flood>> = {
  "streams that are reset at once": (port) =>
    frames(port, (index) => {
      const stream = 1 + 2 * index;
      return Buffer.concat([frame(1, 4, stream, REQUEST), frame(3, 0, stream, CANCEL)]);
    }),
  "headers that go on for ever": (port) =>
    frames(port, (index) => (index === 0 ? frame(1, 0, 1, REQUEST) : frame(9, 0, 1, literal(index)))),
  pings: (port) => frames(port, () => frame(6, 0, 0, Buffer.alloc(8))),
  settings: (port) => frames(port, () => SETTINGS),
  "empty data": (port) => frames(port, (index) => (index === 0 ? frame(1, 4, 1, REQUEST) : frame(0, 0, 1))),
  junk: (port) => frames(port, () => randomBytes(64)),
};

async function many(work: (index: number) => Promise<void>): Promise<void> {
  await Promise.all(Array.from({ length: CONNECTIONS }, (_, index) => work(index)));
}

async function send(port: number, chunks: readonly (string | Buffer)[]): Promise<void> {
  const socket = connect(port, "127.0.0.1").on("error", () => undefined);
  await write(socket, chunks);
}

/** Writes, gives the peer the time to answer by hanging up, and hangs up itself. */
async function write(socket: Socket, chunks: Iterable<string | Buffer>): Promise<void> {
  socket.resume();
  const gone = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  const late = new Promise<void>((resolve) => setTimeout(resolve, PATIENCE_MS).unref());
  const written = (async () => {
    for (const chunk of chunks) {
      if (socket.destroyed) return;
      if (!socket.write(chunk)) await Promise.race([new Promise((resolve) => socket.once("drain", resolve)), gone]);
    }
    socket.end();
  })();
  await Promise.race([Promise.all([written, gone]), late]);
  socket.destroy();
}

async function frames(port: number, make: (index: number) => Buffer): Promise<void> {
  const socket = tlsConnect({ port, host: "127.0.0.1", ALPNProtocols: ["h2"], rejectUnauthorized: false });
  socket.on("error", () => undefined);
  await once(socket, "secureConnect").catch(() => undefined);
  const parts = function* (): Generator<Buffer> {
    yield Buffer.concat([PREFACE, SETTINGS]);
    for (let from = 0; from < FRAMES; from += FRAMES_PER_WRITE)
      yield Buffer.concat(Array.from({ length: FRAMES_PER_WRITE }, (_, at) => make(from + at)));
  };
  await write(socket, parts());
}

function frame(type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** A header of its own, without indexing. */
function literal(index: number): Buffer {
  const name = Buffer.from(`x-${index}`);
  return Buffer.concat([Buffer.from([0, name.length]), name, Buffer.from([1]), Buffer.from("y")]);
}
