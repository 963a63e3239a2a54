import type { KeyType } from "../src/crypto/key.ts";
import type { Values } from "../src/runtime/config.ts";
import { keyReference } from "../src/runtime/config-reference.ts";
import { Fault } from "../src/runtime/fault.ts";
import type { FlagSpecs, FlagValues } from "../src/runtime/flags.ts";
import type { LogSettings } from "../src/runtime/log.ts";
import {
  type ConfigOptions,
  deepFreeze,
  defaultDataDirectory,
  type HealthChecks,
  healthChecks,
  type LoadedKeys,
  loadKeys,
  logSettings,
  withoutBrackets,
} from "../src/runtime/program-config.ts";
import { type TelemetrySettings, telemetrySettings } from "../src/runtime/telemetry-config.ts";
import { parseTrustDomain, type SpiffeId, type TrustDomain } from "../src/spiffe/id.ts";
import { type DataStoreConfig, dataStoreConfig } from "./config/data-store.ts";
import { type FederationConfig, federationConfig } from "./config/federation.ts";
import { type KeyManagerConfig, keyManagerOf } from "./config/key-manager.ts";
import { SERVER_SOCKET, serverKeys } from "./config/keys.ts";
import { judgeLifetimes, judgeRotation } from "./config/lifetimes.ts";
import { type NodeAttestorConfig, nodeAttestorConfigs } from "./config/node-attestors.ts";
import { type UpstreamAuthorityConfig, upstreamAuthorityOf } from "./config/upstream-authority.ts";

/** The server's admin socket, when neither file, flag nor SPIRE_SERVER_PRIVATE_SOCKET names another. */
export const DEFAULT_SERVER_SOCKET = SERVER_SOCKET;

/** What a server needs to know to run: read once, checked, frozen. */
export interface ServerConfig {
  readonly trustDomain: TrustDomain;
  readonly bindAddress: string;
  readonly bindPort: number;
  /** Networks, such as `10.0.0.0/8`. */
  readonly trustedProxies: readonly string[];
  readonly socketPath: string;
  readonly dataDir: string;
  readonly log: LogSettings;
  readonly caTtlSeconds: number;
  readonly caKeyType: KeyType;
  readonly caSubject: CaSubject;
  readonly defaultX509SvidTtlSeconds: number;
  readonly defaultJwtSvidTtlSeconds: number;
  readonly agentTtlSeconds: number;
  /** Undefined when JWT-SVIDs are disabled. */
  readonly jwtKeyType: KeyType | undefined;
  readonly jwtIssuer: string;
  /** Undefined when WIT-SVIDs are disabled. */
  readonly witKeyType: KeyType | undefined;
  readonly witIssuer: string;
  readonly adminIds: readonly SpiffeId[];
  readonly auditLogEnabled: boolean;
  readonly rateLimit: { readonly attestation: boolean; readonly signing: boolean };
  readonly pruneAttestedNodes?: PruneAttestedNodes;
  readonly dataStore: DataStoreConfig;
  /** Absent: this server signs its own. */
  readonly upstreamAuthority?: UpstreamAuthorityConfig;
  readonly keyManager: KeyManagerConfig;
  readonly nodeAttestors: readonly NodeAttestorConfig[];
  readonly federation: FederationConfig;
  readonly healthChecks: HealthChecks;
  readonly telemetry: TelemetrySettings<SpiffeId>;
  /** For the log at start-up, one line each. */
  readonly warnings: readonly string[];
}

/** Nothing set means the default subject. */
export interface CaSubject {
  readonly country?: readonly string[];
  readonly organization?: readonly string[];
  readonly commonName?: string;
}

export interface PruneAttestedNodes {
  readonly expiredForMs: number;
  readonly batchSize: number;
  readonly includeNonReattestable: boolean;
}

