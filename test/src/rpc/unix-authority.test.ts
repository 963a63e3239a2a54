import fc from "fast-check";
import { expect, test } from "vitest";
import { authorityMender } from "../../../src/rpc/unix-authority.ts";
import { rawGrpcCall } from "../../support/http2-call.ts";
import { startRpc } from "../../support/rpc.ts";

const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
const SETTINGS = frame(4, 0, Buffer.alloc(0));
const PATH = "/tmp/agent/public/api.sock";

test.each([PATH, "//", "a/b", "/run/A-Z_09~(!)/x"])(
  "WEP-03 a client that names %j as its authority is served",
  async (authority) => {
    await using server = await startRpc();
    const { trailers } = await rawGrpcCall(server.path, "/grpc.health.v1.Health/Check", Buffer.alloc(0), {
      ":authority": authority,
    });
    expect(trailers["grpc-status"]).toBe("0");
    expect(server.calls.map(({ caller }) => caller.process?.pid)).toEqual([process.pid]);
  },
);

test.each([
  { what: "kept in the table", first: 0x41 },
  { what: "not kept", first: 0x01 },
  { what: "never kept", first: 0x11 },
])(
  "an authority as it stands, $what, loses its slashes, however the bytes arrive; the method's path keeps its",
  ({ first }) => {
    for (const flags of [0x4, 0xc, 0x24, 0x2c]) {
      const made = (authority: string): Buffer =>
        Buffer.concat([
          PREFACE,
          SETTINGS,
          frame(
            1,
            flags,
            block(
              flags,
              [0x3f, 0xe1, 0x1f, 0x83],
              literal(0x44, PATH),
              literal(first, authority),
              literal(0x00, "x/y", "z/w"),
            ),
          ),
          frame(0, 1, Buffer.from("/tmp/data")),
        ]);
      const sent = made(PATH);
      const meant = made(PATH.replaceAll("/", "."));
      for (const size of [1, 7, sent.length]) expect(mended(sent, size)).toEqual(meant);
    }
  },
);

test("T-X9 bytes of any kind go on in the order and number in which they came", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.integer({ min: 1, max: 50 }), (tail, size) => {
      const sent = Buffer.concat([PREFACE, SETTINGS, frame(1, 4, Buffer.from(tail)), SETTINGS]);
      const arrived = mended(sent, size);
      expect(arrived.length).toBe(sent.length);
      expect(arrived.subarray(-SETTINGS.length)).toEqual(SETTINGS);
    }),
  );
});

function mended(sent: Buffer, size: number): Buffer {
  const mend = authorityMender();
  const pieces = [];
  for (let at = 0; at < sent.length; at += size)
    pieces.push(Buffer.from(mend(Buffer.from(sent.subarray(at, at + size)))));
  return Buffer.concat(pieces);
}

function frame(type: number, flags: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  return Buffer.concat([head, payload]);
}

/** With the padding and the priority that the flags tell of. */
function block(flags: number, ...fields: readonly (Buffer | readonly number[])[]): Buffer {
  const padding = (flags & 0x8) === 0 ? 0 : 3;
  return Buffer.concat([
    Buffer.from(padding === 0 ? [] : [padding]),
    Buffer.alloc((flags & 0x20) === 0 ? 0 : 5),
    ...fields.map((field) => Buffer.from(field)),
    Buffer.alloc(padding),
  ]);
}

function literal(first: number, ...texts: readonly string[]): Buffer {
  return Buffer.concat([
    Buffer.from([first]),
    ...texts.map((text) => Buffer.from([text.length, ...Buffer.from(text)])),
  ]);
}
