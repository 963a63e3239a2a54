import { endpointAddress } from "../../src/client/address.ts";
import { KEY_TYPES, type KeyType } from "../../src/crypto/key.ts";
import {
  block,
  duration,
  flag,
  ignored,
  integer,
  list,
  oneOf,
  parsed,
  port,
  text,
  texts,
  unsupported,
} from "../../src/runtime/config-keys.ts";
import { plugins } from "../../src/runtime/config-plugins.ts";
import { Fault } from "../../src/runtime/fault.ts";
import {
  featureFlags,
  filePath,
  logKeys,
  profilingKeys,
  sharedSections,
  socketPath,
} from "../../src/runtime/program-config.ts";
import { telemetryKeys } from "../../src/runtime/telemetry-config.ts";
import { parseSpiffeId, parseTrustDomainOrId } from "../../src/spiffe/id.ts";
import { brokerKey } from "./broker.ts";
import { nodeAttestorPlugins } from "./node-attestors.ts";
import { workloadAttestors } from "./workload.ts";

/** SPIRE's. */
export const AGENT_SOCKET = "/tmp/spire-agent/public/api.sock";
const BUNDLE_FORMATS = ["pem", "spiffe"] as const;
export type BundleFormat = (typeof BUNDLE_FORMATS)[number];

/** Throws `invalid` unless it's the address of a Workload API. */
function endpointSocket(text: string): string {
  endpointAddress(text);
  return text;
}

const DAY_MS = 86_400_000;

const workloadKeyType = parsed<KeyType>("key type", (spelling) => {
  const found = KEY_TYPES.find((type) => type === spelling.toLowerCase());
  if (found !== undefined && found !== "rsa-4096") return found;
  const message = `key type ${JSON.stringify(spelling)} is unknown; must be one of [rsa-2048, ec-p256, ec-p384]`;
  throw new Fault("invalid", message, { code: "config-invalid" });
});

const trustDomain = parsed("trust domain", parseTrustDomainOrId, "could not parse trust_domain");

const rate = (method: string) => integer(0, 1_000_000)({ doc: `Limit of ${method}.`, default: 0 });

const experimental = block("Options that SPIRE counts as experimental.", {
  sync_interval: duration(
    100,
    "100ms",
  )({ doc: "Time between two synchronisations with the server.", default: 5000, shown: "5s" }),
  jwt_svid_cache_hit_timeout: duration(
    5_000,
    "5s",
  )({
    doc: "How long the renewal of a JWT-SVID may take while the one at hand is still valid.",
    default: 30_000,
    shown: "30s",
  }),
  use_sync_authorized_entries: ignored("Synchronisation by differences; Steeple always does."),
  require_pq_kem: unsupported("Post-quantum hybrid key exchange only."),
  ratelimit: block("Calls per second, and at once, of workloads with the same selectors; 0 is no limit.", {
    fetch_x509_svid: rate("FetchX509SVID"),
    fetch_jwt_svid: rate("FetchJWTSVID"),
    fetch_x509_bundles: rate("FetchX509Bundles"),
    fetch_jwt_bundles: rate("FetchJWTBundles"),
    stream_secrets: rate("SDS StreamSecrets"),
    fetch_secrets: rate("SDS FetchSecrets"),
  }),
  broker: brokerKey,
  feature_flags: featureFlags,
  named_pipe_name: unsupported("Named pipe of the Workload API on Windows; use socket_path."),
  admin_named_pipe_name: unsupported("Named pipe of the admin API on Windows; use admin_socket_path."),
});

