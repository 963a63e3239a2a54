import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startAgent } from "../support/agent.ts";
import { createDatabase, findPostgres, startCluster } from "../support/postgres.ts";
import { startServer } from "../support/server.ts";
import { ms, rssMb } from "./stats.ts";

/** From the start of the process to its ready line, and its memory then. Sources as they are, types stripped. */
export async function measureStart(): Promise<string[]> {
  const folder = await mkdtemp(join(tmpdir(), "steeple-bench-"));
  await using cleanup = new AsyncDisposableStack();
  cleanup.defer(() => rm(folder, { recursive: true, force: true }));
  const lines: string[] = [];
  for (const [what, store] of [
    ["embedded store, first start", "embedded"],
    ["embedded store, second start", "embedded"],
    ["PostgreSQL", "postgres"],
  ] as const) {
    const bin = await findPostgres();
    if (store === "postgres" && bin === undefined) {
      lines.push("PostgreSQL: not on this machine");
      continue;
    }
    await using cluster = store === "postgres" && bin !== undefined ? await startCluster(bin) : undefined;
    await using database = cluster === undefined ? undefined : await createDatabase(cluster.url);
    const started = performance.now();
    await using server = await startServer(database === undefined ? { folder } : { store: { url: database.url } });
    lines.push(`server, ${what}: ${ms(performance.now() - started)}, RSS ${rssMb(server.pid).toFixed(0)} MB`);
    if (store !== "embedded") {
      const agentStarted = performance.now();
      await using agent = await startAgent(server);
      lines.push(
        `agent, attesting by join token: ${ms(performance.now() - agentStarted)}, RSS ${rssMb(agent.pid).toFixed(0)} MB`,
      );
    }
  }
  return lines;
}
