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
    let seen = -1;
    while (!signal.aborted) {
      if (seen === this.#version) await this.#changed(signal);
      else {
        seen = this.#version;
        yield this.#value;
      }
    }
  }

  /** Resolves with the first value, the current one included, that satisfies `test`. Rejects when aborted. */
  async until(test: (value: T) => boolean, signal: AbortSignal): Promise<T> {
    while (!test(this.#value)) {
      signal.throwIfAborted();
      await this.#changed(signal);
    }
    return this.#value;
  }

  #changed(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        signal.removeEventListener("abort", wake);
        this.#waiters.delete(wake);
        resolve();
      };
      this.#waiters.add(wake);
      signal.addEventListener("abort", wake, { once: true });
    });
  }
}