const agent = block("The agent's core settings.", {
  trust_domain: trustDomain({
    doc: "Trust domain that the agent belongs to. Required in a file.",
    shown: "example.org without a file",
  }),
  server_address: text({ doc: "Address of the server. Required in a file.", shown: "127.0.0.1 without a file" }),
  server_port: port({ doc: "Port of the server. Required in a file.", shown: "8081 without a file" }),
  data_dir: filePath({
    doc: "Folder for the agent's SVID, the bundle and other state.",
    shown:
      "the current directory with a file; without, $STEEPLE_DATA_DIR/agent, /var/lib/steeple/agent for root, $XDG_STATE_HOME/steeple/agent otherwise",
  }),
  socket_path: socketPath({ doc: "Unix socket of the Workload API.", default: AGENT_SOCKET }),
  admin_socket_path: socketPath({ doc: "Unix socket of the admin APIs, in a directory of its own. Default: none." }),
  trust_bundle_path: filePath({ doc: "File with the bundle that the server is first recognised by." }),
  trust_bundle_url: text({ doc: "https:// address of that bundle." }),
  trust_bundle_url_roots_path: filePath({
    doc: "PEM file with the only roots accepted for trust_bundle_url. Default: the system's.",
    own: true,
  }),
  trust_bundle_format: oneOf(BUNDLE_FORMATS)({ doc: "Form of that bundle.", default: "pem" }),
  trust_bundle_unix_socket: filePath({
    doc: "Unix socket through which trust_bundle_url, then an http:// address, is fetched.",
  }),
  trust_bundle_spiffe_workload_api: parsed(
    "address",
    endpointSocket,
  )({
    doc: "Address of another Workload API that hands out that bundle.",
  }),
  insecure_bootstrap: flag({ doc: "Believes whichever server answers first.", default: false }),
  rebootstrap_mode: oneOf(["never", "auto", "always"])({
    doc: "Whether an agent that can re-attest fetches the first bundle again when its own no longer vouches for the server; always refuses to run when it can't.",
    default: "never",
  }),
  rebootstrap_delay: duration(0, "0s")({ doc: "How long that must last.", default: 600_000, shown: "10m" }),
  join_token: text({ doc: "One-time token to attest with." }),
  join_token_file: filePath({ doc: "File that holds the token." }),
  ...logKeys,
  log_selectors: texts({ doc: "Prefixes of selectors that may appear in the log, such as unix:user." }),
  allow_unauthenticated_verifiers: flag({ doc: "Hands bundles to callers without an identity.", default: false }),
  allowed_foreign_jwt_claims: texts({
    doc: "Claims returned for JWT-SVIDs of other trust domains, besides sub, aud and exp.",
  }),
  authorized_delegates: list(
    "SPIFFE IDs",
    parseSpiffeId,
    "invalid delegate",
  )({ doc: "SPIFFE IDs that may use the Delegated Identity API on the admin socket." }),
  availability_target: duration(DAY_MS, "24h")({ doc: "How long SVIDs shall last at least while the server is away." }),
  workload_x509_svid_key_type: workloadKeyType({
    doc: "Key type of workloads: rsa-2048, ec-p256 or ec-p384.",
    default: "ec-p256",
  }),
  x509_svid_cache_max_size: integer(
    0,
    1_000_000,
  )({
    doc: "X.509-SVIDs held at most. Those that open streams use stay, even beyond it, and are then the only ones; what is idle is never held beyond it. 0 is the default.",
    default: 1000,
  }),
  jwt_svid_cache_max_size: integer(0, 1_000_000)({ doc: "JWT-SVIDs kept, at most; 0 is the default.", default: 1000 }),
  max_streams_per_connection: integer(
    1,
    1_000_000,
  )({ doc: "Most calls at once on one Workload API connection.", default: 1000, own: true }),
  sds: block("Envoy's Secret Discovery Service.", {
    default_svid_name: text({ doc: "Resource name of the default identity.", default: "default" }),
    default_bundle_name: text({ doc: "Resource name of the own trust domain's roots.", default: "ROOTCA" }),
    default_all_bundles_name: text({ doc: "Resource name of all trust domains' roots.", default: "ALL" }),
    disable_spiffe_cert_validation: flag({
      doc: "Sends roots as plain CA certificates instead of for Envoy's SPIFFE validator.",
      default: false,
    }),
  }),
  disable_sds_api: flag({ doc: "Turns Envoy's Secret Discovery Service off.", default: false }),
  disable_workload_api: flag({
    doc: "Turns the Workload API off; with both off there is no public socket.",
    default: false,
  }),
  ...profilingKeys,
  experimental,
});

/** Every key of an agent's configuration file. */
export const agentKeys = {
  agent,
  plugins: plugins({
    KeyManager: {
      doc: "Where the agent's private key lives. Default: disk.",
      plugins: {
        disk: {
          doc: "A file in a directory, mode 0600.",
          keys: { directory: filePath({ doc: "The directory. SPIRE requires it.", shown: "data_dir" }) },
        },
        memory: { doc: "Memory: the agent attests anew after every start.", keys: {} },
      },
    },
    NodeAttestor: {
      doc: "How the agent proves who it is. Default: join_token.",
      plugins: nodeAttestorPlugins,
    },
    WorkloadAttestor: {
      doc: "How workloads are told apart. Default: unix.",
      plugins: workloadAttestors,
    },
    SVIDStore: {
      doc: "Where SVIDs are stored for workloads that can't ask.",
      plugins: { aws_secretsmanager: undefined, gcp_secretmanager: undefined },
    },
  }),
  telemetry: telemetryKeys(parseSpiffeId),
  ...sharedSections,
};
