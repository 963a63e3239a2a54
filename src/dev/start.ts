import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir, userInfo } from "node:os";
import { join, resolve } from "node:path";
import { watchX509Svids, type X509Svid } from "../client/index.ts";
import { encodePem } from "../crypto/pem.ts";
import { type Channel, dialUnix } from "../rpc/dial.ts";
import { AgentApi, BundleApi, EntryApi } from "../rpc/protos.ts";
import { type Clock, systemClock } from "../runtime/clock.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import { writePrivateFile } from "../runtime/files.ts";
import { type Io, paint } from "../runtime/terminal.ts";
import { isSpiffeId, serverId, type TrustDomain } from "../spiffe/id.ts";
import { Program } from "./program.ts";

export interface DevOptions {
  readonly trustDomain: TrustDomain;
  /** Kept between runs when given; otherwise a fresh private folder that is removed at the end. */
  readonly dataDir: string | undefined;
  /** Lifetime of the user's X.509-SVIDs. */
  readonly ttlSeconds: number;
  /** End after the first rotation. */
  readonly once: boolean;
}

/** How long `--once` waits for the rotation. */
const ONCE_WITHIN_MS = 90_000;
const READY_WITHIN_MS = 60_000;
/** Every agent that attests with one of our tokens becomes this node. */
const NODE_PATH = "/dev/node";
/** `sockaddr_un` holds 107 bytes of path. */
const MAX_SOCKET_PATH = 107;

/**
 * Runs a server and an agent that know each other, gives the user an identity and prints it at each change, until the
 * signal. Throws when one of them ends, or when `once` saw no rotation in time.
 */
export async function runDev(options: DevOptions, io: Io, signal: AbortSignal): Promise<void> {
  await using scope = new AsyncDisposableStack();
  const folder = await openFolder(options.dataDir, scope);
  const server = scope.use(new Program("server", ["run", "-config", await writeServerConfig(options, folder)]));
  const port = await serverPort(server, signal);
  using admin = dialUnix(folder.serverSocket);
  const { token, bundleFile } = await introduce(options, folder, admin);
  await ensureEntry(options, admin);
  const config = await writeAgentConfig(options, folder, { port, bundleFile });
  const agent = scope.use(new Program("agent", ["run", "-config", config, "-joinToken", token]));
  await started(agent, "Starting Workload and SDS APIs", signal);
  printIntroduction({ options, folder, io, programs: [server, agent], port });
  await Promise.race([follow(options, folder, { io, signal }), server.ended(), agent.ended()]);
}

interface DevFolder {
  readonly path: string;
  readonly kept: boolean;
  readonly serverSocket: string;
  readonly agentSocket: string;
}

async function openFolder(dataDir: string | undefined, scope: AsyncDisposableStack): Promise<DevFolder> {
  if (dataDir === undefined) {
    const path = await mkdtemp(join(tmpdir(), "steeple-"));
    scope.defer(() => rm(path, { recursive: true, force: true }));
    return { path, kept: false, ...socketsIn(path) };
  }
  const path = resolve(dataDir);
  await mkdir(path, { recursive: true, mode: 0o700 });
  const sockets = socketsIn(path);
  if (Buffer.byteLength(sockets.serverSocket) > MAX_SOCKET_PATH) {
    throw new Fault("invalid", `the data folder's path is too long for the sockets in it: ${path}`, {
      code: "socket-path-length",
      hint: "use a folder whose path is shorter than 90 characters",
    });
  }
  return { path, kept: true, ...sockets };
}

function socketsIn(path: string): Pick<DevFolder, "serverSocket" | "agentSocket"> {
  return { serverSocket: join(path, "server.sock"), agentSocket: join(path, "agent.sock") };
}

async function writeServerConfig({ trustDomain }: DevOptions, folder: DevFolder): Promise<string> {
  const file = join(folder.path, "server.json");
  const server = {
    trust_domain: trustDomain,
    bind_address: "127.0.0.1",
    bind_port: 0,
    socket_path: folder.serverSocket,
    data_dir: join(folder.path, "server"),
    log_format: "json",
  };
  await writePrivateFile(file, JSON.stringify({ server }));
  return file;
}

interface AgentStart {
  readonly port: number;
  readonly bundleFile: string;
}

async function writeAgentConfig(
  { trustDomain }: DevOptions,
  folder: DevFolder,
  { port, bundleFile }: AgentStart,
): Promise<string> {
  const file = join(folder.path, "agent.json");
  const agent = {
    trust_domain: trustDomain,
    server_address: "127.0.0.1",
    server_port: port,
    socket_path: folder.agentSocket,
    data_dir: join(folder.path, "agent"),
    trust_bundle_path: bundleFile,
    log_format: "json",
    experimental: { sync_interval: "1s" },
  };
  await writePrivateFile(file, JSON.stringify({ agent }));
  return file;
}

/** The port that the kernel chose, from the line that says where the server listens. */
async function serverPort(server: Program, signal: AbortSignal): Promise<number> {
  const line = await started(server, "Starting Server APIs", signal, (candidate) => candidate["network"] === "tcp");
  return Number(/:(\d+)$/.exec(String(line["address"]))?.[1]);
}

async function started(
  program: Program,
  message: string,
  signal: AbortSignal,
  test?: (line: Readonly<Record<string, unknown>>) => boolean,
): Promise<Readonly<Record<string, unknown>>> {
  return program.logged({ message, test }, AbortSignal.any([signal, AbortSignal.timeout(READY_WITHIN_MS)]));
}

