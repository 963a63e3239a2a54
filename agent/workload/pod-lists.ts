import type { Clock } from "../../src/runtime/clock.ts";
import { type Pod, type PodList, type PodSearch, type PodSource, podListOf } from "./pods.ts";

export interface PodListsOptions {
  /** The kubelet's pods; the same array when nothing has changed. */
  readonly fetch: (signal: AbortSignal) => Promise<readonly Pod[]>;
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
/** While every caller's container is known, for a two-hundredth; a list is good for longer the more it costs. */
const KEPT_SHARE = 200;
const MAX_AGE_MS = 5_000;

interface Held {
  readonly list: PodList;
  readonly pods: readonly Pod[];
  readonly number: number;
}

/** Pod lists for whoever asks: one request at a time, shared by all who wait, kept while it is fresh. */
export class PodLists implements PodSource {
  readonly #options: PodListsOptions;
  #running: Promise<Held> | undefined;
  #held: Held | undefined;
  #startedAt = Number.NEGATIVE_INFINITY;
  #tookMs = 0;

  constructor(options: PodListsOptions) {
    this.#options = options;
  }

  /** Asks anew in growing steps: a new container is found soon, and one that never comes costs little. */
  search(): PodSearch {
    let seen = 0;
    let attempt = 0;
    return {
      next: async (signal) => {
        const turn = attempt;
        attempt += 1;
        const { list, number } = await this.#next(seen, turn, signal);
        seen = number;
        return list;
      },
    };
  }

  async #next(seen: number, attempt: number, signal: AbortSignal): Promise<Held> {
    const { clock, intervalMs } = this.#options;
    for (;;) {
      signal.throwIfAborted();
      if (this.#running !== undefined) return await this.#running;
      const age = clock.monotonic() - this.#startedAt;
      const held = this.#held;
      const maxAge = Math.max(intervalMs, Math.min(MAX_AGE_MS, this.#tookMs * KEPT_SHARE));
      if (held !== undefined && held.number > seen && age < maxAge) return held;
      const step = attempt === 0 ? 0 : Math.min(intervalMs, FIRST_WAIT_MS * GROWTH ** attempt);
      const wait = Math.max(step, Math.min(intervalMs, this.#tookMs * IDLE_SHARE)) - age;
      if (wait <= 0) return await this.#start();
      await clock.sleep(wait, signal);
    }
  }

  #start(): Promise<Held> {
    this.#running = this.#fetch().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #fetch(): Promise<Held> {
    const { clock, fetch, signal } = this.#options;
    this.#startedAt = clock.monotonic();
    try {
      const pods = await fetch(signal);
      const before = this.#held;
      const list = before?.pods === pods ? before.list : podListOf(pods, "the kubelet");
      this.#held = { list, pods, number: (before?.number ?? 0) + 1 };
      return this.#held;
    } finally {
      this.#tookMs = clock.monotonic() - this.#startedAt;
    }
  }
}
