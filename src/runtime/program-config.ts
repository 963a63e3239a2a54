import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { ConfigReader, type Keys, type Values } from "./config.ts";
import { readConfigFile } from "./config-file.ts";
import { block, duration, flag, ignored, list, oneOf, parsed, port, text } from "./config-keys.ts";
import type { ConfigObject, ConfigValue, Place } from "./config-value.ts";
import { Fault } from "./fault.ts";
import { LOG_FORMATS, type LogSettings, parseLogLevel } from "./log.ts";

type Variables = Readonly<Record<string, string | undefined>>;

/** What a program's `run` and `validate` commands hand over. Flags go before the file, the file before defaults. */
export interface ConfigOptions<F> {
  /** Must exist. Default: SPIRE's path in the current directory, if that exists, or no file at all. */
  readonly path?: string | undefined;
  /** Replace `$NAME` in the file. */
  readonly expandEnv?: boolean;
  /** By flag name; empty, zero and false count as not given, as in SPIRE. */
  readonly flags?: Readonly<F>;
  readonly env?: Variables;
}

export interface LoadedKeys<K extends Keys> {
  readonly values: Values<K>;
  readonly reader: ConfigReader;
  /** False when there's no file, and the defaults are the whole configuration. */
  readonly hasFile: boolean;
}

interface LoadPlan<K extends Keys> {
  readonly keys: K;
  readonly defaultPath: string;
  /** Path of the key that each flag sets. */
  readonly flagPaths: Readonly<Record<string, string>>;
  readonly options: ConfigOptions<Readonly<Record<string, unknown>>>;
}

/** Reads file and flags with the keys' rules. Faults wait in the reader, so that the caller can add its own. */
export function loadKeys<K extends Keys>({ keys, defaultPath, flagPaths, options }: LoadPlan<K>): LoadedKeys<K> {
  const path = options.path ?? (existsSync(defaultPath) ? defaultPath : undefined);
  const variables = options.expandEnv === true ? (options.env ?? process.env) : undefined;
  const file = path === undefined ? undefined : readConfigFile(path, variables === undefined ? {} : { variables });
  const at: Place = { source: path ?? "configuration" };
  const root: ConfigObject = file?.root ?? { kind: "object", at, entries: [] };
  const reader = new ConfigReader(at.source, overridesOf(options.flags ?? {}, flagPaths));
  for (const name of file?.unsetVariables ?? [])
    reader.warn(at, `environment variable ${name} is not set; it expands to nothing`);
  return { values: reader.readKeys(keys, [root], { path: "", at }), reader, hasFile: path !== undefined };
}

function overridesOf(
  flags: Readonly<Record<string, unknown>>,
  paths: Readonly<Record<string, string>>,
): ReadonlyMap<string, ConfigValue> {
  const overrides = new Map<string, ConfigValue>();
  for (const [name, path] of Object.entries(paths)) {
    const value = flags[name];
    if (value === undefined || value === "" || value === 0 || value === false) continue;
    const kind = typeof value === "boolean" ? "bool" : typeof value === "number" ? "number" : "string";
    overrides.set(path, { kind, at: { source: `-${name}` }, text: String(value) });
  }
  return overrides;
}

/** Where a program keeps its state when nothing says otherwise; `name` is the program's part of it. */
export function defaultDataDirectory(name: string, env: Variables): string {
  if (isSet(env.STEEPLE_DATA_DIR)) return resolve(env.STEEPLE_DATA_DIR, name);
  if (process.geteuid?.() === 0) return join("/var/lib/steeple", name);
  const state = isSet(env.XDG_STATE_HOME) ? env.XDG_STATE_HOME : join(homedir(), ".local", "state");
  return join(state, "steeple", name);
}

function isSet(value: string | undefined): value is string {
  return value !== undefined && value !== "";
}

/** The longest path that fits a socket address, with its closing zero (unix(7)). */
const LONGEST_SOCKET_PATH = 107;

