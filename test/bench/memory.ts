import { setTimeout as delay } from "node:timers/promises";
import { fetchX509Svid } from "../../src/client/index.ts";
import { OWN_SELECTOR } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { type EntryInput, entryMessage, type ServerClient } from "../support/server.ts";
import { scenario } from "./scenario.ts";
import { cpuMs, rssMb } from "./stats.ts";

const BATCH = 500;
const PARENTS = 500;
const PATIENCE_MS = 300_000;
/** A process that uses less of a core than this over two seconds has done what it had to do. */
const IDLE_SHARE = 0.05;
const LOOK_MS = 2_000;

/** Resident memory of a server and of an agent that hold more and more entries. */
export const memory = scenario({
  summary: "memory of a server and of an agent by the number of entries, and the CPU of creating them",
  parameters: {
    entries: { doc: "Entries at the server.", default: [1000, 5000, 20_000] },
    agentEntries: {
      doc: "Entries of one agent, each with its SVID; agents hold no more than 1,000 SVIDs by themselves.",
      default: [100, 300, 900],
    },
  },
  async run({ parameters, onServers, onAgents }) {
    await onServers({ wireOnly: true }, async (server, { figure, note }) => {
      const { pid } = server;
      if (pid === undefined) return note("memory is seen of processes on this machine only");
      figure({ name: "server RSS", unit: "MB", values: rssMb(pid), at: { entries: 0 } });
      let held = 0;
      for (const size of parameters.entries) {
        const before = cpuMs(pid);
        await create(server, { from: held, to: size, parentOf: (index) => `node-${index % PARENTS}` });
        await idle(pid);
        const each = ((cpuMs(pid) - before) * 1000) / (size - held);
        held = size;
        figure({ name: "server RSS", unit: "MB", values: rssMb(pid), at: { entries: size } });
        figure({ name: "server CPU for one entry more", unit: "us", values: each, at: { entries: size } });
      }
    });
    await onAgents({ wireOnly: true }, async ({ pid, server, id, socketPath }, { figure }) => {
      if (pid === undefined) return;
      figure({ name: "agent RSS", unit: "MB", values: rssMb(pid), at: { entries: 0 } });
      let held = 0;
      for (const size of parameters.agentEntries) {
        const before = cpuMs(pid);
        await create(server, { from: held, to: size, parentOf: () => id });
        const last = { spiffeId: `spiffe://${server.trustDomain}/bench/last/${size}`, selectors: [OWN_SELECTOR] };
        await server.createEntry({ ...last, parentId: id });
        const arrived = async (): Promise<boolean> => {
          const { svids } = await fetchX509Svid({ socket: `unix://${socketPath}` });
          return svids.some((svid) => svid.id === last.spiffeId);
        };
        await eventually("the last entry at the agent", arrived, PATIENCE_MS);
        await idle(pid);
        const each = ((cpuMs(pid) - before) * 1000) / (size - held);
        held = size;
        figure({ name: "agent RSS", unit: "MB", values: rssMb(pid), at: { entries: size } });
        figure({
          name: "agent CPU for one entry more, with its SVID",
          unit: "us",
          values: each,
          at: { entries: size },
        });
      }
    });
  },
});

async function create(
  { admin, trustDomain }: Pick<ServerClient, "admin" | "trustDomain">,
  { from, to, parentOf }: { readonly from: number; readonly to: number; parentOf(index: number): string },
): Promise<void> {
  const entryOf = (index: number): EntryInput => {
    const parent = parentOf(index);
    return {
      spiffeId: `spiffe://${trustDomain}/bench/memory/${index}`,
      parentId: parent.startsWith("spiffe:") ? parent : `spiffe://${trustDomain}/bench/${parent}`,
      selectors: ["k8s:ns:bench", `k8s:sa:service-${index}`, "k8s:container-name:app"],
    };
  };
  for (let first = from; first < to; first += BATCH) {
    const count = Math.min(BATCH, to - first);
    const entries = Array.from({ length: count }, (_, offset) => entryMessage(entryOf(first + offset)));
    const { results } = await admin.entry.BatchCreateEntry({ entries });
    const failed = results.find(({ status }) => status?.code !== 0);
    if (failed !== undefined) throw new Error(failed.status?.message);
  }
}

async function idle(pid: number): Promise<void> {
  let before = Number.NEGATIVE_INFINITY;
  await eventually(
    "the process has done what it had to",
    async () => {
      const used = cpuMs(pid) - before;
      before = cpuMs(pid);
      if (used < LOOK_MS * IDLE_SHARE) return true;
      await delay(LOOK_MS);
      return false;
    },
    PATIENCE_MS,
  );
}
