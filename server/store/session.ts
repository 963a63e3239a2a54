import { Kysely, PostgresDialect, type PostgresPool, sql, type Transaction } from "kysely";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Backoff } from "../../src/runtime/task.ts";
import { isConflict, storeFault } from "./faults.ts";
import type { Schema } from "./schema.ts";

export type Queries = Kysely<Schema> | Transaction<Schema>;

export interface SessionOptions {
  readonly pool: PostgresPool;
  readonly clock: Clock;
  readonly log: Log;
  /** Called after every committed change. Never throws. */
  readonly changed: () => void;
}

const MAX_ATTEMPTS = 10;

/**
 * The one way to the database: every failure leaves as a `Fault`. Inside a transaction use only the handle that `work`
 * is given; the embedded store has a single connection, and another query would wait for it in vain.
 */
export class Session implements AsyncDisposable {
  readonly #db: Kysely<Schema>;
  readonly #options: SessionOptions;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#db = new Kysely<Schema>({ dialect: new PostgresDialect({ pool: options.pool }) });
  }

  /** One statement that changes nothing. */
  async read<T>(work: (db: Queries) => Promise<T>): Promise<T> {
    try {
      return await work(this.#db);
    } catch (error) {
      throw storeFault(error);
    }
  }

  /** One statement that may change rows; it is its own transaction. */
  async write<T>(work: (db: Queries) => Promise<T>): Promise<T> {
    const result = await this.#retried(() => work(this.#db));
    this.#options.changed();
    return result;
  }

  /** Several statements that succeed or fail as one. `work` may run more than once. */
  async transaction<T>(work: (db: Queries) => Promise<T>): Promise<T> {
    const result = await this.#retried(() => this.#db.transaction().execute(work));
    this.#options.changed();
    return result;
  }

  /** Several reads that see one state of the database. */
  async snapshot<T>(work: (db: Queries) => Promise<T>): Promise<T> {
    const transaction = this.#db.transaction().setIsolationLevel("repeatable read").setAccessMode("read only");
    return this.read(() => transaction.execute(work));
  }

  async ping(): Promise<void> {
    await this.read((db) => sql`select 1`.execute(db));
  }

  async #retried<T>(work: () => Promise<T>): Promise<T> {
    const backoff = new Backoff(this.#options.clock, { firstMs: 5, maxMs: 100, factor: 2, jitter: 0.5 });
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await work();
      } catch (error) {
        if (!isConflict(error) || attempt === MAX_ATTEMPTS) throw storeFault(error);
        this.#options.log.debug("Repeating a transaction after a conflict", { attempt });
      }
      await this.#options.clock.sleep(backoff.next());
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#db.destroy();
  }
}
