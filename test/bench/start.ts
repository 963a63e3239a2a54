import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startAgent } from "../support/agent.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { type Report, scenario } from "./scenario.ts";
import { openPostgres, storeName } from "./servers.ts";
import { calls, cpuMs, percentile, rssMb } from "./stats.ts";

/** From the start of the process to its ready line: how long, its CPU, and its memory then. */
export const start = scenario({
  summary: "start-up of server and agent until they serve, their CPU and memory then",
  async run({ of }) {
    await using scope = new AsyncDisposableStack();
    const folder = await mkdtemp(join(tmpdir(), "steeple-bench-"));
    scope.defer(() => rm(folder, { recursive: true, force: true }));
    const empty = percentile((await calls({ count: 5 }, emptyNode)).ms, 0.5);
    const limit = { name: "a Node process that does nothing, median of 5", value: empty };
    const measure = async (report: Report, what: string, open: () => Promise<Started>): Promise<void> => {
      const started = performance.now();
      await using running = await open();
      report.figure({ name: what, unit: "ms", values: performance.now() - started, limit });
      report.figure({ name: `${what}, CPU`, unit: "ms", values: cpuMs(running.pid) });
      report.figure({ name: `${what}, RSS`, unit: "MB", values: rssMb(running.pid) });
    };
    const embedded = of(await storeName("embedded"));
    await measure(embedded, "server, first start", () => startServer({ folder }));
    await measure(embedded, "server, second start", () => startServer({ folder }));
    await using database = await openPostgres();
    if (database !== undefined) {
      const postgres = of(await storeName("postgres"));
      await measure(postgres, "server, first start", () => startServer({ store: database }));
      await measure(postgres, "server, second start", () => startServer({ store: database }));
    }
    await using server: TestServer = await startServer({ folder });
    const token = await server.createToken();
    await measure(of(""), "agent, attesting by join token", () => startAgent(server, { token }));
  },
});

interface Started extends AsyncDisposable {
  readonly pid: number;
}

async function emptyNode(): Promise<void> {
  await once(spawn(process.execPath, ["-e", "0"], { stdio: "ignore" }), "exit");
}
