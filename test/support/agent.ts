import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fetchX509Svid, watchX509Svids, type X509Context } from "../../src/client/index.ts";
import { encodePem } from "../../src/crypto/pem.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { eventually } from "./eventually.ts";
import { programArgs } from "./programs.ts";
import type { TestServer } from "./server.ts";
import { type LogRecord, pluginData } from "./server-process.ts";

export interface TestAgentOptions {
  /** Default: a new one from the server. `null` for none. */
  readonly token?: string | null;
  /** Keys of the `agent` section, over those of this helper. */
  readonly agent?: Readonly<Record<string, unknown>>;
  /** Further top-level sections. */
  readonly sections?: Readonly<Record<string, unknown>>;
  readonly keyManager?: "disk" | "memory";
  /** Instead of a join token: its type and data. */
  readonly nodeAttestor?: Readonly<Record<string, object>>;
  /** Instead of `unix`: by type, with their data. */
  readonly workloadAttestors?: Readonly<Record<string, object>>;
  /** Added to the agent's environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** A folder of the caller's, which stays; for starting again on the same data. */
  readonly folder?: string;
  /** How long it may take until it serves. */
  readonly startMs?: number;
  /** Do not wait until workloads can be served. */
  readonly anyState?: boolean;
}

export interface TestAgent extends AsyncDisposable {
  readonly folder: string;
  readonly dataDir: string;
  readonly configFile: string;
  readonly socketPath: string;
  /** As `SPIFFE_ENDPOINT_SOCKET` has it. */
  readonly socket: string;
  readonly pid: number;
  /** The agent's SPIFFE ID, once it has one. */
  id(): string;
  /** Everything on standard output and error. */
  output(): string;
  /** Log records with this message, and these fields. */
  logged(message: string, fields?: Readonly<Record<string, unknown>>): readonly LogRecord[];
  /** Waits for such a record, or for `count` of them. */
  untilLogged(message: string, fields?: Readonly<Record<string, unknown>>, count?: number): Promise<LogRecord>;
  /** What this process gets from the Workload API. */
  fetch(): Promise<X509Context>;
  /** What this process gets, and every update of it, collected. */
  watch(): Watched;
  /** Resolves with the exit status when it ends by itself. */
  exited(): Promise<number | null>;
  /** Asks it to end, and resolves with the exit status. */
  stop(): Promise<number | null>;
  kill(): Promise<void>;
}

interface Watched extends AsyncDisposable {
  readonly contexts: readonly X509Context[];
  /** Waits for an update, the ones that have come included, that satisfies `test`. */
  until(what: string, test: (context: X509Context, at: number) => boolean): Promise<X509Context>;
}

/** What an agent and its configuration take from the server that it is to join. */
export interface JoinedServer extends Pick<TestServer, "trustDomain" | "address" | "port"> {
  readonly admin: {
    readonly bundle: {
      GetBundle(request: object): Promise<{ readonly x509_authorities: readonly { readonly asn1: Buffer }[] }>;
    };
  };
  createToken(): Promise<string>;
}

/** The selector that the processes of a test have. */
export const OWN_SELECTOR = `unix:uid:${process.getuid?.() ?? 0}`;

/** Starts `steeple-agent run` as a process of its own, against the server, and waits until it serves workloads. */
export async function startAgent(server: JoinedServer, options: TestAgentOptions = {}): Promise<TestAgent> {
  await using cleanup = new AsyncDisposableStack();
  const folder = options.folder ?? (await mkdtemp(join(tmpdir(), "steeple-agent-")));
  if (options.folder === undefined) cleanup.defer(() => rm(folder, { recursive: true, force: true }));
  const configFile = await writeAgentConfig(server, folder, options);
  const isByToken = options.token === undefined && options.nodeAttestor === undefined;
  const token = isByToken ? await server.createToken() : (options.token ?? null);
  return await launch({ folder, configFile, cleanup: cleanup.move() }, { ...options, token });
}

/** Starts the agent again on the folder of an earlier one, with the configuration that is there and without a token. */
export function restartAgent(folder: string, options: Pick<TestAgentOptions, "anyState"> = {}): Promise<TestAgent> {
  const configFile = join(folder, "agent.json");
  return launch({ folder, configFile, cleanup: new AsyncDisposableStack() }, { ...options, token: null });
}

