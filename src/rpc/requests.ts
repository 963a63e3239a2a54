import type { ServerDuplexStream } from "@grpc/grpc-js";

/**
 * The messages of a client, read one at a time and only when asked for: what is not read stays on the wire, held back
 * by flow control. One reader.
 */
export class Requests implements AsyncIterableIterator<object> {
  readonly #pull: () => void;
  readonly #signal: AbortSignal;
  #waiting: PromiseWithResolvers<IteratorResult<object>> | undefined;
  #ended = false;

  constructor(wire: ServerDuplexStream<object, object>, signal: AbortSignal) {
    const read = wire._read.bind(wire);
    this.#pull = () => read(1);
    this.#signal = signal;
    // The stream would read ahead, up to 16 messages of full size.
    wire._read = () => {};
    wire.on("data", (value: object) => this.#deliver({ value, done: false }));
    wire.on("end", () => this.#finish());
    signal.addEventListener("abort", () => this.#waiting?.reject(signal.reason), { once: true });
  }

  next(): Promise<IteratorResult<object>> {
    if (this.#signal.aborted) return Promise.reject(this.#signal.reason);
    if (this.#ended) return Promise.resolve({ value: undefined, done: true });
    const waiting = Promise.withResolvers<IteratorResult<object>>();
    this.#waiting = waiting;
    this.#pull();
    return waiting.promise;
  }

  return(): Promise<IteratorResult<object>> {
    this.#finish();
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  #finish(): void {
    this.#ended = true;
    this.#deliver({ value: undefined, done: true });
  }

  #deliver(result: IteratorResult<object>): void {
    this.#waiting?.resolve(result);
    this.#waiting = undefined;
  }
}
