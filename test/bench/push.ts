import { createDatabase, findPostgres, startCluster } from "../support/postgres.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { SimulatedAgent } from "../support/simulated-agent.ts";
import { cpuMs, ms, rssMb, spread } from "./stats.ts";

const AGENTS = 100;
const WRITES = 300;

/** From the call that creates an entry to its arrival at the one of many agents that is authorized for it. */
export async function measurePush(): Promise<string[]> {
  const config = { log_level: "INFO", ratelimit: { attestation: false } };
  const lines: string[] = [];
  {
    await using server = await startServer({ server: config });
    lines.push(`embedded store: ${await propagation(server)}`);
  }
  const bin = await findPostgres();
  if (bin === undefined) return [...lines, "PostgreSQL: not on this machine"];
  await using cluster = await startCluster(bin);
  await using database = await createDatabase(cluster.url);
  await using server = await startServer({ store: { url: database.url }, server: config });
  lines.push(`PostgreSQL: ${await propagation(server)}`);
  return lines;
}

async function propagation(server: TestServer): Promise<string> {
  await using scope = new AsyncDisposableStack();
  const since = new Map<string, number>();
  const times: number[] = [];
  const told = (id: string): void => {
    const started = since.get(id);
    if (started !== undefined && since.delete(id)) times.push(performance.now() - started);
  };
  const agents: SimulatedAgent[] = [];
  for (let at = 0; at < AGENTS; at += 1) agents.push(scope.use(await SimulatedAgent.start(() => server, told)));
  const rss = rssMb(server.pid);
  const cpu = cpuMs(server.pid);
  for (let at = 0; at < WRITES; at += 1) {
    const id = `entry-${at}`;
    since.set(id, performance.now());
    const parentId = agents[(at * 7) % AGENTS]?.id ?? "";
    await server.createEntry({ id, spiffeId: `spiffe://example.org/bench/${at}`, parentId });
  }
  const ids = Array.from({ length: WRITES }, (_, at) => `entry-${at}`);
  await server.admin.push.AwaitEntries({ ids });
  const cost = (cpuMs(server.pid) - cpu) / WRITES;
  return `${AGENTS} agents, entry create to agent ${spread(times)}; ${ms(cost)} server CPU each; server RSS ${rss.toFixed(0)} MB`;
}
