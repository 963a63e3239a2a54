import pg from "pg";
import { createDatabase, findPostgres, startCluster } from "../support/postgres.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { cpuMs, ms, rssMb, spread } from "./stats.ts";

const ENTRIES = Number(process.env["STEEPLE_BENCH_ENTRIES"] ?? 1_000_000);
const AGENTS = 10_000;
const CLUSTERS = 200;
const QUESTIONS = 200;
const CHANGES = 200;

/**
 * A large registry in one server: half of the entries below the node aliases of clusters, half below single agents,
 * three selectors each.
 */
export async function measureDirectory(): Promise<string[]> {
  const bin = await findPostgres();
  if (bin === undefined) return ["PostgreSQL: not on this machine"];
  await using cluster = await startCluster(bin);
  await using database = await createDatabase(cluster.url);
  await (await startServer({ store: { url: database.url } })).stop();
  await fill(database.url);
  const started = performance.now();
  await using server = await startServer({
    ...{ store: { url: database.url }, startMs: 300_000 },
    server: { log_level: "INFO" },
  });
  const ready = (performance.now() - started) / 1000;
  const size = `${ENTRIES.toLocaleString("en")} entries, ${AGENTS.toLocaleString("en")} agents`;
  return [
    `${size}: ready after ${ready.toFixed(1)} s, RSS ${rssMb(server.pid).toFixed(0)} MB`,
    ...(await use(server)),
    `RSS afterwards ${rssMb(server.pid).toFixed(0)} MB`,
  ];
}

async function fill(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await client.query(`insert into attested_nodes (spiffe_id, attestation_type, serial_number, expires_at,
        new_serial_number, can_reattest, agent_version, selectors)
      select 'spiffe://example.org/spire/agent/bench/' || n, 'bench', n::text, now() + interval '1 day', '', true, '',
        array['bench:cluster:' || n % ${CLUSTERS}, 'bench:node:' || n] from generate_series(1, ${AGENTS}) n`);
    await client.query(entries("0", CLUSTERS, "'/cluster/' || n", "'/spire/server'", "array['bench:cluster:' || n]"));
    const parents = `case when n % 2 = 0 then '/cluster/' || n % ${CLUSTERS} else '/spire/agent/bench/' || n % ${AGENTS} end`;
    const selectors = "array['k8s:ns:' || n % 100, 'k8s:pod-label:app:' || n % 1000, 'k8s:sa:' || n % 500]";
    await client.query(entries("1000", ENTRIES, "'/workload/' || n", parents, selectors));
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
async function use(server: TestServer): Promise<string[]> {
  const agent = await server.attest();
  await server.createEntry({ spiffeId: "spiffe://example.org/own", parentId: agent.id });
  using apis = server.connect(agent.tls);
  const asked: number[] = [];
  const cpu = cpuMs(server.pid);
  for (let at = 0; at < QUESTIONS; at += 1) {
    const started = performance.now();
    await apis.entry.GetAuthorizedEntries({});
    asked.push(performance.now() - started);
  }
  const changed: number[] = [];
  for (let at = 0; at < CHANGES; at += 1) {
    const started = performance.now();
    await server.createEntry({ spiffeId: `spiffe://example.org/change/${at}`, parentId: agent.id });
    changed.push(performance.now() - started);
  }
  const each = (cpuMs(server.pid) - cpu) / (QUESTIONS + CHANGES);
  return [
    `authorized entries of one agent, call included: ${spread(asked)}`,
    `entry create, until it is in the directory: ${spread(changed)}; ${ms(each)} server CPU per call`,
  ];
}
