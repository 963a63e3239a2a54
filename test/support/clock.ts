import type { Clock } from "../../src/runtime/clock.ts";
import { systemClock } from "../../src/runtime/clock.ts";

interface Sleeper {
  readonly due: number;
  wake(): void;
}

/** Stands still until it's told to move. Chance is a constant in the middle of its range. */
export class FakeClock implements Clock {
  #wall: number;
  #spent = 0;
  #sleepers: Sleeper[] = [];
  readonly #chance: number;

  constructor(start = "2026-01-01T00:00:00Z", chance = 0.5) {
    this.#wall = Date.parse(start);
    this.#chance = chance;
  }

  now = (): Date => new Date(this.#wall);
  monotonic = (): number => this.#spent;
  random = (): number => this.#chance;

  sleep = (ms: number, signal?: AbortSignal): Promise<void> =>
    new Promise((resolve, reject) => {
      const sleeper = { due: this.#spent + ms, wake: resolve };
      this.#sleepers.push(sleeper);
      const abort = (): void => {
        this.#sleepers = this.#sleepers.filter((other) => other !== sleeper);
        reject(signal?.reason as Error);
      };
      if (signal?.aborted) abort();
      else signal?.addEventListener("abort", abort, { once: true });
    });

  /** How many wait, so that a test can see that work has come to rest. */
  get sleeping(): number {
    return this.#sleepers.length;
  }

  /** Time passes: wall and timers together, one sleeper after the other, each with the time to act. */
  async advance(ms: number): Promise<void> {
    const end = this.#spent + ms;
    for (;;) {
      await settled();
      const next = this.#sleepers.filter(({ due }) => due <= end).sort((a, b) => a.due - b.due)[0];
      if (next === undefined) break;
      this.#sleepers = this.#sleepers.filter((other) => other !== next);
      this.#moveTo(next.due);
      next.wake();
    }
    this.#moveTo(end);
    await settled();
  }

  /** Somebody sets the wall clock; timers know nothing of it. */
  step(ms: number): void {
    this.#wall += ms;
  }

  #moveTo(spent: number): void {
    const ms = Math.max(0, spent - this.#spent);
    this.#spent += ms;
    this.#wall += ms;
  }
}

/** The system's timers with a wall clock that can be set wrong. */
export class SteppedClock implements Clock {
  #offset = 0;

  now = (): Date => new Date(systemClock.now().getTime() + this.#offset);
  monotonic = systemClock.monotonic;
  random = systemClock.random;
  sleep = systemClock.sleep;

  step(ms: number): void {
    this.#offset += ms;
  }
}

/** Lets everything that is ready to run do so. */
async function settled(): Promise<void> {
  for (let turn = 0; turn < 5; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}
