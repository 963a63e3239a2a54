import { SimulatedAgent } from "../support/simulated-agent.ts";
import { type MeasuredServer, scenario } from "./scenario.ts";
import { calls, rssMb } from "./stats.ts";

/** From the call that creates an entry to its arrival at the one of many agents that is authorized for it. */
export const push = scenario({
  summary: "from entry create to the one of many agents that may hold the entry, pushed",
  parameters: {
    agents: { doc: "Agents, each with its stream.", default: 100 },
    changes: { doc: "Entries created, one after the other.", default: 300 },
  },
  async run({ parameters: { agents, changes }, onServers, limits }) {
    const limit = await limits.commit();
    await onServers({}, async (server, { figure }) => {
      const at = { agents };
      const { ms, cpuUs, rss } = await propagation(server, agents, changes);
      figure({ name: "entry create to agent", unit: "ms", values: ms, at, limit });
      figure({ name: "server CPU for one", unit: "us", values: cpuUs, at });
      figure({ name: "server RSS with all agents", unit: "MB", values: rss, at });
    });
  },
});

async function propagation(server: MeasuredServer, count: number, changes: number) {
  await using scope = new AsyncDisposableStack();
  const pid = server.pid ?? 0;
  const since = new Map<string, number>();
  const ms: number[] = [];
  const told = (id: string): void => {
    const started = since.get(id);
    if (started !== undefined && since.delete(id)) ms.push(performance.now() - started);
  };
  const agents: SimulatedAgent[] = [];
  for (let at = 0; at < count; at += 1) agents.push(scope.use(await SimulatedAgent.start(() => server, { told })));
  const rss = rssMb(pid);
  const ids = Array.from({ length: changes }, (_, at) => `entry-${at}`);
  const { cpuUs = Number.NaN } = await calls({ count: changes, pid }, async (at) => {
    const id = ids[at] ?? "";
    since.set(id, performance.now());
    const parentId = agents[(at * 7) % count]?.id ?? "";
    await server.createEntry({ id, spiffeId: `spiffe://example.org/bench/${at}`, parentId });
  });
  await server.admin.push.AwaitEntries({ ids });
  return { ms, cpuUs, rss };
}
