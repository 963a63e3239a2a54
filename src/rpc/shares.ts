import { Fault } from "../runtime/fault.ts";
import type { PeerProcess } from "./peer-credentials.ts";

export interface ShareLimits {
  readonly perUser: number;
  /** Of one user's processes in the same control groups: a container, or a service. */
  readonly perCgroup: number;
}

/** What one user may have of a server's Unix sockets, and one control group of his, such as a container. */
export interface LocalLimits {
  /** Default: 4000. */
  readonly maxConnectionsPerUser?: number;
  /** Default: 500. */
  readonly maxConnectionsPerCgroup?: number;
  /** Open at the same time. Default: 20,000. */
  readonly maxCallsPerUser?: number;
  /** Default: 10,000. */
  readonly maxCallsPerCgroup?: number;
}

/** How it is said that somebody has too much: "uid 1000 has too many connections". */
interface Excess {
  readonly what: string;
  readonly code: string;
}

/** Divides something among those who share one machine, so that one of them cannot have all there is. */
export class Shares {
  readonly #limits: ShareLimits;
  readonly #excess: Excess;
  readonly #taken = new Map<string, number>();

  constructor(limits: ShareLimits, excess: Excess) {
    this.#limits = limits;
    this.#excess = excess;
  }

  /** Returns how to give it back, once. Throws `exhausted`, and takes nothing, when it is too much. */
  take({ pid, uid, cgroup }: Pick<PeerProcess, "pid" | "uid" | "cgroup">, amount = 1): () => void {
    const { perUser, perCgroup } = this.#limits;
    const user = this.#takeFrom(`uid ${uid}`, { amount, limit: perUser, who: `uid ${uid}` });
    if (cgroup === undefined) return user;
    try {
      const who = `the control group of process ${pid}`;
      const group = this.#takeFrom(`${uid} ${cgroup}`, { amount, limit: perCgroup, who });
      return () => {
        user();
        group();
      };
    } catch (error) {
      user();
      throw error;
    }
  }

  #takeFrom(key: string, { amount, limit, who }: { amount: number; limit: number; who: string }): () => void {
    const taken = (this.#taken.get(key) ?? 0) + amount;
    const { what, code } = this.#excess;
    if (taken > limit) throw new Fault("exhausted", `${who} has ${what}`, { code });
    this.#taken.set(key, taken);
    let held = amount;
    return () => {
      const left = (this.#taken.get(key) ?? 0) - held;
      held = 0;
      if (left > 0) this.#taken.set(key, left);
      else this.#taken.delete(key);
    };
  }
}

export function sharesOf({
  maxConnectionsPerUser = 4000,
  maxConnectionsPerCgroup = 500,
  maxCallsPerUser = 20_000,
  maxCallsPerCgroup = 10_000,
}: LocalLimits): {
  readonly connections: Shares;
  readonly calls: Shares;
} {
  return {
    connections: new Shares(
      { perUser: maxConnectionsPerUser, perCgroup: maxConnectionsPerCgroup },
      { what: "too many connections", code: "too-many-connections" },
    ),
    calls: new Shares(
      { perUser: maxCallsPerUser, perCgroup: maxCallsPerCgroup },
      { what: "too many calls open", code: "too-many-calls" },
    ),
  };
}
