import { KEY_TYPES, type KeyType } from "../../src/crypto/key.ts";
import { parseCidr } from "../../src/runtime/cidr.ts";
import {
  block,
  duration,
  flag,
  ignored,
  integer,
  list,
  parsed,
  text,
  texts,
  unsupported,
} from "../../src/runtime/config-keys.ts";
import { plugins } from "../../src/runtime/config-plugins.ts";
import { Fault } from "../../src/runtime/fault.ts";
import {
  featureFlags,
  filePath,
  lifetime,
  logKeys,
  profilingKeys,
  sharedSections,
  socketPath,
} from "../../src/runtime/program-config.ts";
import { telemetryKeys } from "../../src/runtime/telemetry-config.ts";
import { parseSpiffeId, parseTrustDomainOrId } from "../../src/spiffe/id.ts";
import { dataStoreKeys } from "./data-store.ts";
import { federationKeys } from "./federation.ts";
import { keyManagerPlugins } from "./key-manager.ts";
import { nodeAttestorPlugins } from "./node-attestors.ts";
import { upstreamAuthorityPlugins } from "./upstream-authority.ts";

/** SPIRE's. */
export const SERVER_SOCKET = "/tmp/spire-server/private/api.sock";

const keyType = parsed<KeyType>("key type", (spelling) => {
  const found = KEY_TYPES.find((type) => type === spelling.toLowerCase());
  if (found !== undefined) return found;
  const message = `key type ${JSON.stringify(spelling)} is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]`;
  throw new Fault("invalid", message, { code: "config-invalid" });
});

const trustDomain = parsed("trust domain", parseTrustDomainOrId, "could not parse trust_domain");

const adminIds = list("SPIFFE IDs", parseSpiffeId, "could not parse admin ID");

const networks = list("networks", parseCidr, "invalid proxy_protocol_trusted_cidrs");

const experimental = block("Options that SPIRE counts as experimental.", {
  cache_reload_interval: ignored("Period of rebuilding the authorized-entry cache; Steeple follows changes instead."),
  events_based_cache: ignored("Incremental cache; Steeple's always is."),
  full_cache_reload_interval: ignored("Period of full cache rebuilds."),
  prune_events_older_than: ignored("How long events are kept."),
  event_timeout: ignored("How long to look for skipped events; Steeple's change feed skips none."),
  sql_transaction_timeout: ignored("Old name of event_timeout."),
  auth_opa_policy_engine: unsupported("A custom authorization policy."),
  agent_spiffe_id_as_selector: unsupported("Adds a spiffe_id selector to nodes."),
  require_pq_kem: unsupported("Post-quantum hybrid key exchange only."),
  wit_key_type: keyType({ doc: "Key type of WIT signing keys.", shown: "the CA's, when it's set" }),
  wit_issuer: text({ doc: "Issuer claim of WIT-SVIDs. Not the URL of an OpenID provider." }),
  feature_flags: featureFlags,
  named_pipe_name: unsupported("Named pipe of the server API on Windows; use socket_path."),
});

