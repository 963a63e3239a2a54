import { setTimeout as delay } from "node:timers/promises";

/** Time and chance as arguments: the only door to the system clock, timers and `Math.random`. */
export interface Clock {
  now(): Date;
  /** Milliseconds that never go backwards; for measuring spans only. */
  monotonic(): number;
  /** Resolves after `ms`; rejects with the signal's reason when aborted first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Uniform in [0, 1). For jitter, never for secrets. */
  random(): number;
}

/** The longest wait a timer holds; longer sleeps are cut into pieces. */
const LONGEST_TIMER = 0x7fffffff;

export const systemClock: Clock = {
  now: () => new Date(),
  monotonic: () => performance.now(),
  random: () => Math.random(),
  async sleep(ms, signal) {
    let left = Math.max(0, ms);
    do {
      const piece = Math.min(left, LONGEST_TIMER);
      await delay(piece, undefined, signal === undefined ? {} : { signal });
      left -= piece;
    } while (left > 0);
  },
};
