import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { pinPeer } from "../../src/rpc/peer-credentials.ts";
import { startAgent } from "../support/agent.ts";
import { createDatabase, findPostgres, startCluster } from "../support/postgres.ts";
import { openServerClient, protoId, type ServerClient, startServer } from "../support/server.ts";
import type { Bench, MeasuredServer, Report, ServersOptions, Store } from "./scenario.ts";

/** The subject of figures that belong to no store. */
const OURS = "Steeple";

/** A server that was given by address, and maybe an agent below it. */
export interface Peer {
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly socketPath: string;
  readonly agent: { readonly socketPath: string; readonly id: string } | undefined;
}

interface Surroundings {
  readonly stores: readonly Store[];
  readonly peer: Peer | undefined;
  readonly of: (subject: string) => Report;
}

type Subjects = Pick<Bench<unknown>, "onServers" | "onAgents">;

/** One after the other: ours, then the peer's, from which everything that was made is taken away afterwards. */
export function subjectsOf({ stores, peer, of }: Surroundings): Subjects {
  return {
    async onServers(options, work) {
      for (const store of options.anyStore === true ? stores.slice(0, 1) : stores)
        await onStore({ store, options, of }, work);
      if (peer === undefined || options.wireOnly !== true) return;
      await using client = await openPeer(peer);
      await work({ ...client.server, pid: await listenerOf(peer.socketPath), isOurs: false }, of(peer.name));
    },
    async onAgents({ agent = {}, wireOnly }, work) {
      {
        await using server = await startServer({ server: UNLIMITED });
        await using ours = await startAgent(server, { agent: { log_level: "INFO", ...agent } });
        await work({ socketPath: ours.socketPath, id: ours.id(), pid: ours.pid, isOurs: true, server }, of(OURS));
      }
      if (peer?.agent === undefined || wireOnly !== true) return;
      await using client = await openPeer(peer);
      const pid = await listenerOf(peer.agent.socketPath);
      await work({ ...peer.agent, pid, isOurs: false, server: client.server }, of(peer.name));
    },
  };
}

const UNLIMITED = { log_level: "INFO", ratelimit: { attestation: false, signing: false } };

async function onStore(
  { store, options, of }: { readonly store: Store; readonly options: ServersOptions; readonly of: Surroundings["of"] },
  work: (server: MeasuredServer, report: Report) => Promise<void>,
): Promise<void> {
  await using scope = new AsyncDisposableStack();
  const { server = {}, nodeAttestors = {}, env = {}, anyStore } = options;
  const database = store === "postgres" ? scope.use(await openPostgres()) : undefined;
  if (store === "postgres" && database === undefined) return of("PostgreSQL").note("not on this machine");
  const config = { server: { ...UNLIMITED, ...server }, nodeAttestors, env };
  const ours = scope.use(await startServer({ ...config, store: database ?? "embedded" }));
  await work({ ...ours, isOurs: true }, of(anyStore === true ? OURS : await storeName(store)));
}

/** An empty database of its own cluster; undefined where there is no PostgreSQL. */
export async function openPostgres(): Promise<Database | undefined> {
  const bin = await findPostgres();
  if (bin === undefined) return undefined;
  const scope = new AsyncDisposableStack();
  const cluster = scope.use(await startCluster(bin));
  const { url } = scope.use(await createDatabase(cluster.url));
  return { url, [Symbol.asyncDispose]: () => scope.disposeAsync() };
}

interface Database extends AsyncDisposable {
  readonly url: string;
}

/** `embedded store`, `PostgreSQL 15.4`: the subject of figures on that store. */
export async function storeName(store: Store): Promise<string> {
  if (store === "embedded") return "embedded store";
  const bin = await findPostgres();
  const text = bin === undefined ? "" : execFileSync(join(bin, "postgres"), ["--version"], { encoding: "utf8" });
  return `PostgreSQL ${/[\d.]+/.exec(text)?.[0] ?? ""}`.trim();
}

interface PeerClient extends AsyncDisposable {
  readonly server: ServerClient;
}

async function openPeer(peer: Peer): Promise<PeerClient> {
  const server = await openServerClient(peer);
  const [entries, agents] = [await entryIds(server), await agentIds(server)];
  return {
    server,
    async [Symbol.asyncDispose]() {
      const made = (await entryIds(server)).filter((id) => !entries.includes(id));
      for (let at = 0; at < made.length; at += BATCH)
        await server.admin.entry.BatchDeleteEntry({ ids: made.slice(at, at + BATCH) });
      for (const id of (await agentIds(server)).filter((one) => !agents.includes(one)))
        await server.admin.agent.DeleteAgent({ id: protoId(id) });
      server[Symbol.dispose]();
    },
  };
}

const BATCH = 500;

async function entryIds(server: ServerClient): Promise<readonly string[]> {
  const ids: string[] = [];
  let page_token = "";
  do {
    const page = await server.admin.entry.ListEntries({ page_size: BATCH, page_token, output_mask: {} });
    ids.push(...page.entries.map(({ id }) => id));
    page_token = page.next_page_token;
  } while (page_token !== "");
  return ids;
}

/** SPIFFE IDs of all attested agents. */
export async function agentIds(server: ServerClient): Promise<readonly string[]> {
  const ids: string[] = [];
  let page_token = "";
  do {
    const page = await server.admin.agent.ListAgents({ page_size: BATCH, page_token, output_mask: {} });
    ids.push(...page.agents.map(({ id }) => `spiffe://${id?.trust_domain}${id?.path}`));
    page_token = page.next_page_token;
  } while (page_token !== "");
  return ids;
}

/** The process that listens on a Unix socket, when it is on this machine and may be seen. */
async function listenerOf(socketPath: string): Promise<number | undefined> {
  const socket = connect(socketPath);
  try {
    await once(socket, "connect");
    using peer = pinPeer(socket);
    return existsSync(`/proc/${peer.pid}/stat`) ? peer.pid : undefined;
  } catch {
    return undefined;
  } finally {
    socket.destroy();
  }
}

/** The name of the program behind a socket, for lack of a better one. */
export async function programBehind(socketPath: string): Promise<string> {
  const pid = await listenerOf(socketPath);
  return pid === undefined ? "peer" : readFileSync(`/proc/${pid}/comm`, "utf8").trim();
}
