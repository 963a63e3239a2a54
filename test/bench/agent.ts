import { fetchX509Svid, watchX509Svids } from "../../src/client/index.ts";
import { OWN_SELECTOR } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { type MeasuredAgent, scenario } from "./scenario.ts";
import { calls, rssMb } from "./stats.ts";

/** FetchX509SVID from the agent's cache: a new connection, attestation and the answer each time. */
export const fetchFromCache = scenario({
  summary: "FetchX509SVID from the agent's cache: a new connection, attestation and the answer each time",
  parameters: { calls: { doc: "Fetches.", default: 300 } },
  async run({ parameters: { calls: count }, limits, onAgents }) {
    const limit = await limits.roundTrip("unix", 1024);
    await onAgents({ wireOnly: true }, async (agent, { figure }) => {
      await register(agent, "fetch");
      const socket = `unix://${agent.socketPath}`;
      await eventually("an identity", () => fetchX509Svid({ socket }));
      const { ms, cpuUs } = await calls({ count, pid: agent.pid }, () => fetchX509Svid({ socket }));
      figure({ name: "connect, attest, first answer, client included", unit: "ms", values: ms, limit });
      if (cpuUs !== undefined) figure({ name: "agent CPU for one", unit: "us", values: cpuUs });
      if (agent.pid !== undefined) figure({ name: "agent RSS afterwards", unit: "MB", values: rssMb(agent.pid) });
    });
  },
});

/** From `entry create` to the SVID on a stream that was open before. */
export const entryToSvid = scenario({
  summary: "from entry create to the SVID on a stream of the Workload API that was open before",
  parameters: { entries: { doc: "Entries, one after the other.", default: 20 } },
  async run({ parameters: { entries }, limits, onAgents }) {
    const limit = await limits.commit();
    const agent = { experimental: { sync_interval: "5s" } };
    await onAgents({ agent, wireOnly: true }, async (measured, { figure }) => {
      figure({ name: "create to SVID", unit: "ms", values: await entriesToSvids(measured, entries), limit });
    });
  },
});

async function entriesToSvids(agent: MeasuredAgent, count: number): Promise<readonly number[]> {
  const stop = new AbortController();
  const times: number[] = [];
  const open = Promise.withResolvers<void>();
  let waiting: { readonly id: string; readonly since: number; done(): void } | undefined;
  const watching = (async () => {
    for await (const { svids } of watchX509Svids({ socket: `unix://${agent.socketPath}`, signal: stop.signal })) {
      open.resolve();
      if (waiting === undefined || !svids.some(({ id }) => id === waiting?.id)) continue;
      times.push(performance.now() - waiting.since);
      waiting.done();
    }
  })();
  await register(agent, "first");
  await open.promise;
  for (let index = 0; index < count; index++) {
    await new Promise<void>((resolve, reject) => {
      waiting = { id: idOf(agent, String(index)), since: performance.now(), done: resolve };
      register(agent, String(index)).catch(reject);
    });
  }
  stop.abort();
  await watching;
  return times;
}

function register(agent: MeasuredAgent, name: string): Promise<unknown> {
  return agent.server.createEntry({ spiffeId: idOf(agent, name), parentId: agent.id, selectors: [OWN_SELECTOR] });
}

const idOf = ({ server }: MeasuredAgent, name: string): string => `spiffe://${server.trustDomain}/bench/${name}`;
