import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { eventually } from "../support/eventually.ts";
import { startServer, type TestServer } from "../support/server.ts";
import type { Figure } from "./figures.ts";
import { LoopWatch, type Turn } from "./loop.ts";
import { scenario } from "./scenario.ts";
import { openPostgres, storeName } from "./servers.ts";
import { calls, rssMb, timed } from "./stats.ts";

const CLUSTERS = 200;
/** No agent has it. */
const ELSEWHERE = "spiffe://example.org/elsewhere";

/**
 * A large registry in one server: half of the entries below the node aliases of clusters, half below single agents,
 * three selectors each. After each kind of use the server says what kept its event loop longest.
 */
export const directory = scenario({
  summary: "a registry of a million entries and ten thousand agents in one server, on PostgreSQL",
  parameters: {
    entries: { doc: "Registration entries.", default: 1_000_000 },
    agents: { doc: "Attested agents.", default: 10_000 },
    calls: { doc: "Questions, and changes.", default: 200 },
    atOnce: { doc: "Entries changed by one transaction.", default: 50_000 },
  },
  async run({ parameters, of, note }) {
    await using cleanup = new AsyncDisposableStack();
    const store = cleanup.use(await openPostgres());
    if (store === undefined) return note("PostgreSQL is not on this machine");
    const folder = await mkdtemp(join(tmpdir(), "steeple-bench-"));
    cleanup.defer(() => rm(folder, { recursive: true, force: true }));
    await (await startServer({ store })).stop();
    await fill(store.url, parameters);
    const started = performance.now();
    const watch = new LoopWatch(folder);
    const server = cleanup.use(
      await startServer({ store, startMs: 300_000, server: { log_level: "DEBUG" }, env: watch.env }),
    );
    const at = { entries: parameters.entries, agents: parameters.agents };
    const report = of(await storeName("postgres"));
    const figure = (one: Figure) => report.figure({ ...one, at });
    figure({ name: "start until ready", unit: "s", values: (performance.now() - started) / 1000 });
    figure({ name: "server RSS when ready", unit: "MB", values: rssMb(server.pid) });
    const longest = (name: string, turns: readonly Turn[]): void => {
      const ms = turns.map(({ cpuMs }) => cpuMs);
      figure({ name: `longest turn of the event loop, ${name}`, unit: "ms", values: Math.max(0, ...ms) });
    };
    const phase = async (name: string): Promise<void> => {
      const { turns, collections } = await watch.watched(server.pid);
      longest(name, turns);
      if (collections.length > 0)
        figure({ name: `pause for a whole collection, ${name}`, unit: "ms", values: collections });
    };
    const { turns } = await watch.watched(server.pid);
    const isLoading = loadingOf(server);
    longest("loading", turns.filter(isLoading));
    longest(
      "starting otherwise, with nothing served yet",
      turns.filter((turn) => !isLoading(turn)),
    );
    await use(server, { calls: parameters.calls, report: figure });
    await phase("one change or question at a time");
    for (const [name, work] of Object.entries(bulk(server, store.url, parameters.atOnce))) {
      const ms = await timed(work);
      figure({ name, unit: "s", values: ms / 1000 });
      await phase(name);
    }
    figure({ name: "server RSS afterwards", unit: "MB", values: rssMb(server.pid) });
  },
});

/** Whether a turn belongs to the loading of the directory. */
function loadingOf(server: TestServer): (turn: Turn) => boolean {
  const [loaded] = server.logged("Directory loaded");
  const end = new Date(String(loaded?.["time"])).getTime();
  const begin = end - Number(loaded?.["elapsed_ms"]);
  return ({ ended, wallMs }) => ended > begin && ended - wallMs < end;
}

