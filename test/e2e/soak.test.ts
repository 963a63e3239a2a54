import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { watchX509Svids, type X509Context } from "../../src/client/index.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { knowing } from "../support/names.ts";
import { type Cluster, createDatabase, findPostgres, startCluster, withoutPostgres } from "../support/postgres.ts";
import { entryMessage, protoId, startServer, type TestServer } from "../support/server.ts";
import { temporaryDirectory } from "../support/workload.ts";

/** 20 by hand: STEEPLE_SOAK_ROUNDS=20. */
const ROUNDS = Number(process.env["STEEPLE_SOAK_ROUNDS"] ?? 1);
const ROUND_MS = 240_000;
const PATIENCE_MS = 120_000;
const NAME = "soak.test";
const ADDRESSES = ["127.0.0.1", "127.0.0.2"] as const;
const AGENTS = 2;
const ENTRIES_EACH = 4;
/** What is left at any time outlasts an agent that is started again on a busy machine. */
const LIFETIMES = { default_x509_svid_ttl: "4m", agent_ttl: "4m", ca_ttl: "20m" } as const;

/** An entry as the test has made it. */
interface Row {
  readonly id: string;
  /** The last one counts; a workload may hold another one for a moment. */
  readonly names: string[];
  /** A workload has been given it. */
  wasSeen: boolean;
  /** It is being deleted, or what became of a write is not known. */
  mayBeGone: boolean;
}

/** A stream that stays open, and everything that a workload could notice. */
class Workload {
  readonly troubles: string[] = [];
  readonly rows = new Map<string, Row>();
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  readonly #looking: NodeJS.Timeout;
  #context: X509Context | undefined;
  updates = 0;

  constructor(socket: string) {
    this.#running = this.#watch(socket);
    this.#looking = setInterval(() => this.#look(), 100);
  }

