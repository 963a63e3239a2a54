import { once } from "node:events";
import { connect, type IncomingHttpHeaders } from "node:http2";
import { createConnection } from "node:net";
import type { Duplex } from "node:stream";

export interface RawAnswer {
  readonly headers: IncomingHttpHeaders;
  readonly trailers: IncomingHttpHeaders;
  /** Messages without their five bytes of frame. */
  readonly messages: readonly Buffer[];
}

/** One gRPC call over plain HTTP/2 on a Unix socket, or on what is opened, made without any gRPC library. */
export async function rawGrpcCall(
  to: string | (() => Duplex),
  method: string,
  message = Buffer.alloc(0),
  more = {},
): Promise<RawAnswer> {
  const session = connect("http://localhost", {
    createConnection: typeof to === "string" ? () => createConnection(to) : to,
  });
  try {
    const stream = session.request({
      ":method": "POST",
      ":path": method,
      "content-type": "application/grpc",
      te: "trailers",
      ...more,
    });
    let trailers: IncomingHttpHeaders = {};
    stream.on("trailers", (received) => {
      trailers = received;
    });
    stream.end(framed(message));
    const [headers] = (await once(stream, "response")) as [IncomingHttpHeaders];
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk as Buffer);
    return {
      headers,
      trailers: "grpc-status" in headers ? headers : trailers,
      messages: unframed(Buffer.concat(chunks)),
    };
  } finally {
    session.close();
  }
}

function framed(message: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

function unframed(bytes: Buffer): readonly Buffer[] {
  const messages: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = at + 5 + bytes.readUInt32BE(at + 1);
    messages.push(bytes.subarray(at + 5, end));
    at = end;
  }
  return messages;
}