/** A path for a Unix socket, made absolute. */
export const socketPath = parsed("path", (spelling) => {
  const path = resolve(spelling);
  if (Buffer.byteLength(path) <= LONGEST_SOCKET_PATH && !path.includes("\0")) return path;
  throw new Fault("invalid", `socket path ${JSON.stringify(path)} is longer than ${LONGEST_SOCKET_PATH} bytes`, {
    code: "config-invalid",
  });
});

/** A path made absolute. */
export const filePath = parsed("path", (spelling) => resolve(spelling));

/** A span that ends up in a certificate, and so counts in seconds. */
export const lifetime = duration(1000, "1s");

/** Logging, for the `server` and the `agent` block. */
export const logKeys = {
  log_file: filePath({ doc: "File to write the log to, opened anew on SIGUSR2. Default: standard output." }),
  log_level: parsed(
    "level",
    parseLogLevel,
  )({ doc: "Least severe level that is written: DEBUG, INFO, WARN or ERROR.", default: "info", shown: "INFO" }),
  log_format: oneOf(LOG_FORMATS)({ doc: "Form of the log's lines.", shown: "text" }),
  log_source_location: flag({ doc: "Adds file, line and function to every line.", default: false }),
};

export function logSettings(values: Values<typeof logKeys>): LogSettings {
  return {
    level: values.log_level,
    format: values.log_format ?? "text",
    sourceLocation: values.log_source_location,
    fractionalSeconds: values.log_format !== undefined,
    ...(values.log_file === undefined ? {} : { file: values.log_file }),
  };
}

/** Profiling of the Go runtime, for the `server` and the `agent` block. */
export const profilingKeys = {
  profiling_enabled: ignored("Profiling of the Go runtime."),
  profiling_port: ignored("Port of the Go profiler."),
  profiling_freq: ignored("Seconds between dumps of the Go profiler."),
  profiling_names: ignored("Profiles of the Go runtime to dump."),
};

/** The sections that server and agent share. */
export const sharedSections = {
  health_checks: block("HTTP listener that tells whether the program lives and is ready.", {
    listener_enabled: flag({ doc: "Starts the listener.", default: false }),
    bind_address: text({ doc: "Address to listen on.", default: "localhost" }),
    bind_port: port({ doc: "Port to listen on.", default: 80 }),
    live_path: text({ doc: "Path that tells whether the program lives.", default: "/live" }),
    ready_path: text({ doc: "Path that tells whether it's ready.", default: "/ready" }),
  }),
};

const FEATURE_FLAGS = ["i_am_a_test_flag", "wit-svid"] as const;
type FeatureFlag = (typeof FEATURE_FLAGS)[number];

const flagNames = list<FeatureFlag>("feature flags", (spelling) => {
  const found = FEATURE_FLAGS.find((known) => known === spelling);
  if (found !== undefined) return found;
  throw new Fault("invalid", `unknown feature flag(s): [${spelling}]`, { code: "config-invalid" });
});

/** Key of both programs. */
export const featureFlags = flagNames({
  doc: "Switches on what SPIRE still tries out: wit-svid.",
  default: [],
  shown: "[]",
});

export interface HealthChecks {
  readonly listenerEnabled: boolean;
  readonly bindAddress: string;
  readonly bindPort: number;
  readonly livePath: string;
  readonly readyPath: string;
}

export function healthChecks(values: Values<typeof sharedSections>["health_checks"]): HealthChecks {
  return {
    listenerEnabled: values.listener_enabled,
    bindAddress: withoutBrackets(values.bind_address),
    bindPort: values.bind_port,
    livePath: values.live_path,
    readyPath: values.ready_path,
  };
}

/** `[::1]` is `::1`. */
export function withoutBrackets(address: string): string {
  return address.replace(/^\[/, "").replace(/\]$/, "");
}

/** Freezes a tree of plain objects and lists. */
export function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const part of Object.values(value)) deepFreeze(part);
  }
  return value;
}
