import type { Clock } from "../runtime/clock.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import { Feed } from "../runtime/feed.ts";
import type { EndpointOptions } from "./endpoint.ts";
import type { WatchEndpointOptions } from "./workload-api.ts";

export interface SourceOptions extends EndpointOptions {
  /** Gives up waiting for the first update. */
  readonly signal?: AbortSignal;
  readonly clock?: Clock;
  /** Told of every failure that the source lives through. */
  readonly onError?: (fault: Fault) => void;
}

type State<T> =
  | { readonly kind: "waiting" }
  | { readonly kind: "issued"; readonly value: T }
  | { readonly kind: "withdrawn"; readonly fault: Fault }
  | { readonly kind: "ended"; readonly fault: Fault };

/** Opens the stream that is followed. */
export type Watch<T> = (options: WatchEndpointOptions) => AsyncIterable<T>;

/**
 * The last value of one stream of an endpoint, kept current until it is disposed of: the machine inside every
 * source. What the endpoint withdraws is gone at once; while it is only out of reach, the last value stays.
 */
export class Followed<T extends object> implements AsyncDisposable {
  readonly #state = new Feed<State<T>>({ kind: "waiting" });
  readonly #stop = new AbortController();
  #following: Promise<void> = Promise.resolve();

  private constructor() {}

  /** Resolves with the first update. Throws when the endpoint refuses for good, or the signal is aborted first. */
  static async open<T extends object>(watch: Watch<T>, options: SourceOptions): Promise<Followed<T>> {
    const followed = new Followed<T>();
    followed.#following = followed.#follow(watch, options);
    try {
      const { signal = followed.#stop.signal } = options;
      const state = await followed.#state.until(({ kind }) => kind === "issued" || kind === "ended", signal);
      if (state.kind === "ended") throw state.fault;
      return followed;
    } catch (error) {
      await followed[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#following;
  }

  /** The last update whole. Throws `denied` when it was withdrawn. */
  get value(): T {
    const state = this.#state.value;
    if (state.kind === "issued") return state.value;
    if (state.kind === "waiting")
      throw new Fault("unavailable", "no update has been received yet", { code: "no-update" });
    throw state.fault;
  }

  /** Undefined while there is nothing. Ends with the signal, or when the source does. */
  async *watch(signal: AbortSignal): AsyncGenerator<T | undefined, void, undefined> {
    for await (const state of this.#state.watch(AbortSignal.any([signal, this.#stop.signal]))) {
      yield state.kind === "issued" ? state.value : undefined;
      if (state.kind === "ended") return;
    }
  }

  async #follow(watch: Watch<T>, options: SourceOptions): Promise<void> {
    const { signal: _opening, ...others } = options;
    const onError = (fault: Fault): void => {
      if (isFault(fault, "denied") && this.#state.value.kind === "issued")
        this.#state.set({ kind: "withdrawn", fault });
      options.onError?.(fault);
    };
    try {
      for await (const value of watch({ ...others, signal: this.#stop.signal, onError }))
        this.#state.set({ kind: "issued", value: Object.freeze(value) });
      if (!this.#stop.signal.aborted)
        this.#state.set({
          kind: "ended",
          fault: new Fault("unavailable", "the source is closed", { code: "source-closed" }),
        });
    } catch (error) {
      this.#state.set({ kind: "ended", fault: Fault.from(error) });
    }
  }
}