const server = block("The server's core settings.", {
  trust_domain: trustDomain({
    doc: "Trust domain that the server belongs to. Required in a file.",
    shown: "example.org without a file",
  }),
  bind_address: text({ doc: "Address of the TCP listener.", default: "0.0.0.0" }),
  bind_port: integer(0, 65_535)({ doc: "Port of the TCP listener; 0 takes one that is free.", default: 8081 }),
  socket_path: socketPath({ doc: "Unix socket of the server API.", default: SERVER_SOCKET }),
  data_dir: filePath({
    doc: "Folder for keys, the embedded store and other state. SPIRE requires it.",
    shown: "$STEEPLE_DATA_DIR/server, /var/lib/steeple/server for root, $XDG_STATE_HOME/steeple/server otherwise",
  }),
  ...logKeys,
  ca_ttl: lifetime({
    doc: "Lifetime of CA certificates and JWT signing keys, at least 18s.",
    default: 86_400_000,
    shown: "24h",
  }),
  ca_key_type: keyType({
    doc: "Key type of the CA and of the server's own SVID: rsa-2048, rsa-4096, ec-p256 or ec-p384.",
    default: "ec-p256",
  }),
  ca_subject: block("Subject of the CA certificate.", {
    country: texts({ doc: "Countries.", default: [] }),
    organization: texts({ doc: "Organizations.", default: [] }),
    common_name: text({ doc: "Common name." }),
  }),
  jwt_key_type: keyType({ doc: "Key type of JWT signing keys.", shown: "the CA's, when it's set" }),
  jwt_issuer: text({ doc: "Issuer claim of JWT-SVIDs." }),
  disable_jwt_svids: flag({ doc: "Turns JWT-SVIDs off.", default: false }),
  default_x509_svid_ttl: lifetime({
    doc: "Lifetime of X.509-SVIDs whose entry names none.",
    default: 3_600_000,
    shown: "1h",
  }),
  default_jwt_svid_ttl: lifetime({
    doc: "Lifetime of JWT-SVIDs whose entry names none.",
    default: 300_000,
    shown: "5m",
  }),
  agent_ttl: lifetime({ doc: "Lifetime of agent SVIDs.", shown: "default_x509_svid_ttl" }),
  admin_ids: adminIds({
    doc: "SPIFFE IDs with administrator rights; they may belong to other trust domains.",
    default: [],
    shown: "[]",
  }),
  audit_log_enabled: flag({ doc: "Writes an audit record for every call.", default: false }),
  federation: federationKeys,
  ratelimit: block("Limits per caller.", {
    attestation: flag({ doc: "Limits attestation to one per second and caller.", default: true }),
    signing: flag({ doc: "Limits signing to 500 SVIDs per second and caller.", default: true }),
  }),
  proxy_protocol_trusted_cidrs: networks({
    doc: "Networks of load balancers whose PROXY headers, version 1 or 2, name the true address of a caller.",
    default: [],
    shown: "[]",
  }),
  max_attested_node_info_staleness: ignored("Age of cached node information; Steeple's follows changes."),
  prune_attested_nodes_expired_for: duration(
    0,
    "0s",
  )({
    doc: "Prunes nodes whose SVID expired longer ago than this; 0 prunes none. SPIRE's default is to prune none.",
    default: 2_592_000_000,
    shown: "720h",
  }),
  prune_attested_nodes_batch_size: integer(1, 1_000_000)({ doc: "Most nodes pruned at once.", default: 1000 }),
  prune_tofu_nodes: flag({ doc: "Prunes nodes that can't re-attest, too.", default: false }),
  ...profilingKeys,
  experimental,
});

/** Every key of a server's configuration file. */
export const serverKeys = {
  server,
  plugins: plugins({
    DataStore: {
      doc: "Where entries, nodes and bundles are kept. Default: the embedded store in data_dir.",
      plugins: { sql: { doc: "A PostgreSQL database or the embedded store.", keys: dataStoreKeys } },
    },
    KeyManager: {
      doc: "Where the authority's private keys live. Default: disk.",
      plugins: keyManagerPlugins,
    },
    NodeAttestor: {
      doc: "Ways for agents to prove who they are.",
      plugins: nodeAttestorPlugins,
    },
    UpstreamAuthority: {
      doc: "Who signs the CA certificate.",
      plugins: upstreamAuthorityPlugins,
    },
    Notifier: { doc: "Who is told of bundle changes.", plugins: { gcs_bundle: undefined, k8sbundle: undefined } },
    BundlePublisher: {
      doc: "Where bundles are published.",
      plugins: {
        aws_rolesanywhere_trustanchor: undefined,
        aws_s3: undefined,
        azure_blob: undefined,
        gcp_cloudstorage: undefined,
        k8s_configmap: undefined,
      },
    },
    CredentialComposer: { doc: "Who changes what is put into SVIDs.", plugins: { uniqueid: undefined } },
  }),
  telemetry: telemetryKeys(parseSpiffeId),
  ...sharedSections,
};
