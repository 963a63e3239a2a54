import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect } from "vitest";
import { loadServerConfig, type ServerConfig, type ServerFlags } from "../../../server/config.ts";
import { faultOf, refusal } from "../../support/faults.ts";

/** A new one for each test of the file. */
export let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-server-config-"));
});
afterEach(() => rm(folder, { recursive: true }));

interface Load {
  readonly name?: string;
  readonly flags?: ServerFlags;
  readonly env?: Record<string, string>;
  readonly expandEnv?: boolean;
}

/** What a file of this content becomes. */
export async function load(
  text: string,
  { name = "server.conf", flags = {}, env = {}, expandEnv = false }: Load = {},
): Promise<ServerConfig> {
  const path = join(folder, name);
  await writeFile(path, text);
  return loadServerConfig({ path, flags, env, expandEnv });
}

/** The message, with the path of the file left out. */
export async function refused(text: string, options: Load = {}): Promise<string> {
  const path = join(folder, options.name ?? "server.conf");
  await writeFile(path, text);
  const fault = faultOf(() => loadServerConfig({ path, flags: options.flags ?? {}, env: {} }));
  expect(fault).toMatchObject(refusal("invalid", "config-invalid"));
  return fault.message.replaceAll(path, "");
}

/** The `server` section, with what a server cannot do without. */
export function server(lines: string): string {
  return `server {\n trust_domain = "a.test"\n data_dir = "/data"\n ${lines}\n}\n`;
}

/** With the data of the `DataStore` plug-in. */
export function store(lines: string): string {
  return `${server("")}plugins {\n DataStore "sql" {\n plugin_data {\n ${lines}\n}}}\n`;
}

export const TELEMETRY = {
  ...{ statsd: [], dogStatsd: [], hostLabel: true, trustDomainLabel: false },
  ...{ allowedPrefixes: [], blockedPrefixes: [], blockedLabels: [] },
};

export const DEFAULTS = {
  bindAddress: "0.0.0.0",
  bindPort: 8081,
  socketPath: "/tmp/spire-server/private/api.sock",
  log: { level: "info", format: "text", sourceLocation: false, fractionalSeconds: false },
  caTtlSeconds: 86_400,
  caKeyType: "ec-p256",
  caSubject: {},
  defaultX509SvidTtlSeconds: 3600,
  defaultJwtSvidTtlSeconds: 300,
  agentTtlSeconds: 3600,
  jwtKeyType: "ec-p256",
  jwtIssuer: "",
  witKeyType: undefined,
  witIssuer: "",
  adminIds: [],
  auditLogEnabled: false,
  pruneAttestedNodes: { expiredForMs: 2_592_000_000, batchSize: 1000, includeNonReattestable: false },
  rateLimit: { attestation: true, signing: true },
  nodeAttestors: [{ type: "join_token" }],
  trustedProxies: [],
  telemetry: TELEMETRY,
  federation: { endpoint: undefined, relationships: [] },
  healthChecks: {
    listenerEnabled: false,
    bindAddress: "localhost",
    bindPort: 80,
    livePath: "/live",
    readyPath: "/ready",
  },
  warnings: [],
};
