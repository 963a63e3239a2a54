import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { SvidApi } from "../../src/rpc/protos.ts";
import { eventually } from "../support/eventually.ts";
import { entryMessage } from "../support/server.ts";
import { SimulatedAgent } from "../support/simulated-agent.ts";
import { type MeasuredServer, scenario } from "./scenario.ts";
import { calls, cpuMs, rssMb, timed } from "./stats.ts";

const JOINING = 8;
const ENTRY_BATCH = 500;
const PATIENCE_MS = 300_000;
/** Fewer than a server lets in from one address. */
const PER_ADDRESS = 1_500;
/** Of ten agents one has SVIDs that are about to end. */
const URGENT_EVERY = 10;
const URGENT_TTL_SECONDS = 50;
const RESOURCE_EXHAUSTED = 8;

/** Every agent loses its connection, comes back and wants all of its SVIDs at once, as after an outage of the network. */
export const herd = scenario({
  summary: "all agents come back at once and want all of their SVIDs: how long each waits, those about to end apart",
  parameters: {
    agents: { doc: "Agents, each with its stream.", default: 1000 },
    entriesPerAgent: { doc: "Entries that each agent holds.", default: 5 },
  },
  onlyByName: true,
  async run({ parameters: { agents: count, entriesPerAgent }, onServers }) {
    await onServers({}, async (server, { figure }) => {
      await using scope = new AsyncDisposableStack();
      const agents: SimulatedAgent[] = [];
      await calls({ count, inFlight: JOINING }, async (index) => {
        const localAddress = `127.0.1.${1 + Math.floor(index / PER_ADDRESS)}`;
        agents.push(scope.use(await SimulatedAgent.start(() => server, { startMs: PATIENCE_MS, localAddress })));
      });
      await fill(server, agents, entriesPerAgent);
      const csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
      for (const agent of agents) await sign(agent, csr);

      const [pid = 0, before] = [server.pid, agents.map(({ agreements }) => agreements)];
      const [cpu, rss] = [cpuMs(pid), rssMb(pid)];
      let most = rss;
      const watching = setInterval(() => {
        most = Math.max(most, rssMb(pid));
      }, 50);
      const waits: Wait[] = [];
      const ms = await timed(async () => {
        for (const agent of agents) agent.drop();
        const started = performance.now();
        const back = agents.map(async (agent, index) => {
          await eventually("the agent is back", () => agent.agreements > (before[index] ?? 0), PATIENCE_MS);
          const refused = await sign(agent, csr);
          waits.push({ ms: performance.now() - started, refused, isUrgent: isUrgent(index) });
        });
        await Promise.all(back);
      });
      clearInterval(watching);
      const at = { agents: count };
      const timesOf = (urgent: boolean): number[] =>
        waits.filter((one) => one.isUrgent === urgent).map((one) => one.ms);
      figure({ name: "all agents back, with all of their SVIDs", unit: "s", values: ms / 1000, at });
      figure({ name: "until an agent has the SVIDs that were about to end", unit: "ms", values: timesOf(true), at });
      figure({ name: "until an agent has the other ones", unit: "ms", values: timesOf(false), at });
      const refusals = waits.reduce((sum, { refused }) => sum + refused, 0);
      figure({ name: "signatures refused by a full queue, and asked for again", unit: "", values: refusals, at });
      figure({ name: "server CPU for one agent and its SVIDs", unit: "ms", values: (cpuMs(pid) - cpu) / count, at });
      figure({ name: "server RSS before", unit: "MB", values: rss, at });
      figure({ name: "server RSS at most", unit: "MB", values: most, at });
    });
  },
});

interface Wait {
  readonly ms: number;
  readonly refused: number;
  readonly isUrgent: boolean;
}

const isUrgent = (index: number): boolean => index % URGENT_EVERY === 0;

async function fill(server: MeasuredServer, agents: readonly SimulatedAgent[], each: number): Promise<void> {
  const entries = agents.flatMap(({ id: parentId }, index) =>
    Array.from({ length: each }, (_, at) => ({
      ...{ parentId, spiffeId: `spiffe://${server.trustDomain}/bench/${index}/${at}` },
      x509_svid_ttl: isUrgent(index) ? URGENT_TTL_SECONDS : 0,
    })),
  );
  for (let from = 0; from < entries.length; from += ENTRY_BATCH)
    await server.admin.entry.BatchCreateEntry({ entries: entries.slice(from, from + ENTRY_BATCH).map(entryMessage) });
  const held = (): boolean => agents.every((agent) => agent.entries.size >= each);
  await eventually("every agent has its entries", held, PATIENCE_MS);
}

/** All that the agent holds, until every one is signed. Returns how many were refused on the way. */
async function sign(agent: SimulatedAgent, csr: Buffer): Promise<number> {
  let refused = 0;
  for (let left = [...agent.entries.keys()]; left.length > 0; ) {
    const params = left.map((entry_id) => ({ entry_id, csr }));
    const { results } = await agent.channel.unary(SvidApi, "BatchNewX509SVID", { params });
    const wrong = results.find(({ status }) => status?.code !== 0 && status?.code !== RESOURCE_EXHAUSTED);
    if (wrong !== undefined) throw new Error(wrong.status?.message);
    left = left.filter((_, index) => results[index]?.status?.code !== 0);
    refused += left.length;
  }
  return refused;
}
