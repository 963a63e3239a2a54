import type { Pool } from "pg";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Log } from "../../src/runtime/log.ts";
import { SqlAuthorityStore } from "./authorities.ts";
import { SqlBundleLinkStore } from "./bundle-links.ts";
import { SqlBundleStore } from "./bundles.ts";
import { SqlChangeStore } from "./changes.ts";
import { EmbeddedServer } from "./embedded.ts";
import { SqlEntryStore } from "./entries.ts";
import { SqlFederationStore } from "./federation.ts";
import { SqlLeaseStore } from "./leases.ts";
import { migrate } from "./migrations.ts";
import { SqlNodeStore } from "./nodes.ts";
import { PostgresWaker } from "./notifications.ts";
import { guardPool } from "./pool-guard.ts";
import { type PostgresConfig, PostgresServer } from "./postgres.ts";
import { Session } from "./session.ts";
import type { Store } from "./store.ts";
import { SqlTokenStore } from "./tokens.ts";
import { LocalWaker, type Waker } from "./wake.ts";

export type DataStoreConfig =
  | { readonly kind: "embedded"; readonly directory: string }
  | ({ readonly kind: "postgres"; readonly disableMigration: boolean } & PostgresConfig);

export interface StoreOptions {
  readonly log: Log;
  readonly clock: Clock;
  /** Ends the wait for a database that is not up yet. */
  readonly signal?: AbortSignal;
}

/**
 * Opens the store and brings its schema up to date. Throws `invalid` for a malformed configuration, `unavailable` when
 * the database is away, `precondition` when it cannot be used: in use by another process, too old, of a newer schema.
 */
export async function openStore(config: DataStoreConfig, options: StoreOptions): Promise<SqlStore> {
  return config.kind === "embedded" ? openEmbedded(config.directory, options) : openPostgres(config, options);
}

async function openEmbedded(directory: string, { log, clock }: StoreOptions): Promise<SqlStore> {
  await using opened = new AsyncDisposableStack();
  const server = opened.use(await EmbeddedServer.open(directory, log));
  const pool = server.pool();
  const waker = opened.use(new LocalWaker(clock));
  const session = opened.use(
    new Session({ pool: guardPool(pool, () => false), clock, log, changed: () => waker.changed() }),
  );
  await migratePool(pool, false, log);
  return new SqlStore({ kind: "embedded", session, waker, clock, resources: opened.move() });
}

async function openPostgres(config: DataStoreConfig & { kind: "postgres" }, options: StoreOptions): Promise<SqlStore> {
  const { log, clock, signal = new AbortController().signal } = options;
  const server = await PostgresServer.find(config, { log, clock, signal });
  await using opened = new AsyncDisposableStack();
  const client = await server.connect();
  try {
    await migrate({ client, disableMigration: config.disableMigration, log });
  } finally {
    await client.end();
  }
  const pool = server.pool();
  const session = opened.use(new Session({ pool: server.guarded(pool), clock, log, changed: () => waker.changed() }));
  const waker = opened.use(new PostgresWaker({ pool, connect: () => server.connect(), clock, log }));
  return new SqlStore({ kind: "postgres", session, waker, clock, resources: opened.move() });
}

async function migratePool(pool: Pool, disableMigration: boolean, log: Log): Promise<void> {
  const client = await pool.connect();
  try {
    await migrate({ client, disableMigration, log });
  } finally {
    client.release();
  }
}

interface StoreParts {
  readonly kind: Store["kind"];
  readonly session: Session;
  readonly waker: Waker;
  readonly clock: Clock;
  /** Closed with the store, the last opened first. */
  readonly resources: AsyncDisposableStack;
}

export class SqlStore implements Store {
  readonly kind: Store["kind"];
  readonly entries: SqlEntryStore;
  readonly nodes: SqlNodeStore;
  readonly tokens: SqlTokenStore;
  readonly bundles: SqlBundleStore;
  readonly federation: SqlFederationStore;
  readonly authorities: SqlAuthorityStore;
  readonly links: SqlBundleLinkStore;
  readonly changes: SqlChangeStore;
  readonly leases: SqlLeaseStore;
  /** For export and import, which go below the aggregates. */
  readonly session: Session;
  readonly #resources: AsyncDisposableStack;

  constructor({ kind, session, waker, clock, resources }: StoreParts) {
    const now = (): Date => clock.now();
    this.kind = kind;
    this.session = session;
    this.entries = new SqlEntryStore(session, now);
    this.nodes = new SqlNodeStore(session);
    this.tokens = new SqlTokenStore(session, now);
    this.bundles = new SqlBundleStore(session, now);
    this.federation = new SqlFederationStore(session);
    this.authorities = new SqlAuthorityStore(session);
    this.links = new SqlBundleLinkStore(session);
    this.changes = new SqlChangeStore(session, waker);
    this.leases = new SqlLeaseStore(session);
    this.#resources = resources;
  }

  async ping(): Promise<void> {
    await this.session.ping();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}