  get ids(): readonly string[] {
    return (this.#context?.svids ?? []).map(({ id }) => id).sort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#looking);
    this.#stop.abort();
    await this.#running;
  }

  async #watch(socket: string): Promise<void> {
    for await (const context of watchX509Svids({ socket, signal: this.#stop.signal })) {
      this.#context = context;
      this.updates += 1;
      const { svids, bundles } = context;
      for (const { id, chain } of svids) {
        try {
          validateX509Svid({ chain, authorities: (domain) => bundles.get(domain)?.authorities, at: new Date() });
        } catch (error) {
          this.troubles.push(`${id} as it came: ${error}`);
        }
      }
      this.#compare();
    }
  }

  /** What was there and was not taken away is there, under one of its names; nothing is there that never was granted. */
  #compare(): void {
    const held = new Set(this.ids);
    for (const row of this.rows.values()) {
      if (row.names.some((name) => held.has(name))) row.wasSeen = true;
      else if (row.wasSeen && !row.mayBeGone) this.troubles.push(`${row.names.at(-1)} is missing for a moment`);
    }
    const granted = new Set([...this.rows.values()].flatMap(({ names }) => names));
    for (const id of held) if (!granted.has(id)) this.troubles.push(`${id} was never granted`);
  }

  #look(): void {
    const now = new Date();
    for (const { id, expiresAt } of this.#context?.svids ?? [])
      if (expiresAt <= now) this.troubles.push(`${id} ended at ${expiresAt.toISOString()}`);
  }
}

describe.skipIf(withoutPostgres)(
  "two servers on one database, agents and workloads, while everything is disturbed",
  () => {
    const scope = new AsyncDisposableStack();
    let cluster: Cluster;
    let url: string;
    const servers: TestServer[] = [];
    const agents: TestAgent[] = [];
    const ids: string[] = [];
    const workloads: Workload[] = [];
    let made = 0;

    beforeAll(async () => {
      cluster = scope.use(await startCluster((await findPostgres()) ?? ""));
      ({ url } = await createDatabase(cluster.url));
      for (const at of ADDRESSES.keys()) servers.push(await startAt(at));
      for (let at = 0; at < AGENTS; at += 1) {
        const { path: folder } = scope.use(await temporaryDirectory());
        agents.push(await startAgent(server(0), { ...agentOptions, folder }));
        ids.push(agent(at).id());
        workloads.push(scope.use(new Workload(agent(at).socket)));
        for (let count = 0; count < ENTRIES_EACH; count += 1) await create(at);
      }
      await eventually("every workload has its identities", () =>
        workloads.every((one) => one.ids.length === ENTRIES_EACH),
      );
    }, PATIENCE_MS);
    afterAll(async () => {
      await Promise.all(agents.map((one) => one[Symbol.asyncDispose]()));
      await Promise.all(servers.map((one) => one[Symbol.asyncDispose]()));
      await scope.disposeAsync();
    });

    const server = (at: number): TestServer => servers[at] ?? expect.fail("no server");
    const agent = (at: number): TestAgent => agents[at] ?? expect.fail("no agent");
    const any = (count: number): number => Math.floor(Math.random() * count);
    const agentOptions = { env: knowing(NAME, ADDRESSES), agent: { server_address: NAME, log_level: "INFO" } };

    function startAt(at: number): Promise<TestServer> {
      const before = servers[at];
      const port = servers[0]?.port;
      return startServer({
        ...{ store: { url }, startMs: PATIENCE_MS, ...(before === undefined ? {} : { folder: before.folder }) },
        server: {
          ...{ ...LIFETIMES, log_level: "INFO", ratelimit: { attestation: false, signing: true } },
          ...{ bind_address: ADDRESSES[at], ...(port === undefined ? {} : { bind_port: port }) },
        },
      });
    }

    /** Throws when the answer is no, or is lost: then nobody knows whether it was done. */
    async function done(row: Row, work: () => Promise<{ readonly results: readonly Result[] }>): Promise<void> {
      try {
        const { results } = await work();
        if (results[0]?.status?.code !== 0) throw new Error(results[0]?.status?.message);
      } catch (error) {
        row.mayBeGone = true;
        throw error;
      }
    }

    async function create(at: number): Promise<void> {
      made += 1;
      const row: Row = {
        id: `soak-${made}`,
        names: [`spiffe://example.org/${made}`],
        wasSeen: false,
        mayBeGone: false,
      };
      workloads[at]?.rows.set(row.id, row);
      const message = { spiffeId: row.names[0] ?? "", parentId: ids[at] ?? "", selectors: [OWN_SELECTOR] };
      const entries = [{ ...entryMessage(message), id: row.id }];
      await done(row, () => server(any(2)).admin.entry.BatchCreateEntry({ entries }));
    }

    async function change(): Promise<void> {
      const at = any(AGENTS);
      const rows = [...(workloads[at]?.rows.values() ?? [])].filter(({ mayBeGone }) => !mayBeGone);
      const row = rows[any(rows.length)];
      const { admin } = server(any(2));
      if (row === undefined || rows.length < ENTRIES_EACH) return create(at);
      if (rows.length > 2 * ENTRIES_EACH) {
        row.mayBeGone = true;
        return done(row, () => admin.entry.BatchDeleteEntry({ ids: [row.id] }));
      }
      if (Math.random() < 0.3) return create(at);
      made += 1;
      row.names.push(`spiffe://example.org/${made}`);
      const entry = { id: row.id, spiffe_id: protoId(row.names.at(-1) ?? "") };
      return done(row, () => admin.entry.BatchUpdateEntry({ entries: [entry], input_mask: { spiffe_id: true } }));
    }

    async function changing(signal: AbortSignal): Promise<void> {
      while (!signal.aborted) {
        await change().catch(() => delay(100));
        await delay(50 + any(300));
      }
    }

    const disturbances: readonly (() => Promise<unknown>)[] = [
      async () => {
        const at = any(2);
        await server(at).kill();
        servers[at] = await startAt(at);
      },
      async () => {
        await cluster.stop();
        await delay(1_000);
        await cluster.start();
      },
      async () => {
        const at = any(AGENTS);
        const { folder } = agent(at);
        await agent(at).kill();
        agents[at] = await startAgent(server(0), { ...agentOptions, folder, token: null });
      },
      async () => {
        const api = server(any(2)).admin.localAuthority;
        const { prepared_authority: next } = await api.PrepareX509Authority({});
        await delay(2_000);
        await api.ActivateX509Authority({ authority_id: next?.authority_id ?? "" });
        const { old } = await api.GetX509AuthorityState({});
        await api.TaintX509Authority({ authority_id: old?.authority_id ?? "" });
        const revoked = () =>
          api.RevokeX509Authority({ authority_id: old?.authority_id ?? "" }).then(Boolean, () => false);
        await eventually("nothing under the old one is in use", revoked, PATIENCE_MS);
      },
    ];

    test("no workload is without an identity that it has, or with one that it has not", {
      timeout: ROUNDS * ROUND_MS,
    }, async () => {
      const stop = new AbortController();
      const changes = changing(stop.signal);
      for (let round = 0; round < ROUNDS; round += 1) {
        for (const disturb of disturbances) {
          await disturb();
          const before = workloads.map(({ updates }) => updates);
          const goesOn = (): boolean => workloads.every(({ updates }, at) => updates > (before[at] ?? 0));
          await eventually("changes reach the workloads", goesOn, PATIENCE_MS);
          expect(workloads.flatMap(({ troubles }) => troubles)).toEqual([]);
        }
      }
      stop.abort();
      await changes;
      const { entries } = await server(0).admin.entry.ListEntries({});
      for (const [at, workload] of workloads.entries()) {
        const own = entries.filter(({ parent_id }) => ids[at]?.endsWith(parent_id?.path ?? "?"));
        const expected = own.map(({ spiffe_id }) => `spiffe://example.org${spiffe_id?.path}`).sort();
        await eventually(
          "the workload has what the database says",
          () => workload.ids.join() === expected.join(),
          60_000,
        );
      }
      expect(workloads.flatMap(({ troubles }) => troubles)).toEqual([]);
    });
  },
);

interface Result {
  readonly status: { readonly code: number; readonly message: string } | null;
}