/** What concerns many entries at once; each until the server has it. */
function bulk(server: TestServer, url: string, count: number): Readonly<Record<string, () => Promise<unknown>>> {
  const some = `id in (select id from entries where id like 'entry-%' order by seq desc limit ${count})`;
  const followed = async (text: string): Promise<void> => {
    await execute(url, text);
    // What is created afterwards is there only after that.
    await server.createEntry({ spiffeId: `spiffe://example.org/mark/${randomUUID()}`, parentId: ELSEWHERE });
  };
  return {
    [`${count} entries updated at once`]: () => followed(`update entries set revision_number = 1 where ${some}`),
    [`${count} entries deleted at once`]: () => followed(`delete from entries where ${some}`),
    "100 pages of 1000 listed, and counted": () => list(server),
    "everything loaded again": async () => {
      const loads = server.logged("Directory loaded").length;
      await execute(url, "update feed_state set horizon = '1000000000000'");
      await eventually("loaded again", () => server.logged("Directory loaded").length > loads, 300_000);
      await execute(url, "update feed_state set horizon = '0'");
    },
    "300 pages more": async () => {
      for (let round = 0; round < 3; round += 1) await list(server);
    },
  };
}

async function list({ admin: { entry } }: TestServer): Promise<void> {
  let page_token = "";
  for (let page = 0; page < 100; page += 1)
    ({ next_page_token: page_token } = await entry.ListEntries({ page_size: 1000, page_token }));
  await entry.CountEntries({});
  const selectors = [{ type: "k8s", value: "ns:7" }];
  await entry.ListEntries({ page_size: 1000, filter: { by_selectors: { match: "MATCH_SUPERSET", selectors } } });
}

async function execute(url: string, text: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await client.query(text);
  } finally {
    await client.end();
  }
}

async function fill(url: string, counts: { readonly entries: number; readonly agents: number }): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await client.query(`insert into attested_nodes (spiffe_id, attestation_type, serial_number, expires_at,
        new_serial_number, can_reattest, agent_version, selectors)
      select 'spiffe://example.org/spire/agent/bench/' || n, 'bench', n::text, now() + interval '1 day', '', true, '',
        array['bench:cluster:' || n % ${CLUSTERS}, 'bench:node:' || n] from generate_series(1, ${counts.agents}) n`);
    await client.query(entries("0", CLUSTERS, "'/cluster/' || n", "'/spire/server'", "array['bench:cluster:' || n]"));
    const parents = `case when n % 2 = 0 then '/cluster/' || n % ${CLUSTERS} else '/spire/agent/bench/' || n % ${counts.agents} end`;
    const selectors = "array['k8s:ns:' || n % 100, 'k8s:pod-label:app:' || n % 1000, 'k8s:sa:service-' || n]";
    await client.query(entries("1000", counts.entries, "'/workload/' || n", parents, selectors));
    await client.query("analyze");
  } finally {
    await client.end();
  }
}

function entries(from: string, count: number, path: string, parent: string, selectors: string): string {
  return `insert into entries (id, spiffe_id, parent_id, selectors, similar_hash, x509_svid_ttl, jwt_svid_ttl,
      federates_with, admin, downstream, store_svid, expires_at, dns_names, hint, disable_x509_svid_prefetch,
      jwt_svid_include_jti, revision_number, created_at)
    select 'entry-' || n, 'spiffe://example.org' || ${path}, 'spiffe://example.org' || ${parent}, ${selectors},
      sha256(('${from}' || n)::bytea), 0, 0, '{}', false, false, false, 0, '{}', '', false, false, 0, 1700000000
    from generate_series(${from}, ${from} + ${count} - 1) n`;
}

/** As one more agent of a cluster would use it, and an administrator. */
async function use(
  server: TestServer,
  { calls: count, report }: { readonly calls: number; readonly report: (figure: Figure) => void },
): Promise<void> {
  const agent = await server.attest();
  await server.createEntry({ spiffeId: "spiffe://example.org/own", parentId: agent.id });
  using apis = server.connect(agent.tls);
  const asked = await calls({ count, pid: server.pid }, () => apis.entry.GetAuthorizedEntries({}));
  const changed = await calls({ count, pid: server.pid }, (index) =>
    server.createEntry({ spiffeId: `spiffe://example.org/change/${index}`, parentId: agent.id }),
  );
  for (const [name, { ms, cpuUs }] of Object.entries({
    "authorized entries of one agent": asked,
    "entry create": changed,
  })) {
    report({ name: `${name}, call included`, unit: "ms", values: ms });
    if (cpuUs !== undefined) report({ name: `${name}, server CPU`, unit: "us", values: cpuUs });
  }
}
