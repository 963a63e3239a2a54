import pg from "pg";
import { startServer, type TestServer } from "../support/server.ts";
import type { Figure } from "./figures.ts";
import { scenario } from "./scenario.ts";
import { openPostgres, storeName } from "./servers.ts";
import { calls, rssMb } from "./stats.ts";

const CLUSTERS = 200;

/**
 * A large registry in one server: half of the entries below the node aliases of clusters, half below single agents,
 * three selectors each.
 */
export const directory = scenario({
  summary: "a registry of a million entries and ten thousand agents in one server, on PostgreSQL",
  parameters: {
    entries: { doc: "Registration entries.", default: 1_000_000 },
    agents: { doc: "Attested agents.", default: 10_000 },
    calls: { doc: "Questions, and changes.", default: 200 },
  },
  async run({ parameters, of, note }) {
    await using store = await openPostgres();
    if (store === undefined) return note("PostgreSQL is not on this machine");
    await (await startServer({ store })).stop();
    await fill(store.url, parameters);
    const started = performance.now();
    await using server = await startServer({ store, startMs: 300_000, server: { log_level: "INFO" } });
    const at = { entries: parameters.entries, agents: parameters.agents };
    const { figure } = of(await storeName("postgres"));
    figure({ name: "start until ready", unit: "s", values: (performance.now() - started) / 1000, at });
    figure({ name: "server RSS when ready", unit: "MB", values: rssMb(server.pid), at });
    await use(server, { calls: parameters.calls, report: (one) => figure({ ...one, at }) });
    figure({ name: "server RSS afterwards", unit: "MB", values: rssMb(server.pid), at });
  },
});

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
    const selectors = "array['k8s:ns:' || n % 100, 'k8s:pod-label:app:' || n % 1000, 'k8s:sa:' || n % 500]";
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
