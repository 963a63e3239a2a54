import { Fault } from "../../src/runtime/fault.ts";

interface Lane {
  running: number;
  readonly waiting: Set<() => void>;
}

/** Lets only so many of one key run at a time; the others wait in order, and too many are refused. */
export class KeyedGate<K> {
  readonly #limits: { readonly concurrent: number; readonly waiting: number };
  readonly #lanes = new Map<K, Lane>();

  constructor(limits: { readonly concurrent: number; readonly waiting: number }) {
    this.#limits = limits;
  }

  async run<T>(key: K, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const lane = this.#lanes.get(key) ?? { running: 0, waiting: new Set() };
    this.#lanes.set(key, lane);
    try {
      signal.throwIfAborted();
      if (lane.running >= this.#limits.concurrent) await this.#turn(lane, signal);
      else lane.running += 1;
    } catch (error) {
      this.#forget(key, lane);
      throw error;
    }
    try {
      return await work();
    } finally {
      this.#leave(lane);
      this.#forget(key, lane);
    }
  }

  /** Resolves when a place was handed over. */
  #turn(lane: Lane, signal: AbortSignal): Promise<void> {
    if (lane.waiting.size >= this.#limits.waiting) {
      throw new Fault("unavailable", "too many attestations of this user or control group are waiting", {
        code: "attestation-overload",
      });
    }
    return new Promise((resolve, reject) => {
      const enter = (): void => {
        signal.removeEventListener("abort", stop);
        resolve();
      };
      const stop = (): void => {
        lane.waiting.delete(enter);
        reject(Fault.from(signal.reason));
      };
      lane.waiting.add(enter);
      signal.addEventListener("abort", stop, { once: true });
    });
  }

  /** The place goes to the one that has waited longest, or is free again. */
  #leave(lane: Lane): void {
    const next = lane.waiting.values().next();
    if (next.done === true) {
      lane.running -= 1;
      return;
    }
    lane.waiting.delete(next.value);
    next.value();
  }

  #forget(key: K, lane: Lane): void {
    if (lane.running === 0 && lane.waiting.size === 0) this.#lanes.delete(key);
  }
}
