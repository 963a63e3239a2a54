import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { Fault } from "../../src/runtime/fault.ts";

/** Of what a gate refuses. */
export const OVERLOAD = "attestation-overload";

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
    const leave = await this.enter(key, signal);
    try {
      return await work();
    } finally {
      leave();
    }
  }

  /** Resolves when it is this one's turn. Whoever has entered must leave; to leave twice does nothing. */
  async enter(key: K, signal: AbortSignal): Promise<() => void> {
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
    return once(() => {
      this.#leave(lane);
      this.#forget(key, lane);
    });
  }

  /** Resolves when a place was handed over. */
  #turn(lane: Lane, signal: AbortSignal): Promise<void> {
    if (lane.waiting.size >= this.#limits.waiting) {
      throw new Fault("unavailable", "too many attestations of this user or control group are waiting", {
        code: OVERLOAD,
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

/**
 * Callers at the same time, and those that wait their turn. One user's storm starves no other, nor the storm of one
 * container or service the others of its user; in a cluster most callers are root and many wait for their kubelet, so
 * there is room for all pods of a node.
 */
const PER_UID = { concurrent: 256, waiting: 4096 } as const;
const PER_CGROUP = { concurrent: 16, waiting: 2048 } as const;

/** One queue for callers of all kinds. */
export class CallerGate {
  readonly #users = new KeyedGate<number>(PER_UID);
  readonly #cgroups = new KeyedGate<string>(PER_CGROUP);

  /** As a `KeyedGate`'s. */
  async enter({ uid, cgroup }: Pick<PeerProcess, "uid" | "cgroup">, signal: AbortSignal): Promise<() => void> {
    const leaveGroup = cgroup === undefined ? () => {} : await this.#cgroups.enter(`${uid} ${cgroup}`, signal);
    try {
      const leaveUser = await this.#users.enter(uid, signal);
      return () => {
        leaveUser();
        leaveGroup();
      };
    } catch (error) {
      leaveGroup();
      throw error;
    }
  }
}

export function once(work: () => void): () => void {
  let isDone = false;
  return () => {
    if (isDone) return;
    isDone = true;
    work();
  };
}
