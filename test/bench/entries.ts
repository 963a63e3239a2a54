import { execFileSync } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import manifest from "../../package.json" with { type: "json" };
import { openStore } from "../../server/store/database.ts";
import { SCHEMA_VERSION } from "../../server/store/migrations.ts";
import { importStore } from "../../server/store/transfer.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { createDatabase, findPostgres, startCluster } from "../support/postgres.ts";
import { RecordingLog } from "../support/recording-log.ts";
import { entryMessage, startServer, type TestServer } from "../support/server.ts";
import { cpuMs, rssMb, spread } from "./stats.ts";

const HELD = 100_000;
const CREATED = 10_000;
const BATCH = 500;
const PAGES = [50, 500, 1000];
const PARENTS = 1000;

/** ListEntries over 100,000 entries page by page, and 10,000 created in batches; on both stores, between processes. */
export async function measureEntries(): Promise<string[]> {
  const pglite = manifest.dependencies["@electric-sql/pglite"];
  const lines = [
    `embedded: PGlite ${pglite}`,
    "",
    "| store | what | entries/s | one call | server CPU per entry |",
    "|---|---|---|---|---|",
    ...(await measureOn("embedded", undefined)),
  ];
  const bin = await findPostgres();
  if (bin === undefined) return [...lines, "| PostgreSQL | not on this machine | | | |"];
  await using cluster = await startCluster(bin);
  const version = execFileSync(join(bin, "postgres"), ["--version"], { encoding: "utf8" });
  const name = `PostgreSQL ${/[\d.]+/.exec(version)?.[0]}`;
  return [...lines, ...(await measureOn(name, cluster.url))];
}

async function measureOn(name: string, adminUrl: string | undefined): Promise<string[]> {
  await using cleanup = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), "steeple-bench-"));
  cleanup.defer(() => rm(folder, { recursive: true, force: true }));
  const database = adminUrl === undefined ? undefined : cleanup.use(await createDatabase(adminUrl));
  await fill(folder, database?.url);
  const started = performance.now();
  const store = database === undefined ? {} : { store: { url: database.url } };
  await using server = await startServer({ folder, ...store, server: { log_level: "INFO" }, startMs: 300_000 });
  const ready = (performance.now() - started) / 1000;
  const held = `${HELD.toLocaleString("en")} held: ready after ${ready.toFixed(1)} s, RSS ${rssMb(server.pid).toFixed(0)} MB`;
  const rows = [`| ${name} | ${held} | | | |`];
  for (const size of PAGES) rows.push(row(name, `list, pages of ${size}`, await list(server, size)));
  rows.push(row(name, `create, batches of ${BATCH}`, await create(server)));
  return rows;
}

/** What a fleet's entries look like: a few parents with many children, three selectors each. */
async function fill(folder: string, url: string | undefined): Promise<void> {
  const config =
    url === undefined
      ? ({ kind: "embedded", directory: join(folder, "data", "store") } as const)
      : ({ kind: "postgres", connectionString: url, disableMigration: false } as const);
  await using store = await openStore(config, { log: new RecordingLog(), clock: systemClock });
  await importStore(store, exported());
}

function* exported(): Generator<string> {
  yield JSON.stringify({ format: "steeple-store", schema: SCHEMA_VERSION });
  for (let index = 0; index < HELD; index += 1) {
    const row = {
      ...{ id: randomUUID(), seq: index + 1, revision_number: 0, created_at: 1_790_000_000 },
      ...{ spiffe_id: `spiffe://example.org/ns/prod/sa/service-${index}`, parent_id: parentOf(index) },
      selectors: selectorsOf(index),
      ...{ similar_hash: `\\x${randomBytes(32).toString("hex")}`, federates_with: [], dns_names: [], hint: "" },
      ...{ x509_svid_ttl: 0, jwt_svid_ttl: 0, expires_at: 0, admin: false, downstream: false, store_svid: false },
      ...{ jwt_svid_include_jti: false, disable_x509_svid_prefetch: false },
    };
    yield JSON.stringify({ table: "entries", row });
  }
  yield JSON.stringify({ rows: HELD });
}

const parentOf = (index: number): string => `spiffe://example.org/spire/agent/node-${index % PARENTS}`;
const selectorsOf = (index: number): string[] => ["k8s:container-name:app", "k8s:ns:prod", `k8s:sa:service-${index}`];

interface Measured {
  readonly entries: number;
  readonly seconds: number;
  readonly calls: readonly number[];
  readonly cpuMs: number;
}

async function measured(server: TestServer, work: (timed: Timed) => Promise<number>): Promise<Measured> {
  const calls: number[] = [];
  const [cpu, started] = [cpuMs(server.pid), performance.now()];
  const entries = await work(async (call) => {
    const before = performance.now();
    const result = await call();
    calls.push(performance.now() - before);
    return result;
  });
  return { entries, calls, seconds: (performance.now() - started) / 1000, cpuMs: cpuMs(server.pid) - cpu };
}

type Timed = <T>(call: () => Promise<T>) => Promise<T>;

function list(server: TestServer, page_size: number): Promise<Measured> {
  return measured(server, async (timed) => {
    let [seen, page_token] = [0, ""];
    do {
      const page = await timed(() => server.admin.entry.ListEntries({ page_size, page_token }));
      seen += page.entries.length;
      page_token = page.next_page_token;
    } while (page_token !== "");
    if (seen < HELD) throw new Error(`${seen} of ${HELD} entries listed`);
    return seen;
  });
}

function create(server: TestServer): Promise<Measured> {
  return measured(server, async (timed) => {
    for (let first = 0; first < CREATED; first += BATCH) {
      const entries = Array.from({ length: BATCH }, (_, offset) => {
        const index = HELD + first + offset;
        const spiffeId = `spiffe://example.org/new/service-${index}`;
        return entryMessage({ spiffeId, parentId: parentOf(index), selectors: selectorsOf(index) });
      });
      const { results } = await timed(() => server.admin.entry.BatchCreateEntry({ entries }));
      const failed = results.find(({ status }) => status?.code !== 0);
      if (failed !== undefined) throw new Error(failed.status?.message);
    }
    return CREATED;
  });
}

function row(name: string, what: string, { entries, seconds, calls, cpuMs }: Measured): string {
  const us = ((cpuMs * 1000) / entries).toFixed(0);
  return `| ${name} | ${what} | ${Math.round(entries / seconds).toLocaleString("en")} | ${spread(calls)} | ${us} us |`;
}
