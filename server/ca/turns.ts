import { Fault } from "../../src/runtime/fault.ts";

/** For whom something is done: those who ask for much wait for those who ask for little. */
export interface Turn {
  /** Whoever asks under one name shares one place in the round. */
  readonly caller: string;
  /** Whoever leaves gives up its place. */
  readonly signal: AbortSignal;
}

/** As many as the thread pool has room for. */
const SIGNATURES_AT_ONCE = 4;
/** At most this many wait at once, so that a herd cannot use up memory. */
const MOST_WAITING = 4096;
/** Of one caller, so that one alone cannot fill the queue. */
const MOST_PER_CALLER = 1024;

/**
 * So many at once. The others wait: each caller's in the order in which they came, the callers by turns. What the server
 * does for itself goes first and is never refused.
 */
export class Turns {
  /** What the server does for itself waits under the empty name. */
  readonly #queues = new Map<string, (() => void)[]>();
  #waiting = 0;
  #free: number;

  constructor(atOnce = SIGNATURES_AT_ONCE) {
    this.#free = atOnce;
  }

  /** Throws `exhausted` when too many wait already, and the signal's reason when the caller leaves. */
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
    const name = turn?.caller ?? "";
    const queue = this.#queues.get(name) ?? [];
    if (turn !== undefined && (this.#waiting >= MOST_WAITING || queue.length >= MOST_PER_CALLER)) throw busy();
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#drop(name, start);
        reject(turn?.signal.reason);
      };
      const start = (): void => {
        turn?.signal.removeEventListener("abort", leave);
        resolve();
      };
      turn?.signal.addEventListener("abort", leave, { once: true });
      queue.push(start);
      this.#queues.set(name, queue);
      this.#waiting += 1;
    });
  }

  #next(): void {
    const name = this.#queues.has("") ? "" : this.#queues.keys().next().value;
    const queue = name === undefined ? undefined : this.#queues.get(name);
    const start = queue?.shift();
    if (name === undefined || queue === undefined || start === undefined) {
      this.#free += 1;
      return;
    }
    this.#waiting -= 1;
    this.#queues.delete(name);
    if (queue.length > 0) this.#queues.set(name, queue);
    start();
  }

  #drop(name: string, start: () => void): void {
    const queue = this.#queues.get(name);
    const at = queue?.indexOf(start) ?? -1;
    if (queue === undefined || at < 0) return;
    queue.splice(at, 1);
    this.#waiting -= 1;
    if (queue.length === 0) this.#queues.delete(name);
  }
}

function busy(): Fault {
  return new Fault("exhausted", "too many signatures are waiting", {
    code: "signing-busy",
    hint: "the server signs as fast as it can: try again in a few seconds",
  });
}