/** Flags of `run` and `validate` that set keys; their values go to `loadServerConfig`. */
export const serverFlags = {
  bindAddress: { type: "string", doc: "IP address or DNS name of the SPIRE server" },
  dataDir: { type: "string", doc: "Directory to store runtime data to" },
  logFile: { type: "string", doc: "File to write logs to" },
  logFormat: { type: "string", doc: "'text' or 'json'" },
  logLevel: { type: "string", doc: "'debug', 'info', 'warn', or 'error'" },
  logSourceLocation: { type: "bool", doc: "Include source file, line number and function name in log lines" },
  serverPort: { type: "int", doc: "Port number of the SPIRE server" },
  socketPath: { type: "string", doc: "Path to bind the SPIRE Server API socket to" },
  trustDomain: { type: "string", doc: "The trust domain that this server belongs to" },
} as const satisfies FlagSpecs;

export type ServerFlags = Partial<FlagValues<typeof serverFlags>>;

const FLAG_PATHS = {
  bindAddress: "server.bind_address",
  dataDir: "server.data_dir",
  logFile: "server.log_file",
  logFormat: "server.log_format",
  logLevel: "server.log_level",
  logSourceLocation: "server.log_source_location",
  serverPort: "server.bind_port",
  socketPath: "server.socket_path",
  trustDomain: "server.trust_domain",
} as const satisfies Record<keyof typeof serverFlags, string>;

const DEFAULT_TRUST_DOMAIN = "example.org";

/** Throws one `invalid` that names every fault with file and line; `not_found` when `path` is not there. */
export function loadServerConfig(options: ConfigOptions<ServerFlags>): ServerConfig {
  const loaded = loadKeys({ keys: serverKeys, defaultPath: "conf/server/server.conf", flagPaths: FLAG_PATHS, options });
  const { values, reader } = loaded;
  const trustDomain = trustDomainOf(loaded);
  const env = options.env ?? process.env;
  const dataDir = values.server.data_dir ?? defaultDataDirectory("server", env);
  const dataStore = dataStoreConfig(values.plugins.DataStore.sql, dataDir, reader);
  const keyManager = keyManagerOf(values.plugins.KeyManager, { dataDir, reader, env });
  const upstreamAuthority = upstreamAuthorityOf(values.plugins.UpstreamAuthority, { reader, env });
  const nodeAttestors = nodeAttestorConfigs(values.plugins.NodeAttestor, { reader, env });
  judgeRotation(values.server.ca_ttl, reader);
  judgeLifetimes(svidLifetimes(values), values.server.ca_ttl, reader);
  warnOfEmptySubject(loaded);
  warnOfFlags(loaded);
  const telemetry = telemetrySettings(values.telemetry, reader);
  const federation = federationConfig(values.server.federation, trustDomain, reader);
  reader.throwFaults();
  return deepFreeze({
    ...coreConfig(values),
    trustDomain: present(trustDomain),
    dataDir,
    dataStore: present(dataStore),
    keyManager,
    ...(upstreamAuthority === undefined ? {} : { upstreamAuthority }),
    nodeAttestors,
    telemetry,
    federation,
    warnings: reader.warnings,
  });
}

/** Markdown of every key, for the configuration reference. */
export function serverReference(): string {
  return keyReference("Server configuration", serverKeys);
}

type Loaded = LoadedKeys<typeof serverKeys>;
type ServerValues = Values<typeof serverKeys>;
type CoreConfig = Omit<
  ServerConfig,
  | "trustDomain"
  | "dataDir"
  | "dataStore"
  | "keyManager"
  | "upstreamAuthority"
  | "nodeAttestors"
  | "telemetry"
  | "federation"
  | "warnings"
>;

type TokenKeys = "jwtKeyType" | "jwtIssuer" | "witKeyType" | "witIssuer";

