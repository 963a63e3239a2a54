import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import {
  createSecureServer,
  createServer,
  type Http2SecureServer,
  type Http2Server,
  type IncomingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from "node:http2";
import type { AddressInfo, ListenOptions } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TLSSocket } from "node:tls";
import type { JWTBundlesResponse } from "../../src/rpc/gen/JWTBundlesResponse.ts";
import type { JWTSVIDResponse } from "../../src/rpc/gen/JWTSVIDResponse.ts";
import type { FetchJWTSVIDResponse } from "../../src/rpc/gen/spiffe/broker/FetchJWTSVIDResponse.ts";
import type { SubscribeToX509SVIDResponse } from "../../src/rpc/gen/spiffe/broker/SubscribeToX509SVIDResponse.ts";
import type { ValidateJWTSVIDResponse } from "../../src/rpc/gen/ValidateJWTSVIDResponse.ts";
import type { WITBundlesResponse } from "../../src/rpc/gen/WITBundlesResponse.ts";
import type { WITSVIDResponse } from "../../src/rpc/gen/WITSVIDResponse.ts";
import type { X509BundlesResponse } from "../../src/rpc/gen/X509BundlesResponse.ts";
import type { X509SVIDResponse } from "../../src/rpc/gen/X509SVIDResponse.ts";
import { BrokerApi, WorkloadApi } from "../../src/rpc/protos.ts";
import type { Clock } from "../../src/runtime/clock.ts";

type FakeMessage =
  | X509SVIDResponse
  | X509BundlesResponse
  | JWTSVIDResponse
  | JWTBundlesResponse
  | ValidateJWTSVIDResponse
  | WITSVIDResponse
  | WITBundlesResponse
  | SubscribeToX509SVIDResponse
  | FetchJWTSVIDResponse;

const METHODS = { ...WorkloadApi.methods(), ...BrokerApi.methods() };

export interface FakeCall {
  readonly method: string;
  /** By the clock of the test. */
  readonly at: number;
  readonly headers: IncomingHttpHeaders;
  readonly stream: FakeStream;
  /** The encoded request, as far as it has come. */
  request(): Buffer;
  /** Of the connection's client certificate, where there is TLS. */
  readonly serialNumber: string | undefined;
}

/** The agent's own certificate, for endpoints that have TLS; every client certificate is taken. */
export interface FakeTls {
  readonly cert: string;
  readonly key: string;
}

/** What the agent does with one call. */
export type Step = (stream: FakeStream) => void;

/**
 * A Workload API that does what the test says, down to the frames, and remembers every call. It shares no code with the
 * real one but the message definitions.
 */
export class FakeAgent implements AsyncDisposable {
  readonly path: string;
  readonly calls: FakeCall[] = [];
  readonly #clock: Clock;
  /** Changes what later listeners show. */
  tls: FakeTls | undefined;
  readonly #sessions = new Set<ServerHttp2Session>();
  readonly #steps: Step[] = [];
  #server: Http2Server | Http2SecureServer | undefined;

  private constructor(path: string, clock: Clock) {
    this.path = path;
    this.#clock = clock;
  }

  /** Each call takes the next step; the last one serves all that follow. */
  static async start(clock: Clock, ...steps: readonly Step[]): Promise<FakeAgent> {
    const agent = await FakeAgent.absent(clock, ...steps);
    await agent.listen();
    return agent;
  }

  /** Only the path; nobody listens yet. */
  static async absent(clock: Clock, ...steps: readonly Step[]): Promise<FakeAgent> {
    const folder = await mkdtemp(join(tmpdir(), "steeple-fa-"));
    const agent = new FakeAgent(join(folder, "api.sock"), clock);
    agent.script(...steps);
    return agent;
  }

  get socket(): string {
    return `unix://${this.path}`;
  }

  /** How many are open. */
  get connections(): number {
    return this.#sessions.size;
  }

  /** Adds steps. */
  script(...steps: readonly Step[]): void {
    this.#steps.push(...steps);
  }

