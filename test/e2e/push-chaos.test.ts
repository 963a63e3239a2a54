import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../support/eventually.ts";
import {
  type Cluster,
  createDatabase,
  findPostgres,
  startCluster,
  type TestDatabase,
  withoutPostgres,
} from "../support/postgres.ts";
import { entryMessage, startServer, type TestServer } from "../support/server.ts";
import { SimulatedAgent } from "../support/simulated-agent.ts";

/** 10,000 by hand: STEEPLE_CHAOS_WRITES=10000. */
const WRITES = Number(process.env["STEEPLE_CHAOS_WRITES"] ?? 400);
const AGENTS = 12;
const ENTRIES = 60;

describe.skipIf(withoutPostgres)("two servers on one database, with everything killed at random", () => {
  let cluster: Cluster;
  let database: TestDatabase;
  const servers: TestServer[] = [];
  const agents: SimulatedAgent[] = [];

  beforeAll(async () => {
    cluster = await startCluster((await findPostgres()) ?? "");
    database = await createDatabase(cluster.url);
    const options = { store: { url: database.url }, server: { log_level: "INFO", ratelimit: { attestation: false } } };
    for (let at = 0; at < 2; at += 1) servers.push(await startServer(options));
    for (let at = 0; at < AGENTS; at += 1) agents.push(await SimulatedAgent.start(() => serverOf(at)));
  });
  afterAll(async () => {
    await Promise.all(agents.map((agent) => agent[Symbol.asyncDispose]()));
    await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()));
    await cluster?.[Symbol.asyncDispose]();
  });

  const serverOf = (at: number): TestServer => servers[at % servers.length] as TestServer;

  test("after as many writes every agent holds what the database says, and nothing else", async () => {
    const stop = new AbortController();
    const trouble = disturb(stop.signal);
    for (let at = 0; at < WRITES; at += 1) await write(at);
    stop.abort();
    await trouble;
    const expected = await whatTheDatabaseSays();
    for (const agent of agents) {
      await eventually(`${agent.id} equals the database`, () => {
        const held = [...agent.entries.values()].map(({ id, revisionNumber }) => `${id}@${revisionNumber}`).sort();
        return held.join() === (expected.get(agent.id) ?? []).join();
      });
    }
  });

  /** Whatever comes of it: a server that is killed, or a database that is away, refuses. */
  async function write(at: number): Promise<void> {
    const { admin } = serverOf(Math.floor(Math.random() * 2));
    const id = `entry-${Math.floor(Math.random() * ENTRIES)}`;
    const parentId = agents[Math.floor(Math.random() * AGENTS)]?.id ?? "";
    const entry = { ...entryMessage({ spiffeId: `spiffe://example.org/w/${at}`, parentId }), id };
    const kinds = [
      () => admin.entry.BatchCreateEntry({ entries: [entry] }),
      () => admin.entry.BatchUpdateEntry({ entries: [entry] }),
      () => admin.entry.BatchDeleteEntry({ ids: [id] }),
    ];
    await kinds[at % kinds.length]?.().catch(() => delay(20));
  }

  async function disturb(signal: AbortSignal): Promise<void> {
    for (let at = 0; !signal.aborted; at += 1) {
      await delay(300);
      if (at % 3 === 2) {
        await cluster.stop();
        await delay(100);
        await cluster.start();
      } else if (at % 3 === 1) {
        const victim = at % 2;
        const { folder, port } = serverOf(victim);
        await serverOf(victim).kill();
        await eventually(
          "a server starts",
          async () => {
            servers[victim] = await startServer({
              ...{ folder, store: { url: database.url } },
              server: { bind_port: port, log_level: "INFO", ratelimit: { attestation: false } },
            });
            return true;
          },
          60_000,
        );
      }
    }
  }

  async function whatTheDatabaseSays(): Promise<ReadonlyMap<string, readonly string[]>> {
    const entries = await eventually("the entries are listed", async () => {
      return (await serverOf(0).admin.entry.ListEntries({})).entries;
    });
    const byAgent = new Map<string, string[]>();
    for (const { id, parent_id, revision_number } of entries) {
      const parent = `spiffe://${parent_id?.trust_domain}${parent_id?.path}`;
      byAgent.set(parent, [...(byAgent.get(parent) ?? []), `${id}@${revision_number}`].sort());
    }
    expect(entries.length).toBeGreaterThan(0);
    return byAgent;
  }
});
