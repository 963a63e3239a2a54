import {
  type IncomingHttpHeaders,
  type IncomingMessage,
  Agent as PlainAgent,
  request as plainRequest,
} from "node:http";
import { Agent as TlsAgent, request as tlsRequest } from "node:https";
import { createSecureContext, getCACertificates, type SecureContext } from "node:tls";
import * as v from "valibot";
import type { Clock } from "./clock.ts";
import { Fault, isFault, messageOf } from "./fault.ts";

export interface HttpCall {
  readonly url: URL;
  readonly method?: "GET" | "POST" | "PUT";
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

export interface HttpAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

export interface HttpCallerOptions {
  readonly clock: Pick<Clock, "sleep">;
  /** Of every fault. */
  readonly code: string;
  /** Where `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are looked up; without, no proxy is used. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Default: 10 s. */
  readonly timeoutMs?: number;
  /** Default: 4 MiB. */
  readonly maxBytes?: number;
}

const TIMEOUT_MS = 10_000;
const MAX_BYTES = 4 * 1024 * 1024;
const MAX_HEADER_BYTES = 16 * 1024;
const MAX_SOCKETS = 32;

/**
 * Calls of web services: one deadline for the whole call, bounded answers, no redirects, TLS 1.2 or newer by the roots
 * of Node and of the machine. Connections are kept.
 */
export class HttpCaller {
  readonly #options: HttpCallerOptions;
  readonly #plain: PlainAgent;
  #tls: TlsAgent | undefined;

  constructor(options: HttpCallerOptions) {
    this.#options = options;
    this.#plain = new PlainAgent(agentOptions(options));
  }

  /** Throws `unavailable` unless there is a whole answer, of whatever status, in time. */
  async call(call: HttpCall, outer: AbortSignal): Promise<HttpAnswer> {
    outer.throwIfAborted();
    const { clock, timeoutMs = TIMEOUT_MS } = this.#options;
    const timeout = new AbortController();
    const signal = AbortSignal.any([outer, timeout.signal]);
    const timer = clock.sleep(timeoutMs, signal).then(
      () => timeout.abort(),
      () => undefined,
    );
    try {
      return await this.#exchange(call, signal);
    } catch (error) {
      outer.throwIfAborted();
      const reason = timeout.signal.aborted ? `no answer within ${timeoutMs / 1000} s` : messageOf(error);
      throw this.fault(`${call.url.host} does not answer: ${reason}`, error);
    } finally {
      timeout.abort();
      await timer;
    }
  }

  /** JSON of an answer of status 200, of the schema's form. Throws `unavailable` for everything else. */
  async json<S extends v.GenericSchema>(schema: S, call: HttpCall, signal: AbortSignal): Promise<v.InferOutput<S>> {
    const { status, body } = await this.call(call, signal);
    if (status !== 200) throw this.fault(`${call.url.host} answered with status ${status}`);
    return this.read(schema, body, call.url.host);
  }

  /** Throws `unavailable`. */
  read<S extends v.GenericSchema>(schema: S, body: Buffer, host: string): v.InferOutput<S> {
    try {
      return v.parse(schema, JSON.parse(body.toString("utf8")));
    } catch (error) {
      throw this.fault(`the answer of ${host} is not of the expected form`, error);
    }
  }

  fault(message: string, cause?: unknown): Fault {
    if (isFault(cause)) return cause;
    return new Fault("unavailable", message, { code: this.#options.code, cause });
  }

  async #exchange({ url, method = "GET", headers = {}, body }: HttpCall, signal: AbortSignal): Promise<HttpAnswer> {
    const secure = url.protocol === "https:";
    this.#tls ??= secure ? new TlsAgent({ ...agentOptions(this.#options), secureContext: trusted() }) : undefined;
    const common = { method, headers, signal, maxHeaderSize: MAX_HEADER_BYTES };
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const sent = secure
        ? tlsRequest(url, { ...common, agent: this.#tls }, resolve)
        : plainRequest(url, { ...common, agent: this.#plain }, resolve);
      sent.on("error", reject).end(body);
    });
    const answer = await collected(response, this.#options.maxBytes ?? MAX_BYTES);
    return { status: response.statusCode ?? 0, headers: response.headers, body: answer };
  }
}

function agentOptions({ env }: HttpCallerOptions) {
  const proxyEnv = env === undefined ? {} : { proxyEnv: { ...env } };
  return { keepAlive: true, maxSockets: MAX_SOCKETS, minVersion: "TLSv1.2" as const, ...proxyEnv };
}

let context: SecureContext | undefined;

/** The roots are parsed once, not for each connection. */
function trusted(): SecureContext {
  const ca = (): string[] => [...new Set([...getCACertificates("default"), ...getCACertificates("system")])];
  context ??= createSecureContext({ ca: ca(), minVersion: "TLSv1.2" });
  return context;
}

async function collected(response: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxBytes) throw new Error(`the answer is larger than ${maxBytes} bytes`);
    chunks.push(chunk);
  }
  if (!response.complete) throw new Error("the answer was cut off");
  return Buffer.concat(chunks);
}
