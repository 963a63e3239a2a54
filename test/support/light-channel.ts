import { once } from "node:events";
import { type ClientHttp2Session, type ClientHttp2Stream, connect as http2Connect } from "node:http2";
import { connect, createSecureContext, type TLSSocket } from "node:tls";
import type { Certificate } from "../../src/crypto/certificate.ts";
import type { MethodTypes, Service } from "../../src/rpc/protos.ts";
import { faultFrom } from "../../src/rpc/status.ts";
import { contextOptions, peerChain, type TlsIdentity } from "../../src/rpc/tls.ts";
import { Fault } from "../../src/runtime/fault.ts";

export interface LightTarget {
  readonly address: string;
  readonly port: number;
  /** Throws to refuse the server. */
  readonly verifyServer: (chain: readonly Certificate[]) => void;
  /** Which of this machine's addresses to come from. */
  readonly localAddress?: string;
}

type MethodName<M> = Extract<keyof M, string>;
type Sent<T> = T extends MethodTypes ? T["sendRequest"] : never;
type Received<T> = T extends MethodTypes ? T["response"] : never;

/**
 * gRPC on one TLS connection, with little more memory than Node's HTTP/2 session takes, so that thousands fit into one
 * process. It never reconnects.
 */
export class LightChannel implements Disposable {
  readonly closed: Promise<void>;
  readonly #session: ClientHttp2Session;

  private constructor(session: ClientHttp2Session) {
    this.#session = session;
    this.closed = new Promise((resolve) => session.once("close", () => resolve()));
  }

  static async open(target: LightTarget, identity: TlsIdentity): Promise<LightChannel> {
    const { address: host, port, localAddress } = target;
    const socket = connect({
      ...{ host, port, ALPNProtocols: ["h2"], rejectUnauthorized: false },
      ...(localAddress === undefined ? {} : { localAddress }),
      secureContext: createSecureContext(contextOptions(identity)),
    });
    try {
      await once(socket, "secureConnect");
      target.verifyServer(peerChain(socket));
    } catch (cause) {
      socket.destroy();
      throw new Fault("unavailable", "no connection to the server", { cause });
    }
    return new LightChannel(sessionOn(socket));
  }

  /** Throws the status as a fault. */
  async unary<M extends object, K extends MethodName<M>>(
    service: Service<M>,
    method: K,
    request: Sent<M[K]>,
  ): Promise<Received<M[K]>> {
    const stream = this.stream(service, method);
    stream.send(request);
    stream.end();
    for await (const response of stream) return response;
    throw new Fault("unavailable", "the call ended without an answer");
  }

  stream<M extends object, K extends MethodName<M>>(service: Service<M>, method: K): LightStream<M[K]> {
    const definition = service.methods()[method];
    if (definition === undefined) throw new Error(`${service.name} has no method ${method}`);
    const { path, requestSerialize, responseDeserialize } = definition;
    if (this.#session.closed || this.#session.destroyed) throw new Fault("unavailable", "the connection is closed");
    const headers = { ":method": "POST", ":path": path, te: "trailers", "content-type": "application/grpc" };
    return new LightStream(this.#session.request(headers), {
      encode: requestSerialize as (message: Sent<M[K]>) => Buffer,
      decode: responseDeserialize as (bytes: Buffer) => Received<M[K]>,
    });
  }

  [Symbol.dispose](): void {
    this.#session.destroy();
  }
}

function sessionOn(socket: TLSSocket): ClientHttp2Session {
  const session = http2Connect("https://server", { createConnection: () => socket, settings: { enablePush: false } });
  session.on("error", () => undefined);
  return session;
}

interface Codec<T> {
  encode(message: Sent<T>): Buffer;
  decode(bytes: Buffer): Received<T>;
}

const FRAME_HEADER = 5;

/** One call. Iterating gives its responses and throws its status. */
export class LightStream<T> implements AsyncIterable<Received<T>>, Disposable {
  readonly #stream: ClientHttp2Stream;
  readonly #codec: Codec<T>;
  readonly #received: Received<T>[] = [];
  #pending: Buffer = Buffer.alloc(0);
  #status: { readonly code: number; readonly message: string } | undefined;
  #ended = false;
  #wake: (() => void) | undefined;

  constructor(stream: ClientHttp2Stream, codec: Codec<T>) {
    this.#stream = stream;
    this.#codec = codec;
    const status = (headers: Readonly<Record<string, unknown>>): void => {
      const { "grpc-status": code, "grpc-message": text = "" } = headers;
      if (code !== undefined) this.#status = { code: Number(code), message: decodeURIComponent(String(text)) };
    };
    stream.on("response", status).on("trailers", status);
    stream.on("data", (chunk: Buffer) => this.#take(chunk));
    stream.on("error", () => undefined);
    stream.on("close", () => {
      this.#ended = true;
      this.#wake?.();
    });
  }

  send(message: Sent<T>): void {
    if (this.#stream.destroyed || this.#stream.writableEnded) return;
    const payload = this.#codec.encode(message);
    const frame = Buffer.allocUnsafe(FRAME_HEADER + payload.length);
    frame.writeUInt8(0, 0);
    frame.writeUInt32BE(payload.length, 1);
    frame.set(payload, FRAME_HEADER);
    this.#stream.write(frame);
  }

  /** Nothing more will be sent. */
  end(): void {
    if (!this.#stream.destroyed) this.#stream.end();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Received<T>, void, undefined> {
    try {
      for (;;) {
        for (let next = this.#received.shift(); next !== undefined; next = this.#received.shift()) yield next;
        if (this.#ended) break;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
      if (this.#status === undefined) throw new Fault("unavailable", "the connection was lost");
      if (this.#status.code !== 0) throw faultFrom(this.#status.code, this.#status.message, undefined);
    } finally {
      this[Symbol.dispose]();
    }
  }

  /** Cancels the call, if it still runs. */
  [Symbol.dispose](): void {
    if (!this.#stream.destroyed) this.#stream.close(CANCEL);
  }

  #take(chunk: Buffer): void {
    this.#pending = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    while (this.#pending.length >= FRAME_HEADER) {
      const end = FRAME_HEADER + this.#pending.readUInt32BE(1);
      if (this.#pending.length < end) break;
      this.#received.push(this.#codec.decode(this.#pending.subarray(FRAME_HEADER, end)));
      this.#pending = this.#pending.subarray(end);
    }
    this.#wake?.();
  }
}

const CANCEL = 8;
