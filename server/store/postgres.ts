import type { PostgresPool } from "kysely";
import pg from "pg";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { retry } from "../../src/runtime/task.ts";
import { type ConnectionParameters, parseConnectionString } from "./connection-string.ts";
import { isStarting, reasonOf } from "./faults.ts";
import { guardPool } from "./pool-guard.ts";
import { type PostgresTls, postgresTls, type TlsFiles } from "./postgres-tls.ts";

export interface PostgresConfig extends TlsFiles {
  readonly connectionString: string;
  readonly maxOpenConns?: number;
  readonly maxIdleConns?: number;
  readonly connMaxLifetimeMs?: number;
}

export interface PostgresOptions {
  readonly log: Log;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

const CONNECT_TIMEOUT_MS = 5000;
/** The client gives up on a statement after this long, and the server a little before. */
const QUERY_TIMEOUT_MS = 10_000;
/** Compiling takes a second for statements that run for a millisecond. */
const SESSION_SETTINGS = `
set jit = off;
set statement_timeout = '8s';
set lock_timeout = '4s';
set idle_in_transaction_session_timeout = '30s';
set default_transaction_isolation = 'read committed';
set bytea_output = 'hex'`;
const SERVER_FACTS =
  "select current_setting('server_version_num')::integer as version, current_setting('server_version') as release, pg_is_in_recovery() as standby";
const OLDEST_SERVER = 130000;
const START_WITHIN_MS = 60_000;
const DEFAULT_MAX_OPEN = 10;
const IDLE_MS = 30_000;

/** Where PostgreSQL is and how to get in: makes pools and single connections. */
export class PostgresServer {
  readonly #config: PostgresConfig;
  readonly #client: pg.ClientConfig;

  private constructor(config: PostgresConfig, client: pg.ClientConfig) {
    this.#config = config;
    this.#client = client;
  }

  /**
   * Resolves when a server of a known version answered; waits for one that is starting. Throws `unavailable` when
   * there is none within a minute, `precondition` when it is too old, `invalid` for a malformed configuration.
   */
  static async find(config: PostgresConfig, options: PostgresOptions): Promise<PostgresServer> {
    const parameters = parseConnectionString(config.connectionString);
    const tls = await postgresTls(parameters, config);
    const server = new PostgresServer(config, clientConfig(parameters, tls.options));
    try {
      return await server.#await(tls, options);
    } catch (error) {
      throw isFault(error) ? error : cannotConnect(parameters, error);
    }
  }

  /** A connection without time limits on statements. Its errors are reported by its queries, and by `end`. */
  async connect(): Promise<pg.Client> {
    const client = new pg.Client(this.#client);
    client.on("error", () => undefined);
    await client.connect();
    return client;
  }

  /** Ends with `end()` of the pool. */
  pool(): pg.Pool {
    const { maxOpenConns, connMaxLifetimeMs } = this.#config;
    const pool = new pg.Pool({
      ...this.#client,
      max: maxOpenConns ?? DEFAULT_MAX_OPEN,
      idleTimeoutMillis: IDLE_MS,
      maxLifetimeSeconds: Math.ceil((connMaxLifetimeMs ?? 0) / 1000),
      query_timeout: QUERY_TIMEOUT_MS,
      onConnect: async (client) => {
        client.on("error", () => undefined);
        await client.query(SESSION_SETTINGS);
      },
    });
    pool.on("error", () => undefined);
    return pool;
  }

  /** For Kysely: drops connections that are stuck, and idle ones beyond `maxIdleConns`. */
  guarded(pool: pg.Pool): PostgresPool {
    const maxIdle = this.#config.maxIdleConns ?? Number.POSITIVE_INFINITY;
    return guardPool(pool, () => pool.idleCount >= maxIdle);
  }

  async #await(tls: PostgresTls, { log, clock, signal }: PostgresOptions): Promise<PostgresServer> {
    const first = async (): Promise<PostgresServer> => this.#greet(tls);
    return retry(
      clock,
      {
        firstMs: 250,
        maxMs: 5000,
        giveUpAfterMs: START_WITHIN_MS,
        retryable: isStarting,
        onRetry: (error) => log.warn("Waiting for the datastore", { reason: reasonOf(error) }),
      },
      first,
      signal,
    );
  }

  async #greet(tls: PostgresTls): Promise<PostgresServer> {
    let client: pg.Client;
    try {
      client = await this.connect();
    } catch (error) {
      if (!tls.preferred || messageOf(error) !== "The server does not support SSL connections") throw error;
      const plain = new PostgresServer(this.#config, { ...this.#client, ssl: false });
      return plain.#greet({ options: false, preferred: false });
    }
    try {
      await checkServer(client);
    } finally {
      await client.end();
    }
    return this;
  }
}

function clientConfig(parameters: ConnectionParameters, ssl: PostgresTls["options"]): pg.ClientConfig {
  const text = (key: string, name: string): Record<string, string> => {
    const value = parameters.get(key);
    return value === undefined ? {} : { [name]: value };
  };
  const seconds = Number(parameters.get("connect_timeout") ?? "0");
  return {
    ...text("host", "host"),
    ...text("dbname", "database"),
    ...text("user", "user"),
    ...text("password", "password"),
    ...text("options", "options"),
    port: Number(parameters.get("port") ?? "5432"),
    application_name: parameters.get("application_name") ?? "steeple-server",
    connectionTimeoutMillis: seconds > 0 ? seconds * 1000 : CONNECT_TIMEOUT_MS,
    keepAlive: true,
    ssl,
  };
}

async function checkServer(client: pg.Client): Promise<void> {
  const { rows } = await client.query<{ version: number; release: string; standby: boolean }>(SERVER_FACTS);
  const [facts] = rows;
  if (facts === undefined || facts.version < OLDEST_SERVER) {
    throw new Fault("precondition", `PostgreSQL ${facts?.release ?? ""} is too old`, {
      code: "datastore-version",
      hint: "use PostgreSQL 13 or newer",
    });
  }
  if (facts.standby) {
    throw new Fault("precondition", "the datastore is a read-only standby", {
      code: "datastore-standby",
      hint: "name the primary in connection_string",
    });
  }
}

function cannotConnect(parameters: ConnectionParameters, cause: unknown): Fault {
  const host = parameters.get("host") ?? "localhost";
  const address = host.startsWith("/") ? host : `${host}:${parameters.get("port") ?? "5432"}`;
  return new Fault("unavailable", `cannot connect to PostgreSQL at ${address}: ${reasonOf(cause)}`, {
    code: "datastore-unavailable",
    hint: "check connection_string, and that the database runs and can be reached from here",
    cause,
  });
}