async function launch(
  surroundings: Surroundings,
  options: Pick<TestAgentOptions, "anyState" | "env" | "startMs"> & { readonly token: string | null },
): Promise<TestAgent> {
  const { token, anyState, env, startMs = 30_000 } = options;
  const args = ["run", "-config", surroundings.configFile, ...(token === null ? [] : ["-joinToken", token])];
  const agent = testAgent(spawnAgent(args, env), surroundings);
  if (anyState === true) return agent;
  const failed = agent
    .exited()
    .then((status) => Promise.reject(new Error(`the agent ended with status ${status}:\n${agent.output()}`)));
  const serves = (): boolean => agent.logged("Starting Workload and SDS APIs").length > 0;
  await Promise.race([eventually("the agent serves", serves, startMs), failed]);
  failed.catch(() => {});
  return agent;
}

/** Everything in the folder, syncing several times a second, trusting the server by its bundle as of now. */
export async function writeAgentConfig(
  server: JoinedServer,
  folder: string,
  options: TestAgentOptions = {},
): Promise<string> {
  const dataDir = join(folder, "data");
  const bundlePath = join(folder, "bundle.pem");
  const { x509_authorities } = await server.admin.bundle.GetBundle({});
  await writeFile(bundlePath, x509_authorities.map(({ asn1 }) => encodePem("CERTIFICATE", asn1)).join(""));
  const config = {
    agent: {
      trust_domain: server.trustDomain,
      server_address: server.address,
      server_port: server.port,
      data_dir: dataDir,
      socket_path: join(folder, "public", "api.sock"),
      trust_bundle_path: bundlePath,
      log_level: "DEBUG",
      log_format: "json",
      experimental: { sync_interval: "200ms" },
      ...options.agent,
    },
    plugins: {
      KeyManager:
        options.keyManager === "memory"
          ? { memory: { plugin_data: {} } }
          : { disk: { plugin_data: { directory: dataDir } } },
      NodeAttestor: pluginData(options.nodeAttestor ?? { join_token: {} }),
      WorkloadAttestor: pluginData(options.workloadAttestors ?? { unix: {} }),
    },
    ...options.sections,
  };
  const path = join(folder, "agent.json");
  await writeFile(path, JSON.stringify(config));
  return path;
}

interface Running {
  readonly child: ChildProcess;
  readonly output: () => string;
  readonly closed: Promise<number | null>;
}

function spawnAgent(args: readonly string[], env: TestAgentOptions["env"] = {}): Running {
  const child = spawn(process.execPath, [...programArgs("agent"), ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  const chunks: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => chunks.push(chunk));
  const closed = once(child, "close").then(([code]) => code as number | null);
  return { child, closed, output: () => Buffer.concat(chunks).toString("utf8") };
}

interface Surroundings {
  readonly folder: string;
  readonly configFile: string;
  readonly cleanup: AsyncDisposableStack;
}

function testAgent({ child, output, closed }: Running, { folder, configFile, cleanup }: Surroundings): TestAgent {
  const socketPath = join(folder, "public", "api.sock");
  const socket = `unix://${socketPath}`;
  const logged: TestAgent["logged"] = (message, fields = {}) =>
    recordsOf(output()).filter(
      (record) => record.msg === message && Object.entries(fields).every(([key, value]) => record[key] === value),
    );
  const stop = (signal: NodeJS.Signals): Promise<number | null> => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal);
    return closed;
  };
  return {
    ...{ folder, configFile, socketPath, socket, output, logged },
    dataDir: join(folder, "data"),
    pid: child.pid ?? 0,
    id: () => String([...logged("Node attestation was successful"), ...logged("SVID loaded")][0]?.["spiffe_id"]),
    untilLogged: (message, fields, count = 1) =>
      eventually(`the agent logs ${JSON.stringify(message)}`, () => logged(message, fields)[count - 1], 30_000),
    fetch: () => fetchX509Svid({ socket, deadlineMs: 10_000 }),
    watch: () => watched(socket),
    exited: () => closed,
    stop: () => stop("SIGTERM"),
    async kill() {
      await stop("SIGKILL");
    },
    async [Symbol.asyncDispose]() {
      await stop("SIGTERM");
      await cleanup[Symbol.asyncDispose]();
    },
  };
}

function watched(socket: string): Watched {
  const stop = new AbortController();
  const contexts: X509Context[] = [];
  const reading = (async () => {
    for await (const context of watchX509Svids({ socket, signal: stop.signal, clock: systemClock }))
      contexts.push(context);
  })();
  return {
    contexts,
    until: (what, test) => eventually(what, () => contexts.find(test), 30_000),
    async [Symbol.asyncDispose]() {
      stop.abort();
      await reading;
    },
  };
}

function recordsOf(output: string): readonly LogRecord[] {
  return output
    .split("\n")
    .flatMap((line): LogRecord[] =>
      line.startsWith("{") && line.endsWith("}") ? [JSON.parse(line) as LogRecord] : [],
    );
}
