import type { Clock } from "../../src/runtime/clock.ts";
import { type PodList, parsePodList } from "./pods.ts";

export interface PodListsOptions {
  /** The kubelet's answer; the same object when nothing has changed. */
  readonly fetch: (signal: AbortSignal) => Promise<unknown>;
  /** How long a list is good at least for a caller who has seen none, and the longest wait for a newer one. */
  readonly intervalMs: number;
  readonly clock: Clock;
  /** Ends what is being fetched. */
  readonly signal: AbortSignal;
}

const FIRST_WAIT_MS = 25;
const GROWTH = 1.5;
/** The kubelet and we are busy with pod lists for a fifth of the time at most. */
const IDLE_SHARE = 4;
/** While every caller's container is known, for a hundredth; a list is good for longer the more it costs. */
const KEPT_SHARE = 100;
const MAX_AGE_MS = 5_000;

/** Pod lists for whoever asks: one request at a time, shared by all who wait, kept while it is fresh. */
export class PodLists {
  readonly #options: PodListsOptions;
  #running: Promise<PodList> | undefined;
  #held: { readonly list: PodList; readonly answer: unknown } | undefined;
  #startedAt = Number.NEGATIVE_INFINITY;
  #tookMs = 0;

  constructor(options: PodListsOptions) {
    this.#options = options;
  }

  /**
   * A list that is fresh and newer than the one seen. Who asks for the n-th time gets there in growing steps: a new
   * container is found soon, and one that never comes costs little.
   */
  async next(seen: number, attempt: number, signal: AbortSignal): Promise<PodList> {
    const { clock, intervalMs } = this.#options;
    for (;;) {
      signal.throwIfAborted();
      if (this.#running !== undefined) return await this.#running;
      const age = clock.monotonic() - this.#startedAt;
      const held = this.#held?.list;
      const maxAge = Math.max(intervalMs, Math.min(MAX_AGE_MS, this.#tookMs * KEPT_SHARE));
      if (held !== undefined && held.version > seen && age < maxAge) return held;
      const step = attempt === 0 ? 0 : Math.min(intervalMs, FIRST_WAIT_MS * GROWTH ** attempt);
      const wait = Math.max(step, Math.min(intervalMs, this.#tookMs * IDLE_SHARE)) - age;
      if (wait <= 0) return await this.#start();
      await clock.sleep(wait, signal);
    }
  }

  #start(): Promise<PodList> {
    this.#running = this.#fetch().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #fetch(): Promise<PodList> {
    const { clock, fetch, signal } = this.#options;
    this.#startedAt = clock.monotonic();
    try {
      const answer = await fetch(signal);
      const held = this.#held;
      const version = (held?.list.version ?? 0) + 1;
      const list =
        held !== undefined && held.answer === answer ? { ...held.list, version } : parsePodList(answer, version);
      this.#held = { list, answer };
      return list;
    } finally {
      this.#tookMs = clock.monotonic() - this.#startedAt;
    }
  }
}
