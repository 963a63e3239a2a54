import { retryAfter } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";

/** Addresses that stay away for two of these are forgotten. */
const GENERATION_MS = 60_000;
/** Of one generation: whoever has a whole network of addresses does not fill the memory. */
const MOST_ADDRESSES = 100_000;
/** No peer waits longer for an answer, and a bounded queue bounds memory. */
const LONGEST_WAIT_MS = 60_000;

interface Bucket {
  tokens: number;
  filledAt: number;
}

/** Token buckets by source address; rate and burst are the same number. Calls wait their turn instead of failing. */
export class RateLimiter {
  readonly #clock: Clock;
  readonly #perSecond: number;
  #current = new Map<string, Bucket>();
  #previous = new Map<string, Bucket>();
  #turnedAt: number;

  constructor(clock: Clock, perSecond: number) {
    this.#clock = clock;
    this.#perSecond = perSecond;
    this.#turnedAt = clock.monotonic();
  }

  /** How many addresses are remembered. */
  get size(): number {
    return this.#current.size + this.#previous.size;
  }

  /** Resolves when it is the caller's turn: true when that took a while. Throws `exhausted` when that turn never comes. */
  async take(address: string, count: number, signal: AbortSignal): Promise<boolean> {
    if (count > this.#perSecond)
      throw new Fault("exhausted", `rate (${count}) exceeds burst size (${this.#perSecond})`, { code: "rate-limit" });
    const bucket = this.#bucket(address);
    const waitMs = (Math.max(0, count - bucket.tokens) / this.#perSecond) * 1000;
    if (waitMs > LONGEST_WAIT_MS) {
      throw new Fault("exhausted", `rate limit of ${this.#perSecond} per second exceeded`, {
        code: "rate-limit",
        hint: "too many calls from this address are waiting: call less often",
        details: [retryAfter(waitMs - LONGEST_WAIT_MS + this.#clock.random() * LONGEST_WAIT_MS)],
      });
    }
    bucket.tokens -= count;
    if (waitMs > 0) await this.#wait(bucket, count, waitMs, signal);
    return waitMs > 0;
  }

  async #wait(bucket: Bucket, count: number, waitMs: number, signal: AbortSignal): Promise<void> {
    try {
      await this.#clock.sleep(waitMs, signal);
    } catch (error) {
      bucket.tokens = Math.min(this.#perSecond, bucket.tokens + count);
      throw error;
    }
  }

  #bucket(address: string): Bucket {
    const now = this.#clock.monotonic();
    this.#turn(now);
    const bucket = this.#current.get(address) ??
      this.#previous.get(address) ?? { tokens: this.#perSecond, filledAt: now };
    this.#previous.delete(address);
    this.#current.set(address, bucket);
    bucket.tokens = Math.min(this.#perSecond, bucket.tokens + ((now - bucket.filledAt) / 1000) * this.#perSecond);
    bucket.filledAt = now;
    return bucket;
  }

  /** Once a minute the addresses of the last minute but one are forgotten, and oftener when very many come. */
  #turn(now: number): void {
    if (now - this.#turnedAt < GENERATION_MS && this.#current.size < MOST_ADDRESSES) return;
    this.#previous = this.#current;
    this.#current = new Map();
    this.#turnedAt = now;
  }
}
