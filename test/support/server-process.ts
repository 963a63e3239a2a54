import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { eventually } from "./eventually.ts";
import { programArgs } from "./programs.ts";

export const PROJECT = fileURLToPath(new URL("../..", import.meta.url));

export interface TestServerOptions {
  /** A database URL shares a database between servers. Default: embedded. */
  readonly store?: "embedded" | "postgres" | { readonly url: string };
  readonly trustDomain?: string;
  /** Keys of the `server` section, over those of this helper. */
  readonly server?: Readonly<Record<string, unknown>>;
  /** Further top-level sections. */
  readonly sections?: Readonly<Record<string, unknown>>;
  readonly keyManager?: "disk" | "memory";
  /** Instead of `keyManager`: its name and data. */
  readonly keyManagers?: Readonly<Record<string, object>>;
  /** The UpstreamAuthority and its data. */
  readonly upstream?: Readonly<Record<string, object>>;
  /** Further node attestors with their data. */
  readonly nodeAttestors?: Readonly<Record<string, object>>;
  /** A folder of the caller's, which stays; for starting again on the same data. */
  readonly folder?: string;
  /** Added to the server's environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** How long it may take until it serves. */
  readonly startMs?: number;
}

export type LogRecord = Readonly<Record<string, unknown>> & { readonly msg: string; readonly level: string };

/** A port that nobody listens on; another process may still take it before the server does. */
export async function freePort(): Promise<number> {
  const holder = createServer().listen(0, "127.0.0.1");
  await once(holder, "listening");
  const { port } = holder.address() as AddressInfo;
  await new Promise((done) => holder.close(done));
  return port;
}

/** A configuration file in the folder, with everything in that folder and a port that is free. */
export async function writeServerConfig(
  folder: string,
  options: TestServerOptions,
  databaseUrl?: string,
): Promise<string> {
  const disk = { disk: { plugin_data: { keys_path: join(folder, "data", "keys.json") } } };
  const sql = { sql: { plugin_data: { database_type: "postgres", connection_string: databaseUrl } } };
  const config = {
    server: {
      trust_domain: options.trustDomain ?? "example.org",
      bind_address: "127.0.0.1",
      bind_port: await freePort(),
      socket_path: join(folder, "api.sock"),
      data_dir: join(folder, "data"),
      log_level: "DEBUG",
      log_format: "json",
      ratelimit: { attestation: false, signing: true },
      ...options.server,
    },
    plugins: {
      KeyManager:
        options.keyManagers === undefined
          ? options.keyManager === "memory"
            ? { memory: { plugin_data: {} } }
            : disk
          : pluginData(options.keyManagers),
      NodeAttestor: pluginData({ join_token: {}, ...options.nodeAttestors }),
      ...(databaseUrl === undefined ? {} : { DataStore: sql }),
      ...(options.upstream === undefined ? {} : { UpstreamAuthority: pluginData(options.upstream) }),
    },
    ...options.sections,
  };
  const path = join(folder, "server.json");
  await writeFile(path, JSON.stringify(config));
  return path;
}

/** `{ name: data }` as a configuration has it. */
export function pluginData(plugins: Readonly<Record<string, object>>): Readonly<Record<string, object>> {
  return Object.fromEntries(Object.entries(plugins).map(([name, data]) => [name, { plugin_data: data }]));
}

export interface ServerProcess {
  readonly child: ChildProcess;
  output(): string;
  logged(message: string, fields?: Readonly<Record<string, unknown>>): readonly LogRecord[];
  untilLogged(message: string, fields?: Readonly<Record<string, unknown>>): Promise<LogRecord>;
  /** Rejects when the process ends before it was asked to. */
  failed(): Promise<never>;
  exited(): Promise<number | null>;
  stop(signal?: NodeJS.Signals): Promise<number | null>;
}

/** `steeple-server` with these arguments. The caller stops it. */
export function runServerProcess(args: readonly string[], env: Readonly<Record<string, string>> = {}): ServerProcess {
  const child = spawn(process.execPath, [...programArgs("server"), ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  const chunks: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => chunks.push(chunk));
  const closed = once(child, "close").then(([code]) => code as number | null);
  const output = (): string => Buffer.concat(chunks).toString("utf8");
  const logged: ServerProcess["logged"] = (message, fields = {}) =>
    output()
      .split("\n")
      .flatMap(parseRecord)
      .filter(
        (record) => record.msg === message && Object.entries(fields).every(([key, value]) => record[key] === value),
      );
  return {
    child,
    output,
    logged,
    untilLogged: (message, fields) =>
      eventually(`the server logs ${JSON.stringify(message)}`, () => logged(message, fields)[0], 30_000),
    failed: () =>
      closed.then((code) => Promise.reject(new Error(`the server ended with status ${code}:\n${output()}`))),
    exited: () => closed,
    stop: (signal = "SIGTERM") => {
      if (child.exitCode === null && child.signalCode === null) child.kill(signal);
      return closed;
    },
  };
}

function parseRecord(line: string): LogRecord[] {
  try {
    const record: unknown = JSON.parse(line);
    return typeof record === "object" && record !== null && "msg" in record ? [record as LogRecord] : [];
  } catch {
    return [];
  }
}
