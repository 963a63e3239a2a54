import type { Clock } from "../../src/runtime/clock.ts";

/** Tells the followers of the feed, here and on other servers, that there may be changes. */
export interface Waker extends AsyncDisposable {
  /** Called after every commit. Never throws, never waits. */
  changed(): void;
  /** As `ChangeStore.wake`. */
  wake(signal: AbortSignal): AsyncIterable<void>;
}

/** The net below notifications, and what is left without them. */
export const POLL_MS = 1000;

/** Wakes within this process: all there is for a database that nobody else can open. */
export class LocalWaker implements Waker {
  readonly #clock: Clock;
  readonly #pollMs: () => number;
  readonly #waiting = new Set<() => void>();
  #rings = 0;

  constructor(clock: Clock, pollMs: () => number = () => POLL_MS) {
    this.#clock = clock;
    this.#pollMs = pollMs;
  }

  changed(): void {
    this.#rings += 1;
    for (const wake of this.#waiting) wake();
  }

  async *wake(signal: AbortSignal): AsyncGenerator<void, void, undefined> {
    let seen = -1;
    while (!signal.aborted) {
      if (seen === this.#rings) await this.#ringOrPoll(signal);
      if (signal.aborted) return;
      seen = this.#rings;
      yield;
    }
  }

  async #ringOrPoll(signal: AbortSignal): Promise<void> {
    const enough = new AbortController();
    const wake = (): void => enough.abort();
    this.#waiting.add(wake);
    signal.addEventListener("abort", wake, { once: true });
    await this.#clock.sleep(this.#pollMs(), enough.signal).catch(() => undefined);
    signal.removeEventListener("abort", wake);
    this.#waiting.delete(wake);
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
