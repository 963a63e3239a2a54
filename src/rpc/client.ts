import {
  type Client,
  type ClientReadableStream,
  type ClientWritableStream,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";
import { systemClock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { WireMethod } from "./codecs.ts";
import { connectionFault } from "./connection-fault.ts";
import type { MethodTypes, Service } from "./protos.ts";
import { faultFrom } from "./status.ts";

interface CallOptions {
  readonly signal?: AbortSignal;
  /** From the start of the call. Default: 30 s for a single response, none for a stream. */
  readonly deadlineMs?: number;
  readonly metadata?: Readonly<Record<string, string>>;
  /** Wait for a connection instead of failing while there is none. */
  readonly waitForReady?: boolean;
}

type ClientMethod<T> = T extends MethodTypes
  ? {
      unary: (request: T["sendRequest"], options?: CallOptions) => Promise<T["response"]>;
      serverStream: (request: T["sendRequest"], options?: CallOptions) => AsyncIterable<T["response"]>;
      clientStream: (requests: AsyncIterable<T["sendRequest"]>, options?: CallOptions) => Promise<T["response"]>;
      bidi: (requests: AsyncIterable<T["sendRequest"]>, options?: CallOptions) => AsyncIterable<T["response"]>;
    }[T["kind"]]
  : never;

/**
 * The methods of a service. They fail with a `Fault`, or with the signal's reason when it was aborted. A stream starts
 * when it is first read and is cancelled when its reader leaves.
 */
export type ClientOf<M extends object> = { readonly [K in keyof M]: ClientMethod<M[K]> };

export interface Connection {
  readonly client: Client;
  /** For messages. */
  readonly target: string;
  /** Why the last handshake failed. */
  lastFault(): Fault | undefined;
}

const DEADLINE_MS = 30_000;

export function typedClient<M extends object>(connection: Connection, service: Service<M>): ClientOf<M> {
  const methods = Object.entries(service.methods()).map(([name, method]) => [name, bind(connection, method)]);
  return Object.fromEntries(methods) as ClientOf<M>;
}

function bind(connection: Connection, method: WireMethod): unknown {
  const call = new Call(connection, method);
  if (method.responseStream) return (sent: object, options?: CallOptions) => call.stream(sent, options ?? {});
  return (sent: object, options?: CallOptions) => call.single(sent, options ?? {});
}

/** One method on one connection. */
class Call {
  readonly #connection: Connection;
  readonly #method: WireMethod;

  constructor(connection: Connection, method: WireMethod) {
    this.#connection = connection;
    this.#method = method;
  }

  async single(sent: object, options: CallOptions): Promise<object> {
    options.signal?.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<object>();
    const answered = (error: ServiceError | null, value?: object): void =>
      error === null && value !== undefined ? resolve(value) : reject(error);
    const call = this.#startSingle(sent, { deadlineMs: DEADLINE_MS, ...options }, answered);
    const stop = (): void => call.cancel();
    options.signal?.addEventListener("abort", stop, { once: true });
    try {
      return await promise;
    } catch (error) {
      throw this.#thrown(error, options);
    } finally {
      options.signal?.removeEventListener("abort", stop);
    }
  }

  async *stream(sent: object, options: CallOptions): AsyncGenerator<object, void, undefined> {
    options.signal?.throwIfAborted();
    const call = this.#startStream(sent, options);
    const stop = (): void => call.cancel();
    options.signal?.addEventListener("abort", stop, { once: true });
    try {
      yield* call as AsyncIterable<object>;
    } catch (error) {
      throw this.#thrown(error, options);
    } finally {
      options.signal?.removeEventListener("abort", stop);
      call.on("error", () => {});
      call.cancel();
    }
  }

  #startSingle(
    sent: object,
    options: CallOptions,
    answered: (error: ServiceError | null, value?: object) => void,
  ): { cancel(): void } {
    const { client } = this.#connection;
    const { path, requestSerialize, responseDeserialize, requestStream } = this.#method;
    const metadata = metadataOf(options);
    if (!requestStream)
      return client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        sent,
        metadata,
        wireOptions(options),
        answered,
      );
    const call = client.makeClientStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      metadata,
      wireOptions(options),
      answered,
    );
    call.on("error", (error) => answered(error as ServiceError));
    void pour(sent as AsyncIterable<object>, call);
    return call;
  }

  #startStream(sent: object, options: CallOptions): ClientReadableStream<object> {
    const { client } = this.#connection;
    const { path, requestSerialize, responseDeserialize, requestStream } = this.#method;
    const metadata = metadataOf(options);
    if (!requestStream)
      return client.makeServerStreamRequest(
        path,
        requestSerialize,
        responseDeserialize,
        sent,
        metadata,
        wireOptions(options),
      );
    const call = client.makeBidiStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      metadata,
      wireOptions(options),
    );
    void pour(sent as AsyncIterable<object>, call);
    return call;
  }

  #thrown(error: unknown, { signal }: CallOptions): unknown {
    if (signal?.aborted) return signal.reason;
    if (error instanceof PourError) return error.cause;
    if (!isServiceError(error)) return Fault.from(error);
    const fault = faultFrom(error.code, error.details, error.metadata);
    return fault.kind === "unavailable" ? connectionFault(fault, this.#connection) : fault;
  }
}

/** Marks an error of the caller's own iterable, which reaches the caller as it is. */
class PourError extends Error {}

/** Sends requests as the other side takes them, and stops asking for more once the call has ended. */
async function pour(requests: AsyncIterable<object>, call: ClientWritableStream<object>): Promise<void> {
  const iterator = requests[Symbol.asyncIterator]();
  const ended = new Promise<undefined>((done) => {
    call.once("status", () => done(undefined));
    call.once("close", () => done(undefined));
  });
  try {
    for (;;) {
      const next = await Promise.race([iterator.next(), ended]);
      if (next === undefined) break;
      if (next.done) {
        call.end();
        return;
      }
      await Promise.race([sent(call, next.value), ended]);
    }
  } catch (cause) {
    call.destroy(new PourError("the requests failed", { cause }));
    call.cancel();
  }
  iterator.return?.().catch(() => {});
}

function sent(call: ClientWritableStream<object>, message: object): Promise<void> {
  return new Promise((done) => {
    call.write(message, () => done());
  });
}

function metadataOf({ metadata, waitForReady }: CallOptions): Metadata {
  const made = new Metadata(waitForReady === undefined ? {} : { waitForReady });
  for (const [key, value] of Object.entries(metadata ?? {})) made.set(key, value);
  return made;
}

/** gRPC measures deadlines by the system clock, so this one is no matter of the caller's clock. */
function wireOptions({ deadlineMs }: CallOptions): { deadline?: Date } {
  return deadlineMs === undefined ? {} : { deadline: new Date(systemClock.now().getTime() + deadlineMs) };
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && typeof (error as Partial<ServiceError>).code === "number" && "details" in error;
}
