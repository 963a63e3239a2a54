import { once } from "node:events";
import { type ClientHttp2Session, type ClientHttp2Stream, connect, type OutgoingHttpHeaders } from "node:http2";
import { connect as connectSocket } from "node:net";
import type { X509BundlesResponse__Output } from "../../src/rpc/gen/X509BundlesResponse.ts";
import type { X509SVIDResponse__Output } from "../../src/rpc/gen/X509SVIDResponse.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { eventually } from "./eventually.ts";

export const SECURITY_HEADER = { "workload.spiffe.io": "true" } as const;

const EMPTY_MESSAGE = Buffer.alloc(5);

/** HTTP/2 without TLS to a Unix socket: a workload that uses no library of ours, nor of anybody's. */
export class RawClient implements AsyncDisposable {
  readonly #session: ClientHttp2Session;

  constructor(path: string) {
    this.#session = connect("http://localhost", { createConnection: () => connectSocket(path) });
    this.#session.on("error", () => undefined);
  }

  /** One call. `path` is literal; `body` is sent as it is. */
  call(path: string, headers: OutgoingHttpHeaders = SECURITY_HEADER, body: Uint8Array = EMPTY_MESSAGE): RawCall {
    const fixed = { ":method": "POST", ":path": path, te: "trailers", "content-type": "application/grpc" };
    return new RawCall(this.#session.request({ ...fixed, ...headers }), body);
  }

  svids(headers?: OutgoingHttpHeaders): RawCall {
    return this.call("/SpiffeWorkloadAPI/FetchX509SVID", headers);
  }

  bundles(headers?: OutgoingHttpHeaders): RawCall {
    return this.call("/SpiffeWorkloadAPI/FetchX509Bundles", headers);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#session.destroy();
  }
}

export interface RawStatus {
  readonly code: number;
  readonly message: string;
}

/** The messages and the status of one call, as they come. */
export class RawCall {
  readonly messages: Buffer[] = [];
  readonly status: Promise<RawStatus>;
  #pending = Buffer.alloc(0);
  readonly #stream: ClientHttp2Stream;

  constructor(stream: ClientHttp2Stream, body: Uint8Array) {
    this.#stream = stream;
    this.status = new Promise((resolve) => {
      const take = (headers: object): void => {
        const { "grpc-status": code, "grpc-message": text = "" } = headers as Record<string, string>;
        if (code !== undefined) resolve({ code: Number(code), message: decodeURIComponent(text) });
      };
      stream.on("response", take).on("trailers", take);
      stream.on("error", (error) => resolve({ code: -1, message: error.message }));
      stream.on("close", () => resolve({ code: -1, message: "closed" }));
    });
    stream.on("data", (data: Buffer) => this.#take(data));
    stream.end(body);
  }

  /** Resolves with the first message, without polling. */
  async first(): Promise<void> {
    await this.next(1);
  }

  /** Resolves once this many messages have come, without polling. */
  async next(count: number): Promise<void> {
    while (this.messages.length < count) await once(this.#stream, "data");
  }

  cancel(): void {
    this.#stream.close(8);
  }

  /** Waits until this many messages have come, and gives the last of them. */
  async x509Svids(count = 1): Promise<X509SVIDResponse__Output> {
    return WorkloadApi.methods()["FetchX509SVID"]?.responseDeserialize(
      await this.#message(count),
    ) as X509SVIDResponse__Output;
  }

  async x509Bundles(count = 1): Promise<X509BundlesResponse__Output> {
    return WorkloadApi.methods()["FetchX509Bundles"]?.responseDeserialize(
      await this.#message(count),
    ) as X509BundlesResponse__Output;
  }

  async #message(count: number): Promise<Buffer> {
    return eventually(`message ${count}`, () => this.messages[count - 1]);
  }

  #take(data: Buffer): void {
    this.#pending = Buffer.concat([this.#pending, data]);
    while (this.#pending.length >= 5) {
      const end = 5 + this.#pending.readUInt32BE(1);
      if (this.#pending.length < end) return;
      this.messages.push(this.#pending.subarray(5, end));
      this.#pending = this.#pending.subarray(end);
    }
  }
}
