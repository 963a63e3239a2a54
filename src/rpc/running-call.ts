import { randomUUID } from "node:crypto";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Clock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { Log } from "../runtime/log.ts";
import type { Call, Caller, CallMetadata } from "./caller.ts";
import { Requests } from "./requests.ts";
import { statusOf } from "./status.ts";

export type WireCall = ServerDuplexStream<object, object>;

export interface MethodName {
  /** `/package.Service/Method`. */
  readonly path: string;
  readonly service: string;
  readonly method: string;
}

/** The usual end of a stream: one for all, as the stack of where each was found out says nothing. */
const CLIENT_LEFT = new Fault("cancelled", "the client has left");

/** The server's side of one call, from its headers to its status. Ends exactly once. */
export class RunningCall<Auth> implements Call<Auth> {
  readonly method: string;
  readonly caller: Caller;
  readonly metadata: CallMetadata;
  readonly requestId = randomUUID();
  readonly requests: Requests;
  readonly #name: MethodName;
  readonly #wire: WireCall;
  readonly #controller = new AbortController();
  readonly #parentLog: Log;
  #log: Log | undefined;
  #auth: Auth | undefined;
  readonly #clock: Clock;
  #end: { readonly fault: Fault | undefined } | undefined;
  #stalledSince: number | undefined;
  /** Of what is waited for now. */
  #giveUp: ((reason: unknown) => void) | undefined;

  constructor(parts: { name: MethodName; wire: WireCall; caller: Caller; log: Log; clock: Clock }) {
    const { wire } = parts;
    this.method = parts.name.path;
    this.caller = parts.caller;
    this.metadata = { get: (key) => wire.metadata.get(key).map(String) };
    this.#name = parts.name;
    this.#wire = wire;
    this.#clock = parts.clock;
    this.#parentLog = parts.log;
    this.requests = new Requests(wire, this.signal);
    wire.on("cancelled", () => this.#left());
    this.signal.addEventListener("abort", () => this.#giveUp?.(this.signal.reason), { once: true });
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get log(): Log {
    this.#log ??= this.#parentLog.child({
      service: this.#name.service,
      method: this.#name.method,
      request_id: this.requestId,
    });
    return this.#log;
  }

  /** What `admit` returned; read by handlers only, which run after it. */
  get auth(): Auth {
    return this.#auth as Auth;
  }

  admitted(auth: Auth): void {
    this.#auth = auth;
  }

  /**
   * The promise's value; rejects with the signal's reason as soon as the call is ended, whatever the promise does later.
   * One at a time.
   */
  orEnd<T>(promise: Promise<T>): Promise<T> {
    return new Promise((done, fail) => {
      if (this.signal.aborted) fail(this.signal.reason);
      this.#giveUp = fail;
      promise.then(done, fail);
    });
  }

  /** As `orEnd`, for what nobody but the client can bring about. */
  async fromClient<T>(promise: Promise<T>): Promise<T> {
    this.#stalledSince = this.#clock.monotonic();
    try {
      return await this.orEnd(promise);
    } finally {
      this.#stalledSince = undefined;
    }
  }

  /** Since when the client has kept it waiting, by the monotonic clock; undefined while it does not. */
  get stalledSince(): number | undefined {
    return this.#stalledSince;
  }

  /** How it ended; undefined while it runs. */
  get end(): { readonly fault: Fault | undefined } | undefined {
    return this.#end;
  }

  /** Resolves once the message has gone to the socket, so that a slow reader holds back its writer. */
  send(message: object): Promise<void> {
    return new Promise((done, fail) => {
      this.#wire.write(message, (error: unknown) => (error ? fail(error) : done()));
    });
  }

  succeed(): void {
    if (this.#end !== undefined) return;
    this.#end = { fault: undefined };
    this.#wire.end();
  }

  abort(fault: Fault): void {
    if (this.#end !== undefined) return;
    this.#end = { fault };
    this.#wire.emit("error", statusOf(fault));
    this.#controller.abort(fault);
  }

  /** The client has gone, or its deadline has passed; gRPC has ended the stream already. */
  #left(): void {
    if (this.#end !== undefined) return;
    const late = Number(this.#wire.getDeadline()) <= this.#clock.now().getTime();
    const fault = late ? new Fault("timeout", "the deadline of the call has passed") : CLIENT_LEFT;
    this.#end = { fault };
    this.#controller.abort(fault);
  }
}
