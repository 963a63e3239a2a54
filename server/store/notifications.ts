import { randomUUID } from "node:crypto";
import type { Client, Pool } from "pg";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Backoff } from "../../src/runtime/task.ts";
import { reasonOf } from "./faults.ts";
import { LocalWaker, POLL_MS, type Waker } from "./wake.ts";

export interface NotificationOptions {
  readonly pool: Pool;
  /** A connection of its own: a pooled one would lose what it listens to. */
  readonly connect: () => Promise<Client>;
  readonly clock: Clock;
  readonly log: Log;
}

const LISTEN = "listen steeple_changes";
const NOTIFY = "select pg_notify('steeple_changes', $1)";
/** Without notifications, as behind a pooler that shares connections between transactions. */
const POLL_ALONE_MS = 250;
const PROBE_WITHIN_MS = 1000;
const PROBE_AGAIN_MS = 60_000;

/**
 * NOTIFY goes out after the commit and never inside the transaction: there it would hold a lock over the whole
 * instance through the flush. One is in flight at a time, and what happens meanwhile shares the next.
 */
export class PostgresWaker implements Waker {
  readonly #options: NotificationOptions;
  readonly #local: LocalWaker;
  readonly #self = randomUUID();
  readonly #stop = new AbortController();
  #listening = false;
  #listener: Promise<void> | undefined;
  #notifying: Promise<void> | undefined;
  #notifyAgain = false;

  constructor(options: NotificationOptions) {
    this.#options = options;
    this.#local = new LocalWaker(options.clock, () => (this.#listening ? POLL_MS : POLL_ALONE_MS));
  }

  changed(): void {
    this.#local.changed();
    this.#notifyAgain = true;
    this.#notifying ??= this.#notify();
  }

  wake(signal: AbortSignal): AsyncIterable<void> {
    this.#listener ??= this.#listen(this.#stop.signal);
    return this.#local.wake(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await Promise.all([this.#listener, this.#notifying]);
  }

  /** A failure is made up for by the polls of the others. */
  async #notify(): Promise<void> {
    while (this.#notifyAgain && !this.#stop.signal.aborted) {
      this.#notifyAgain = false;
      await this.#options.pool.query(NOTIFY, [this.#self]).catch(() => undefined);
    }
    this.#notifying = undefined;
  }

  async #listen(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#options;
    const backoff = new Backoff(clock, { firstMs: 100, maxMs: 5000, factor: 2 });
    while (!signal.aborted) {
      let pause = backoff.next();
      try {
        if (await this.#listenOnce(signal)) backoff.reset();
        else pause = PROBE_AGAIN_MS;
      } catch (error) {
        log.debug("Lost the connection for notifications", { reason: reasonOf(error) });
      }
      this.#listening = false;
      await clock.sleep(pause, signal).catch(() => undefined);
    }
  }

  /** Until the connection ends. False when notifications do not come through. */
  async #listenOnce(signal: AbortSignal): Promise<boolean> {
    const client = await this.#options.connect();
    const ended = new Promise<void>((resolve) => client.once("end", () => resolve()));
    const stop = (): void => void client.end().catch(() => undefined);
    signal.addEventListener("abort", stop, { once: true });
    try {
      client.on("notification", ({ payload }) => {
        if (payload !== this.#self) this.#local.changed();
      });
      await client.query(LISTEN);
      this.#local.changed();
      if (!(await this.#probe(client, signal))) return false;
      this.#listening = true;
      await ended;
      return true;
    } finally {
      signal.removeEventListener("abort", stop);
      stop();
    }
  }

  async #probe(client: Client, signal: AbortSignal): Promise<boolean> {
    const { pool, clock, log } = this.#options;
    const probe = randomUUID();
    const heard = new AbortController();
    const stop = (): void => heard.abort();
    client.on("notification", ({ payload }) => {
      if (payload === probe) stop();
    });
    signal.addEventListener("abort", stop, { once: true });
    await pool.query(NOTIFY, [probe]);
    await clock.sleep(PROBE_WITHIN_MS, heard.signal).catch(() => undefined);
    signal.removeEventListener("abort", stop);
    if (!heard.signal.aborted) {
      log.warn("The datastore does not deliver notifications; polling instead", { poll_ms: POLL_ALONE_MS });
    }
    return heard.signal.aborted;
  }
}