  /** On loopback instead of the path; gives the address as `SPIFFE_ENDPOINT_SOCKET` has it. */
  async listenTcp(host = "127.0.0.1"): Promise<string> {
    await this.listen({ host, port: 0 });
    const port = (this.#server?.address() as AddressInfo | undefined)?.port;
    return `tcp://${host.includes(":") ? `[${host}]` : host}:${port}`;
  }

  async listen(where: string | ListenOptions = this.path): Promise<void> {
    const server =
      this.tls === undefined
        ? createServer()
        : createSecureServer({ ...this.tls, requestCert: true, rejectUnauthorized: false });
    server.on("session", (session) => {
      this.#sessions.add(session);
      session.on("close", () => this.#sessions.delete(session)).on("error", () => undefined);
    });
    server.on("stream", (stream, headers) => this.#take(stream as ServerHttp2Stream, headers));
    server.listen(where);
    await once(server, "listening");
    this.#server = server;
  }

  /** Closes the listener and resets every connection. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (server === undefined) return;
    const closed = new Promise((resolve) => server.close(resolve));
    for (const session of this.#sessions) session.destroy();
    await closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await rm(join(this.path, ".."), { recursive: true, force: true });
  }

  #take(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    stream.on("error", () => undefined);
    const received: Buffer[] = [];
    stream.on("data", (part: Buffer) => received.push(part));
    const call = {
      method: String(headers[":path"]),
      at: this.#clock.monotonic(),
      headers,
      stream: new FakeStream(stream, String(headers[":path"])),
      request: () => Buffer.concat(received).subarray(5),
      serialNumber: (stream.session?.socket as Partial<TLSSocket> | undefined)?.getPeerX509Certificate?.()
        ?.serialNumber,
    };
    this.calls.push(call);
    const step = this.#steps[Math.min(this.calls.length, this.#steps.length) - 1];
    step?.(call.stream);
  }
}

/** The agent's end of one call. */
export class FakeStream {
  readonly #stream: ServerHttp2Stream;
  readonly method: string;
  #trailers: Record<string, string> = { "grpc-status": "0" };
  /** Resolves when the client ends it, or the connection. */
  readonly closed: Promise<unknown>;

  constructor(stream: ServerHttp2Stream, path: string) {
    this.#stream = stream;
    this.method = path.slice(path.lastIndexOf("/") + 1);
    this.closed = new Promise((resolve) => stream.once("close", resolve));
  }

  get isOpen(): boolean {
    return !this.#stream.closed && !this.#stream.destroyed;
  }

  /** Bytes are sent as they are, as the message of the call's method. */
  send(message: FakeMessage | Uint8Array): this {
    const payload = message instanceof Uint8Array ? message : this.#encode(message);
    const frame = Buffer.alloc(5 + payload.length);
    frame.writeUInt32BE(payload.length, 1);
    frame.set(payload, 5);
    this.#open();
    this.#stream.write(frame);
    return this;
  }

  /** Ends the call with a status, and these details. */
  end(code: number, message = "", details?: Buffer): void {
    this.#trailers = { "grpc-status": String(code), "grpc-message": encodeURIComponent(message) };
    if (details !== undefined) this.#trailers["grpc-status-details-bin"] = details.toString("base64");
    this.#open();
    this.#stream.end();
  }

  goaway(): void {
    this.#stream.session?.goaway();
  }

  /** Without a word. */
  dropConnection(): void {
    this.#stream.session?.destroy();
  }

  #open(): void {
    if (this.#stream.headersSent) return;
    this.#stream.on("wantTrailers", () => this.#stream.sendTrailers(this.#trailers));
    this.#stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
  }

  #encode(message: object): Uint8Array {
    const definition = METHODS[this.method as keyof typeof METHODS];
    if (definition === undefined) throw new Error(`no method ${this.method}`);
    return definition.responseSerialize(message as never);
  }
}

/** Answers with one message, as unary methods do. */
export function reply(message: FakeMessage): Step {
  return (stream) => stream.send(message).end(0);
}

/** Does as the step of the method says. */
export function byMethod(steps: Readonly<Record<string, Step>>): Step {
  return (stream) => steps[stream.method]?.(stream);
}

/** Ends a call with this status, and no message before it. */
export function refuse(code: number, message = "", details?: Buffer): Step {
  return (stream) => stream.end(code, message, details);
}

/** Sends these messages and keeps the stream open. */
export function hold(...messages: readonly FakeMessage[]): Step {
  return (stream) => {
    for (const message of messages) stream.send(message);
  };
}