function coreConfig({ server, health_checks }: ServerValues): CoreConfig {
  const agentTtl = server.agent_ttl ?? server.default_x509_svid_ttl;
  const prune = pruneConfig(server);
  return {
    bindAddress: withoutBrackets(server.bind_address),
    bindPort: server.bind_port,
    trustedProxies: server.proxy_protocol_trusted_cidrs,
    socketPath: server.socket_path,
    log: logSettings(server),
    caTtlSeconds: seconds(server.ca_ttl),
    caKeyType: server.ca_key_type,
    caSubject: caSubject(server.ca_subject),
    defaultX509SvidTtlSeconds: seconds(server.default_x509_svid_ttl),
    defaultJwtSvidTtlSeconds: seconds(server.default_jwt_svid_ttl),
    agentTtlSeconds: seconds(agentTtl),
    ...tokenConfig(server),
    adminIds: server.admin_ids,
    auditLogEnabled: server.audit_log_enabled,
    rateLimit: server.ratelimit,
    healthChecks: healthChecks(health_checks),
    ...(prune === undefined ? {} : { pruneAttestedNodes: prune }),
  };
}

function tokenConfig(server: ServerValues["server"]): Pick<CoreConfig, TokenKeys> {
  const { experimental, jwt_key_type, ca_key_type, jwt_issuer, disable_jwt_svids } = server;
  const withWit = experimental.feature_flags.includes("wit-svid");
  return {
    jwtKeyType: disable_jwt_svids ? undefined : (jwt_key_type ?? ca_key_type),
    jwtIssuer: jwt_issuer ?? "",
    witKeyType: withWit ? (experimental.wit_key_type ?? ca_key_type) : undefined,
    witIssuer: experimental.wit_issuer ?? "",
  };
}

function trustDomainOf({ values, reader, hasFile }: Loaded): TrustDomain | undefined {
  if (values.server.trust_domain !== undefined) return values.server.trust_domain;
  if (!hasFile) return parseTrustDomain(DEFAULT_TRUST_DOMAIN);
  if (!reader.isSet("server.trust_domain")) reader.fault("server", "trust_domain must be configured");
  return undefined;
}

function svidLifetimes({ server }: ServerValues): { readonly key: string; readonly ms: number }[] {
  const lifetimes = [
    { key: "default_x509_svid_ttl", ms: server.default_x509_svid_ttl },
    { key: "default_jwt_svid_ttl", ms: server.default_jwt_svid_ttl },
  ];
  return server.agent_ttl === undefined ? lifetimes : [...lifetimes, { key: "agent_ttl", ms: server.agent_ttl }];
}

function caSubject({ country, organization, common_name }: ServerValues["server"]["ca_subject"]): CaSubject {
  return {
    ...(country.length === 0 ? {} : { country }),
    ...(organization.length === 0 ? {} : { organization }),
    ...(common_name === undefined ? {} : { commonName: common_name }),
  };
}

function warnOfEmptySubject({ values, reader }: Loaded): void {
  const isEmpty = Object.keys(caSubject(values.server.ca_subject)).length === 0;
  if (isEmpty && reader.isSet("server.ca_subject")) {
    reader.warn("server.ca_subject", "ca_subject configurable is set but empty; the default will be used");
  }
}

function warnOfFlags({ values, reader }: Loaded): void {
  const { feature_flags, wit_issuer } = values.server.experimental;
  for (const name of feature_flags)
    reader.warn("server.experimental.feature_flags", `Developer feature flag "${name}" has been enabled`);
  if (wit_issuer?.startsWith("https://") === true)
    reader.warn(
      "server.experimental.wit_issuer",
      "wit_issuer is an https URL; a WIT-SVID is no bearer token, so its issuer should not be that of an OpenID provider",
    );
}

function pruneConfig(server: ServerValues["server"]): PruneAttestedNodes | undefined {
  if (server.prune_attested_nodes_expired_for === 0) return undefined;
  return {
    expiredForMs: server.prune_attested_nodes_expired_for,
    batchSize: server.prune_attested_nodes_batch_size,
    includeNonReattestable: server.prune_tofu_nodes,
  };
}

function seconds(ms: number): number {
  return Math.floor(ms / 1000);
}

/** What is missing has been reported as a fault, so nothing missing gets here. */
function present<T>(value: T | undefined): T {
  if (value === undefined) throw new Fault("internal", "a configuration fault was not reported");
  return value;
}