/** What the agent needs to join: a token of its own, and the bundle that tells it the right server. */
async function introduce(
  { trustDomain }: DevOptions,
  folder: DevFolder,
  admin: Channel,
): Promise<{ token: string; bundleFile: string }> {
  const bundle = await admin.client(BundleApi).GetBundle({});
  const bundleFile = join(folder.path, "bundle.pem");
  await writePrivateFile(
    bundleFile,
    bundle.x509_authorities.map(({ asn1 }) => encodePem("CERTIFICATE", asn1)).join(""),
  );
  const request = { ttl: 600, agent_id: { trust_domain: trustDomain, path: NODE_PATH } };
  const { value } = await admin.client(AgentApi).CreateJoinToken(request);
  return { token: value, bundleFile };
}

/** The user's identity: any process of this uid. Kept data has the entry from an earlier run. */
async function ensureEntry({ trustDomain, ttlSeconds }: DevOptions, admin: Channel): Promise<void> {
  const { uid } = userInfo();
  const entry = {
    parent_id: { trust_domain: trustDomain, path: NODE_PATH },
    spiffe_id: { trust_domain: trustDomain, path: userPath() },
    selectors: [{ type: "unix", value: `uid:${uid}` }],
    x509_svid_ttl: ttlSeconds,
  };
  const { results } = await admin.client(EntryApi).BatchCreateEntry({ entries: [entry] });
  const status = results[0]?.status;
  const ALREADY_EXISTS = 6;
  if (status?.code === 0 || status?.code === ALREADY_EXISTS) return;
  throw new Fault("internal", `the entry for user ${uid} was refused: ${status?.message ?? "no answer"}`, {
    code: "dev-entry",
  });
}

function userPath(): string {
  const { username, uid } = userInfo();
  return isSpiffeId(`spiffe://x/${username}`) && !username.includes("/") ? `/user/${username}` : `/user/${uid}`;
}

interface Introduction {
  readonly options: DevOptions;
  readonly folder: DevFolder;
  readonly io: Io;
  readonly programs: readonly Program[];
  readonly port: number;
}

function printIntroduction({ options, folder, io, programs, port }: Introduction): void {
  const { username, uid } = userInfo();
  const pids = programs.map(({ name, pid }) => `${name} ${pid}`).join(", ");
  const keep = folder.kept ? "kept" : "removed at the end; --data-dir DIR keeps it";
  io.stdout.write(
    `
${paint(io, "bold", "Steeple is running.")}
  Trust domain   ${options.trustDomain}
  Server         ${serverId(options.trustDomain)} at 127.0.0.1:${port}
  Admin socket   ${folder.serverSocket}
  Data           ${folder.path} (${keep})
  Processes      ${pids}

Every process of user ${username} (uid ${uid}) on this machine now has an identity. In another terminal:

  ${paint(io, "cyan", `export SPIFFE_ENDPOINT_SOCKET=unix://${folder.agentSocket}`)}

and start any SPIFFE program, or  npx steeple-agent api fetch x509 -socketPath ${folder.agentSocket}
Ctrl-C stops everything.

`,
  );
}

interface Follow {
  readonly io: Io;
  readonly signal: AbortSignal;
}

/** Holds one stream open, as a workload would, and prints what it says. */
async function follow(options: DevOptions, folder: DevFolder, { io, signal }: Follow): Promise<void> {
  const limit = options.once ? AbortSignal.timeout(ONCE_WITHIN_MS) : new AbortController().signal;
  const ends = AbortSignal.any([signal, limit]);
  const socket = { transport: "unix", path: folder.agentSocket } as const;
  let last: X509Svid | undefined;
  for await (const { svids } of watchX509Svids({
    socket,
    signal: ends,
    onError: (fault) => reportTrouble(io, fault, last),
  })) {
    const svid = svids[0];
    if (last !== undefined && serialOf(last) === serialOf(svid)) continue;
    printSvid(io, svid, last === undefined ? "first" : "rotated");
    if (options.once && last !== undefined) return;
    last = svid;
  }
  if (limit.aborted && !signal.aborted) {
    throw new Fault("timeout", `no rotation within ${ONCE_WITHIN_MS / 1000} s`, { code: "dev-no-rotation" });
  }
}

/** Before the agent has heard of the entry, a refusal is the expected answer. */
function reportTrouble(io: Io, fault: Fault, last: X509Svid | undefined): void {
  if (last === undefined && isFault(fault, "denied")) return;
  io.stderr.write(`Workload API: ${fault.message}\n`);
}

function serialOf({ chain }: X509Svid): string | undefined {
  return chain[0]?.serialNumber;
}

function printSvid(io: Io, svid: X509Svid, what: "first" | "rotated", clock: Clock = systemClock): void {
  const leaf = svid.chain[0];
  if (leaf === undefined) return;
  const time = (at: Date): string => at.toISOString().replace(".000Z", "Z");
  const left = Math.round((leaf.notAfter.getTime() - clock.now().getTime()) / 1000);
  if (what === "first") io.stdout.write(`SPIFFE ID   ${paint(io, "green", svid.id)}\n`);
  const label = what === "first" ? "Valid      " : "Rotated    ";
  io.stdout.write(
    `${label} ${time(leaf.notBefore)} to ${time(leaf.notAfter)} (${left} s left), serial ${leaf.serialNumber}\n`,
  );
}
