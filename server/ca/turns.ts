import { retryAfter } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";

/** For whom something is done: those who ask for much wait for those who ask for little. */
export interface Turn {
  /** Whoever asks under one name shares one place in the round. */
  readonly caller: string;
  /** Whoever leaves gives up its place. */
  readonly signal: AbortSignal;
  /** End of what is to be replaced, as far as this server knows. */
  readonly endsAt?: Date | undefined;
}

/** As many as the thread pool has room for. */
const SIGNATURES_AT_ONCE = 4;
/** At most this many wait at once, so that a herd cannot use up memory. */
const MOST_WAITING = 4096;
/** Of one caller, so that one alone cannot fill the queue. */
const MOST_PER_CALLER = 1024;
/** What ends within this is urgent. */
const URGENT_MS = 60_000;
/** So many urgent ones in a row let one of the others through. */
const URGENT_IN_A_ROW = 3;
/** Who is sent away comes back over this time; in it the queue is done with many times over. */
const COME_BACK_MS = { least: 1_000, most: 5_000 } as const;

interface Waiting {
  readonly caller: string;
  /** Unix milliseconds; undefined when it is not urgent. */
  readonly endsAt: number | undefined;
  readonly start: () => void;
}

/**
 * So many at once. The others wait: each caller's in the order in which they came, the callers by turns. What the server
 * does for itself goes first and is never refused; then what replaces an SVID that is about to end, the nearest end first.
 */
export class Turns {
  readonly #clock: Clock;
  /** What the server does for itself waits under the empty name. */
  readonly #queues = new Map<string, Waiting[]>();
  /** By their ends. */
  readonly #urgent: Waiting[] = [];
  readonly #perCaller = new Map<string, number>();
  #urgentInARow = 0;
  #waiting = 0;
  #free: number;

  constructor(clock: Clock, atOnce = SIGNATURES_AT_ONCE) {
    this.#clock = clock;
    this.#free = atOnce;
  }

  /** Throws `exhausted`, saying when to come back, when too many wait already, and the signal's reason when the caller leaves. */
  async take<T>(work: () => Promise<T>, turn?: Turn): Promise<T> {
    turn?.signal.throwIfAborted();
    if (this.#free > 0) this.#free -= 1;
    else await this.#wait(turn);
    try {
      return await work();
    } finally {
      this.#next();
    }
  }

  #wait(turn: Turn | undefined): Promise<void> {
    const caller = turn?.caller ?? "";
    const held = this.#perCaller.get(caller) ?? 0;
    if (turn !== undefined && (this.#waiting >= MOST_WAITING || held >= MOST_PER_CALLER)) throw this.#busy();
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#drop(waiting);
        reject(turn?.signal.reason);
      };
      const start = (): void => {
        turn?.signal.removeEventListener("abort", leave);
        resolve();
      };
      turn?.signal.addEventListener("abort", leave, { once: true });
      const waiting = { caller, endsAt: this.#urgency(turn), start };
      this.#put(waiting);
      this.#perCaller.set(caller, held + 1);
      this.#waiting += 1;
    });
  }

  #urgency(turn: Turn | undefined): number | undefined {
    const endsAt = turn?.endsAt?.getTime();
    return endsAt !== undefined && endsAt - this.#clock.now().getTime() <= URGENT_MS ? endsAt : undefined;
  }

  #put(waiting: Waiting): void {
    const { caller, endsAt } = waiting;
    if (endsAt !== undefined) {
      const later = this.#urgent.findIndex((other) => (other.endsAt ?? 0) > endsAt);
      this.#urgent.splice(later < 0 ? this.#urgent.length : later, 0, waiting);
      return;
    }
    const queue = this.#queues.get(caller) ?? [];
    queue.push(waiting);
    this.#queues.set(caller, queue);
  }

  #next(): void {
    const waiting = this.#pick();
    if (waiting === undefined) {
      this.#free += 1;
      return;
    }
    this.#left(waiting);
    waiting.start();
  }

  #pick(): Waiting | undefined {
    if (this.#queues.has("")) return this.#fromQueue("");
    const [name] = this.#queues.keys();
    if (this.#urgent.length > 0 && (name === undefined || this.#urgentInARow < URGENT_IN_A_ROW)) {
      this.#urgentInARow += 1;
      return this.#urgent.shift();
    }
    this.#urgentInARow = 0;
    return name === undefined ? undefined : this.#fromQueue(name);
  }

  #fromQueue(name: string): Waiting | undefined {
    const queue = this.#queues.get(name) ?? [];
    const waiting = queue.shift();
    this.#queues.delete(name);
    if (queue.length > 0) this.#queues.set(name, queue);
    return waiting;
  }

  #drop(waiting: Waiting): void {
    const { caller, endsAt } = waiting;
    const queue = endsAt === undefined ? (this.#queues.get(caller) ?? []) : this.#urgent;
    const at = queue.indexOf(waiting);
    if (at < 0) return;
    queue.splice(at, 1);
    if (endsAt === undefined && queue.length === 0) this.#queues.delete(caller);
    this.#left(waiting);
  }

  #left({ caller }: Waiting): void {
    this.#waiting -= 1;
    const others = (this.#perCaller.get(caller) ?? 1) - 1;
    if (others === 0) this.#perCaller.delete(caller);
    else this.#perCaller.set(caller, others);
  }

  #busy(): Fault {
    const { least, most } = COME_BACK_MS;
    return new Fault("exhausted", "too many signatures are waiting", {
      code: "signing-busy",
      hint: "the server signs as fast as it can: try again in a few seconds",
      details: [retryAfter(least + (most - least) * this.#clock.random())],
    });
  }
}
