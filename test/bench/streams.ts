import { OWN_SELECTOR, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { INSPECTED, Inspector } from "../support/inspector.ts";
import { type RawCall, RawClient } from "../support/raw-client.ts";
import { startServer } from "../support/server.ts";
import { scenario } from "./scenario.ts";
import { rssMb } from "./stats.ts";

const CONNECTIONS = 4;
const MB = 2 ** 20;

/** What open streams hold, and what changes leave behind: resident at that moment, and in use after a full collection. */
export const streamMemory = scenario({
  summary: "memory of an agent with many open streams, before and after changes that reach them all",
  parameters: {
    streams: { doc: "Open streams.", default: 2000 },
    changes: { doc: "Changes, one after the other.", default: 50 },
  },
  async run({ parameters: { streams: count, changes }, figure }) {
    await using server = await startServer({ server: { log_level: "INFO" } });
    const env = { NODE_OPTIONS: INSPECTED };
    await using agent = await startAgent(server, { env, agent: { log_level: "INFO" } });
    using inspector = await Inspector.attach(agent.output());
    const entry = { parentId: agent.id(), spiffeId: "spiffe://example.org/bench", selectors: [OWN_SELECTOR] };
    const { id } = await server.createEntry(entry);
    await eventually("an identity", () => agent.fetch().catch(() => undefined));
    const look = async (when: string) => {
      const at = { streams: count };
      figure({ name: `RSS, ${when}`, unit: "MB", values: rssMb(agent.pid), at });
      const heap = (await inspector.heapInUse()) / MB;
      figure({ name: `in use after a full collection, ${when}`, unit: "MB", values: heap, at });
      return heap;
    };
    const before = await look("before");
    await using scope = new AsyncDisposableStack();
    const clients = Array.from({ length: CONNECTIONS }, () => scope.use(new RawClient(agent.socketPath)));
    const streams: RawCall[] = [];
    for (const client of clients) {
      const some = Array.from({ length: count / CONNECTIONS }, () => client.svids());
      await Promise.all(some.map((call) => call.next(1)));
      streams.push(...some);
    }
    const open = await look("open");
    figure({ name: "streams for each MB in use", unit: "", values: count / (open - before) });
    for (let change = 1; change <= changes; change++) {
      const arrivals = streams.map((call) => call.next(change + 1));
      const entries = [{ id, hint: `hint-${change}` }];
      await server.admin.entry.BatchUpdateEntry({ entries, input_mask: { hint: true } });
      await Promise.all(arrivals);
      if (change === 5) await look("after 5 changes");
    }
    await look(`after ${changes} changes`);
  },
});
