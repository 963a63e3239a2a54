import { randomBytes, randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openStore } from "../../server/store/database.ts";
import { SCHEMA_VERSION } from "../../server/store/migrations.ts";
import { importStore } from "../../server/store/transfer.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { RecordingLog } from "../support/recording-log.ts";
import { entryMessage, startServer, type TestServer } from "../support/server.ts";
import { type Report, scenario } from "./scenario.ts";
import { openPostgres, storeName } from "./servers.ts";
import { type Calls, calls, rssMb } from "./stats.ts";

const PARENTS = 1000;

/** ListEntries page by page, and entries created in batches, beside many that are held; between processes. */
export const entries = scenario({
  summary: "ListEntries page by page, and BatchCreateEntry, beside 100,000 entries that are held",
  parameters: {
    entries: { doc: "Entries held.", default: 100_000 },
    created: { doc: "Entries created.", default: 10_000 },
    batch: { doc: "Entries created in one call.", default: 500 },
    pages: { doc: "Sizes of pages.", default: [50, 500, 1000] },
  },
  async run({ parameters, of, stores }) {
    for (const store of stores) {
      await using database = store === "postgres" ? await openPostgres() : undefined;
      const report = of(await storeName(store));
      if (store === "postgres" && database === undefined) report.note("not on this machine");
      else await measureOn(report, { database, ...parameters });
    }
  },
});

interface Measuring {
  readonly database: { readonly url: string } | undefined;
  readonly entries: number;
  readonly created: number;
  readonly batch: number;
  readonly pages: readonly number[];
}

async function measureOn(
  { figure }: Report,
  { database, entries: held, created, batch, pages }: Measuring,
): Promise<void> {
  await using cleanup = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), "steeple-bench-"));
  cleanup.defer(() => rm(folder, { recursive: true, force: true }));
  await fill(folder, database?.url, held);
  const started = performance.now();
  const store = database ?? "embedded";
  await using server = await startServer({ folder, store, server: { log_level: "INFO" }, startMs: 300_000 });
  const at = { entries: held };
  figure({ name: "start until ready", unit: "s", values: (performance.now() - started) / 1000, at });
  figure({ name: "server RSS when ready", unit: "MB", values: rssMb(server.pid), at });
  const show = (name: string, each: number, took: Calls): void => {
    const one = took.cpuUs === undefined ? Number.NaN : (took.cpuUs * took.ms.length) / each;
    figure({ name, unit: "/s", values: each / took.seconds, at });
    figure({ name: `${name}, one call`, unit: "ms", values: took.ms, at });
    figure({ name: `${name}, server CPU for one entry`, unit: "us", values: one, at });
  };
  for (const size of pages) show(`list, pages of ${size}`, held, await list(server, { size, held }));
  const made = await calls({ count: created / batch, pid: server.pid }, (index) =>
    create(server, held + index * batch, batch),
  );
  show(`create, batches of ${batch}`, created, made);
}

/** What a fleet's entries look like: a few parents with many children, three selectors each. */
async function fill(folder: string, url: string | undefined, count: number): Promise<void> {
  const config =
    url === undefined
      ? ({ kind: "embedded", directory: join(folder, "data", "store") } as const)
      : ({ kind: "postgres", connectionString: url, disableMigration: false } as const);
  await using store = await openStore(config, { log: new RecordingLog(), clock: systemClock });
  await importStore(store, exported(count));
}

function* exported(count: number): Generator<string> {
  yield JSON.stringify({ format: "steeple-store", schema: SCHEMA_VERSION });
  for (let index = 0; index < count; index += 1) {
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
  yield JSON.stringify({ rows: count });
}

const parentOf = (index: number): string => `spiffe://example.org/spire/agent/node-${index % PARENTS}`;
const selectorsOf = (index: number): string[] => ["k8s:container-name:app", "k8s:ns:prod", `k8s:sa:service-${index}`];

async function list(
  server: TestServer,
  { size, held }: { readonly size: number; readonly held: number },
): Promise<Calls> {
  let page_token = "";
  let seen = 0;
  const count = Math.ceil(held / size);
  const took = await calls({ count, pid: server.pid }, async () => {
    const page = await server.admin.entry.ListEntries({ page_size: size, page_token });
    seen += page.entries.length;
    page_token = page.next_page_token;
  });
  if (seen < held) throw new Error(`${seen} of ${held} entries listed`);
  return took;
}

async function create(server: TestServer, first: number, count: number): Promise<void> {
  const entries = Array.from({ length: count }, (_, offset) => {
    const index = first + offset;
    const spiffeId = `spiffe://example.org/new/service-${index}`;
    return entryMessage({ spiffeId, parentId: parentOf(index), selectors: selectorsOf(index) });
  });
  const { results } = await server.admin.entry.BatchCreateEntry({ entries });
  const failed = results.find(({ status }) => status?.code !== 0);
  if (failed !== undefined) throw new Error(failed.status?.message);
}
