import { readdirSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { AgentApi, SvidApi } from "../../src/rpc/protos.ts";
import { eventually } from "../support/eventually.ts";
import { entryMessage } from "../support/server.ts";
import { COMPARE_MS, SimulatedAgent } from "../support/simulated-agent.ts";
import type { Figure, Limit } from "./figures.ts";
import { type MeasuredServer, type Report, scenario } from "./scenario.ts";
import { calls, cpuMs, rssMb, timed } from "./stats.ts";

/** As SPIRE's agents ask. */
const POLL_MS = 5_000;
/** Fewer than a server lets in from one address. */
const PER_ADDRESS = 1_500;
const JOINING = 8;
const ENTRY_BATCH = 500;
const RENEWALS = 200;
const PATIENCE_MS = 300_000;

/** A fleet of agents at one server: what it costs at several sizes, and how long changes take to reach it. */
export const simulate = scenario({
  summary: "a fleet of simulated agents at one server: cost of each stream, propagation, reconnection, renewal",
  parameters: {
    agents: { doc: "Sizes of the fleet; it grows from one to the next.", default: [250, 500, 1000, 2000] },
    entriesPerAgent: { doc: "Entries that each agent holds.", default: 10 },
    changesPerSecond: { doc: "Entries created in a second, whether or not earlier ones have arrived.", default: 20 },
    seconds: { doc: "How long each phase lasts.", default: 30 },
  },
  onlyByName: true,
  async run({ parameters, onServers, limits, signal }) {
    const commit = await limits.commit();
    await onServers({ wireOnly: true }, async (server, report) => {
      await using fleet = new Fleet(server, parameters);
      let before = { size: 0, rss: fleet.rss() };
      for (const size of parameters.agents) {
        signal.throwIfAborted();
        const at = { agents: size };
        const sized: Report = { ...report, figure: (figure) => report.figure({ ...figure, at }) };
        await fleet.grow(size, sized);
        await fleet.rest(sized);
        await fleet.change(sized, commit);
        const now = { size, rss: fleet.rss() };
        const more = ((now.rss - before.rss) * 1024) / (now.size - before.size);
        if (server.pid !== undefined) {
          sized.figure({ name: "server RSS", unit: "MB", values: now.rss });
          sized.figure({ name: "server RSS of one agent more, since the size before", unit: "kB", values: more });
        }
        before = now;
        await fleet.reconnect(sized);
      }
      await fleet.renew(report);
    });
  },
});

interface FleetOptions {
  readonly entriesPerAgent: number;
  readonly changesPerSecond: number;
  readonly seconds: number;
}

interface Change {
  readonly at: number;
  toldMs?: number;
  svidMs?: number;
}

class Fleet implements AsyncDisposable {
  readonly #server: MeasuredServer;
  readonly #options: FleetOptions;
  readonly #agents: SimulatedAgent[] = [];
  readonly #changes = new Map<string, Change>();
  #csr: Buffer = Buffer.alloc(0);
  #made = 0;

  constructor(server: MeasuredServer, options: FleetOptions) {
    this.#server = server;
    this.#options = options;
  }

  /** NaN for a server on another machine. */
  rss(): number {
    return this.#server.pid === undefined ? Number.NaN : rssMb(this.#server.pid);
  }

  /** Agents attest, get their entries and hold their streams. */
  async grow(size: number, { figure }: Report): Promise<void> {
    const [first, { pid }] = [this.#agents.length, this.#server];
    const joined = await calls({ count: size - first, inFlight: JOINING, pid }, (index) => this.#join(first + index));
    figure({ name: "agents joining", unit: "/s", values: joined.count / joined.seconds });
    this.#cpu(figure, "server CPU for one agent joining", joined.cpuUs);
    await this.#fill(this.#agents.slice(first));
  }

  /** Nothing happens. Long enough for each agent to compare its state with the server once. */
  async rest({ figure }: Report): Promise<void> {
    const { pid } = this.#server;
    if (pid === undefined) return;
    const [before, own] = [cpuMs(pid), cpuMs(process.pid)];
    const restMs = Math.max(this.#options.seconds * 1000, this.#server.isOurs ? COMPARE_MS : 2 * POLL_MS);
    const ms = await timed(() => delay(restMs));
    const used = cpuMs(pid) - before;
    figure({ name: "server CPU while nothing changes, of one core", unit: "%", values: (used / ms) * 100 });
    figure({ name: "the simulator's own, of one core", unit: "%", values: ((cpuMs(process.pid) - own) / ms) * 100 });
  }

  /** Entries are created at a steady pace; the agent that may hold one has an SVID signed for it as soon as it is told. */
  async change({ figure, note }: Report, commit: Limit): Promise<void> {
    const { changesPerSecond, seconds } = this.#options;
    const { pid } = this.#server;
    const count = changesPerSecond * seconds;
    const before = pid === undefined ? 0 : cpuMs(pid);
    const started = performance.now();
    const writes: Promise<void>[] = [];
    for (let index = 0; index < count; index += 1) {
      await delay(Math.max(0, started + (index * 1000) / changesPerSecond - performance.now()));
      writes.push(this.#create());
    }
    await Promise.all(writes);
    const changes = [...this.#changes.values()];
    const arrived = (): readonly Change[] => changes.filter(({ svidMs }) => svidMs !== undefined);
    await eventually("every change at its agent", () => arrived().length === count, PATIENCE_MS).catch(() =>
      note(`${count - arrived().length} of ${count} changes had not arrived after ${PATIENCE_MS / 1000} s`),
    );
    const used = pid === undefined ? undefined : ((cpuMs(pid) - before) * 1000) / count;
    this.#changes.clear();
    figure({ name: "entry create until the agent knows", unit: "ms", values: arrived().map(toldMs), limit: commit });
    figure({ name: "entry create until the agent has an SVID", unit: "ms", values: arrived().map(svidMs) });
    this.#cpu(figure, "server CPU for one change, its SVID included", used);
  }

  /** All connections are lost at once. */
  async reconnect({ figure }: Report): Promise<void> {
    const { pid } = this.#server;
    const before = pid === undefined ? 0 : cpuMs(pid);
    const goals = this.#agents.map(({ agreements }) => agreements + 1);
    const all = (): boolean => this.#agents.every(({ agreements }, index) => agreements >= (goals[index] ?? 0));
    const ms = await timed(async () => {
      for (const agent of this.#agents) agent.drop();
      await eventually("all agents are back", all, PATIENCE_MS);
    });
    figure({ name: "all agents back after all connections were lost", unit: "s", values: ms / 1000 });
    if (pid === undefined) return;
    const each = ((cpuMs(pid) - before) * 1000) / this.#agents.length;
    this.#cpu(figure, "server CPU for one reconnection", each);
    figure({ name: "open files of the server", unit: "", values: readdirSync(`/proc/${pid}/fd`).length });
  }

  /** Agents renew their own SVIDs. */
  async renew({ figure }: Report): Promise<void> {
    const csr = await this.#request();
    const some = this.#agents.slice(0, RENEWALS);
    const { cpuUs } = await calls({ count: some.length, pid: this.#server.pid }, (index) =>
      (some[index] as SimulatedAgent).channel.unary(AgentApi, "RenewAgent", { params: { csr } }),
    );
    this.#cpu(figure, "server CPU for one agent SVID renewed", cpuUs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#agents.map((agent) => agent[Symbol.asyncDispose]()));
  }

  async #join(index: number): Promise<void> {
    const isLocal = this.#server.address.startsWith("127.");
    const agent = await SimulatedAgent.start(() => this.#server, {
      told: (id) => void this.#told(agent, id),
      startMs: PATIENCE_MS,
      ...(this.#server.isOurs ? {} : { pollMs: POLL_MS }),
      ...(isLocal ? { localAddress: `127.0.1.${1 + Math.floor(index / PER_ADDRESS)}` } : {}),
    });
    this.#agents.push(agent);
  }

  async #fill(agents: readonly SimulatedAgent[]): Promise<void> {
    const entries = agents.flatMap(({ id }) =>
      Array.from({ length: this.#options.entriesPerAgent }, () => ({ parentId: id, ...this.#next() })),
    );
    for (let from = 0; from < entries.length; from += ENTRY_BATCH) {
      const batch = entries.slice(from, from + ENTRY_BATCH).map(entryMessage);
      const { results } = await this.#server.admin.entry.BatchCreateEntry({ entries: batch });
      const failed = results.find(({ status }) => status?.code !== 0);
      if (failed !== undefined) throw new Error(failed.status?.message);
    }
    const held = (): boolean => agents.every((agent) => agent.entries.size >= this.#options.entriesPerAgent);
    await eventually("every agent has its entries", held, PATIENCE_MS);
  }

  async #create(): Promise<void> {
    const agent = this.#agents[(this.#made * 7919) % this.#agents.length] as SimulatedAgent;
    const entry = this.#next();
    this.#changes.set(entry.id, { at: performance.now() });
    await this.#server.createEntry({ ...entry, parentId: agent.id });
  }

  #next(): { readonly id: string; readonly spiffeId: string } {
    const id = `bench-${process.pid}-${this.#made++}`;
    return { id, spiffeId: `spiffe://${this.#server.trustDomain}/bench/${id}` };
  }

  async #told(agent: SimulatedAgent, entry_id: string): Promise<void> {
    const change = this.#changes.get(entry_id);
    if (change === undefined || change.toldMs !== undefined) return;
    change.toldMs = performance.now() - change.at;
    const params = [{ entry_id, csr: await this.#request() }];
    const { results } = await agent.channel.unary(SvidApi, "BatchNewX509SVID", { params });
    if (results[0]?.status?.code === 0) change.svidMs = performance.now() - change.at;
  }

  /** Real agents make keys ahead of need; one key for all costs this process nothing. */
  async #request(): Promise<Buffer> {
    if (this.#csr.length === 0)
      this.#csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
    return this.#csr;
  }

  #cpu(figure: (figure: Figure) => void, name: string, values: number | undefined): void {
    if (values !== undefined) figure({ name, unit: "us", values });
  }
}

const toldMs = (change: Change): number => change.toldMs ?? Number.NaN;
const svidMs = (change: Change): number => change.svidMs ?? Number.NaN;
