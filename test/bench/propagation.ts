import { eventually } from "../support/eventually.ts";
import { SimulatedAgent } from "../support/simulated-agent.ts";
import { type MeasuredServer, scenario } from "./scenario.ts";
import { calls, rssMb } from "./stats.ts";

const POLL_MS = 5_000;
const PATIENCE_MS = 120_000;

/** From the call that creates an entry to its arrival at the one of many agents that is authorized for it. */
export const propagation = scenario({
  summary: "from entry create to the one of many agents that may hold the entry; other servers are asked every 5 s",
  parameters: {
    agents: { doc: "Agents, each with its stream.", default: 100 },
    changes: { doc: "Entries created, one after the other.", default: 300 },
  },
  async run({ parameters: { agents, changes }, onServers, limits }) {
    const limit = await limits.commit();
    await onServers({ wireOnly: true }, async (server, { figure }) => {
      const at = { agents };
      const { ms, cpuUs, rss } = await propagate(server, agents, changes);
      figure({ name: "entry create to agent", unit: "ms", values: ms, at, limit });
      if (cpuUs !== undefined) figure({ name: "server CPU for one", unit: "us", values: cpuUs, at });
      if (rss !== undefined) figure({ name: "server RSS with all agents", unit: "MB", values: rss, at });
    });
  },
});

async function propagate(server: MeasuredServer, count: number, changes: number) {
  await using scope = new AsyncDisposableStack();
  const { pid, isOurs, trustDomain } = server;
  const since = new Map<string, number>();
  const ms: number[] = [];
  const told = (id: string): void => {
    const started = since.get(id);
    if (started !== undefined && since.delete(id)) ms.push(performance.now() - started);
  };
  const options = { told, startMs: PATIENCE_MS, ...(isOurs ? {} : { pollMs: POLL_MS }) };
  const agents: SimulatedAgent[] = [];
  for (let at = 0; at < count; at += 1) agents.push(scope.use(await SimulatedAgent.start(() => server, options)));
  const rss = pid === undefined ? undefined : rssMb(pid);
  const { cpuUs } = await calls({ count: changes, pid }, async (at) => {
    const id = `bench-${process.pid}-${at}`;
    since.set(id, performance.now());
    const parentId = agents[(at * 7) % count]?.id ?? "";
    await server.createEntry({ id, spiffeId: `spiffe://${trustDomain}/bench/${at}`, parentId });
  });
  await eventually("every change at its agent", () => ms.length === changes, PATIENCE_MS);
  return { ms, cpuUs, rss };
}
