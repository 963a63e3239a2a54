/**
 * The latest value of something, broadcast. A watcher gets the current value at once, then every newer one, skipping
 * those it was too slow for. Values are immutable snapshots, swapped whole.
 */
export class Feed<T> {
  #value: T;
  #version = 0;
  readonly #waiters = new Set<() => void>();

  constructor(initial: T) {
    this.#value = initial;
  }

  get value(): T {
    return this.#value;
  }

  set(value: T): void {
    this.#value = value;
    this.#version += 1;
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    for (const wake of waiters) wake();
  }

  /** Ends quietly when the signal is aborted. */
  async *watch(signal: AbortSignal): AsyncGenerator<T, void, undefined> {
    const watcher = new Waiter(this.#waiters, signal);
    let seen = -1;
    try {
      while (!signal.aborted) {
        if (seen === this.#version) await watcher.woken();
        else {
          seen = this.#version;
          yield this.#value;
        }
      }
    } finally {
      watcher.leave();
    }
  }

  /** Resolves with the first value, the current one included, that satisfies `test`. Rejects when aborted. */
  async until(test: (value: T) => boolean, signal: AbortSignal): Promise<T> {
    const watcher = new Waiter(this.#waiters, signal);
    try {
      while (!test(this.#value)) {
        signal.throwIfAborted();
        await watcher.woken();
      }
      return this.#value;
    } finally {
      watcher.leave();
    }
  }
}

/** Waits again and again, with one listener at the signal for all of it: where thousands wait, more would add up. */
class Waiter {
  readonly #waiters: Set<() => void>;
  readonly #signal: AbortSignal;
  readonly #wake = (): void => this.#resume?.();
  #resume: (() => void) | undefined;

  constructor(waiters: Set<() => void>, signal: AbortSignal) {
    this.#waiters = waiters;
    this.#signal = signal;
    signal.addEventListener("abort", this.#wake, { once: true });
  }

  /** Resolves at the next change, or when the signal is aborted. */
  woken(): Promise<void> {
    return new Promise((resolve) => {
      this.#resume = resolve;
      this.#waiters.add(this.#wake);
    });
  }

  leave(): void {
    this.#waiters.delete(this.#wake);
    this.#signal.removeEventListener("abort", this.#wake);
  }
}
