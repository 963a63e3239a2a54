import { resolve } from "node:path";
import { parseAgentPathTemplate } from "../../src/evidence/agent-path.ts";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { block, flag, integer, list, named, oneOf, port, text, texts } from "../../src/runtime/config-keys.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { networkList } from "../../src/runtime/networks.ts";
import { filePath } from "../../src/runtime/program-config.ts";
import {
  agentPathTemplate,
  awsIid,
  awsIidConfig,
  azureImds,
  azureImdsConfig,
  azureMsi,
  azureMsiConfig,
  type CloudSpot,
  gcpIit,
  gcpIitConfig,
} from "./cloud-attestors.ts";

/*
 * The server's half of each node attestor, as configured. The attestors of server/attest take these values as they are.
 */

const x509pop = {
  mode: oneOf(["external_pki", "spiffe"])({
    doc: "Who issued the nodes' certificates: an own PKI, or this trust domain, whose SVIDs are then exchanged.",
    default: "external_pki",
  }),
  spiffe_prefix: text({ doc: "Path prefix of the SVIDs that may be exchanged.", default: "/spire-exchange/" }),
  ca_bundle_path: filePath({ doc: "PEM file with the CAs of the nodes' certificates; reloaded when it changes." }),
  ca_bundle_paths: list("paths", (path) => resolve(path))({ doc: "Several such files.", default: [], shown: "[]" }),
  agent_path_template: agentPathTemplate({
    doc: "What agent IDs have after /spire/agent.",
    shown: '"/{{ .PluginName }}/{{ .Fingerprint }}", or "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}" in spiffe mode',
  }),
  max_intermediates: integer(1, 9)({ doc: "Most intermediate certificates.", default: 4 }),
  max_rsa_key_size: integer(2048, 8192)({ doc: "Largest RSA key, in bits.", default: 8192 }),
  verify_client_ip: flag({ doc: "The peer's address must be an IP name of the certificate.", default: false }),
};

const httpChallenge = {
  allowed_dns_patterns: list(
    "regular expressions",
    wholePattern,
  )({
    doc: "A node's whole host name must match one of them; without any, every name may attest.",
    default: [],
    shown: "[]",
  }),
  required_port: port({ doc: "Only port that a node may serve the challenge on." }),
  allow_non_root_ports: flag({ doc: "Whether that port may be 1024 or above.", shown: "true" }),
  tofu: flag({ doc: "Trust on first use: a host attests once, and its agent renews from then on.", default: true }),
  allowed_networks: list(
    "networks",
    network,
  )({
    doc: "Networks such as 10.0.0.0/8 whose hosts may attest although they are not on the internet.",
    default: [],
    shown: "[]",
    own: true,
  }),
};

const sshpop = {
  cert_authorities: texts({ doc: "SSH public keys of the CAs, as in authorized_keys.", default: [], shown: "[]" }),
  cert_authorities_path: filePath({ doc: "File with such keys, one a line; reloaded when it changes." }),
  canonical_domain: text({ doc: "Domain that host names must end with, and that is left out of agent IDs." }),
  agent_path_template: agentPathTemplate({
    doc: "What agent IDs have after /spire/agent.",
    shown: '"/{{ .PluginName }}/{{ .Fingerprint }}"',
  }),
};

const k8sPsat = {
  clusters: named(
    "The clusters whose agents may attest, by name.",
    block("One cluster; the name stands in agent IDs.", {
      service_account_allow_list: texts({
        doc: "Service accounts of agents, as <namespace>:<name>.",
        default: [],
        shown: "[]",
      }),
      audience: texts({
        doc: "Audiences of which the token needs one; [] is the API server's own.",
        shown: '["spire-server"]',
      }),
      kube_config_file: filePath({ doc: "kubeconfig for the cluster. Default: the server runs in it." }),
      allowed_node_label_keys: texts({ doc: "Node labels that become selectors.", default: [], shown: "[]" }),
      allowed_pod_label_keys: texts({ doc: "Pod labels that become selectors.", default: [], shown: "[]" }),
      use_pod_uid_for_agent_id: flag({ doc: "Agent IDs name the agent's pod instead of its node.", default: false }),
    }),
  ),
};

const tpmDevId = {
  devid_ca_path: filePath({ doc: "PEM file with the CAs of DevID certificates; reloaded when it changes." }),
  endorsement_ca_path: filePath({ doc: "PEM file with the issuers of endorsement certificates; reloaded likewise." }),
};

const tpm = {
  ca_path: filePath({
    doc: "Folder with certificates of TPM makers.",
    default: "/opt/spire/.data/certs",
    own: true,
  }),
  hash_path: filePath({
    doc: "Folder with an empty file for each TPM, named by the hash of its endorsement key.",
    default: "/opt/spire/.data/hashes",
    own: true,
  }),
  pcrs: list(
    "PCRs",
    pcrNumber,
  )({
    doc: "PCRs of the SHA-256 bank that are quoted and become selectors.",
    default: [0, 1, 2, 3, 4, 5, 6, 7],
    shown: "[0, 1, 2, 3, 4, 5, 6, 7]",
    own: true,
  }),
  pcr_sets: named(
    "States of which a node has to be in one, by name; without any, a node may be in every state.",
    block("One state.", {
      pcrs: list(
        "PCR values",
        pcrValue,
      )({ doc: "Values as <PCR>:<SHA-256 in hex>.", default: [], shown: "[]", own: true }),
    }),
  ),
};

/** Data of the `NodeAttestor` plug-ins. */
export const nodeAttestorPlugins = {
  join_token: { doc: "One-time tokens; always on.", keys: {} },
  x509pop: { doc: "Certificates whose key the node holds.", keys: x509pop },
  http_challenge: { doc: "Host names under which the node serves a nonce.", keys: httpChallenge },
  tpm: { doc: "TPMs known by endorsement key or maker, and the state they quote.", keys: tpm },
  tpm_devid: { doc: "DevID certificates whose key is in a TPM.", keys: tpmDevId },
  k8s_psat: { doc: "Service account tokens of agents in Kubernetes.", keys: k8sPsat },
  sshpop: { doc: "SSH host certificates whose key the node holds.", keys: sshpop },
  aws_iid: { doc: "Identity documents of EC2 instances, signed by AWS.", keys: awsIid },
  azure_imds: { doc: "Documents that Azure has signed for its machines, over a nonce.", keys: azureImds },
  azure_msi: { doc: "Tokens of the managed identities of Azure's machines.", keys: azureMsi },
  gcp_iit: { doc: "Identity tokens of Compute Engine instances, signed by Google.", keys: gcpIit },
};

interface Enabled {
  readonly x509pop?: Values<typeof x509pop>;
  readonly http_challenge?: Values<typeof httpChallenge>;
  readonly k8s_psat?: Values<typeof k8sPsat>;
  readonly tpm?: Values<typeof tpm>;
  readonly tpm_devid?: Values<typeof tpmDevId>;
  readonly sshpop?: Values<typeof sshpop>;
  readonly aws_iid?: Values<typeof awsIid>;
  readonly gcp_iit?: Values<typeof gcpIit>;
  readonly azure_imds?: Values<typeof azureImds>;
  readonly azure_msi?: Values<typeof azureMsi>;
}

export type NodeAttestorConfig =
  | { readonly type: "join_token" }
  | ({ readonly type: "x509pop" } & ReturnType<typeof x509popConfig>)
  | ({ readonly type: "http_challenge" } & ReturnType<typeof httpChallengeConfig>)
  | ({ readonly type: "k8s_psat" } & ReturnType<typeof k8sPsatConfig>)
  | ({ readonly type: "tpm" } & ReturnType<typeof tpmConfig>)
  | ({ readonly type: "tpm_devid" } & ReturnType<typeof tpmDevIdConfig>)
  | ({ readonly type: "sshpop" } & ReturnType<typeof sshpopConfig>)
  | ({ readonly type: "aws_iid" } & ReturnType<typeof awsIidConfig>)
  | ({ readonly type: "gcp_iit" } & ReturnType<typeof gcpIitConfig>)
  | ({ readonly type: "azure_imds" } & ReturnType<typeof azureImdsConfig>)
  | ({ readonly type: "azure_msi" } & ReturnType<typeof azureMsiConfig>);

/** Join tokens first: they are always on. */
export function nodeAttestorConfigs(enabled: Enabled, spot: CloudSpot): readonly NodeAttestorConfig[] {
  const { reader } = spot;
  return [
    { type: "join_token" },
    ...(enabled.x509pop === undefined ? [] : [{ type: "x509pop", ...x509popConfig(enabled.x509pop, reader) } as const]),
    ...(enabled.http_challenge === undefined
      ? []
      : [{ type: "http_challenge", ...httpChallengeConfig(enabled.http_challenge, reader) } as const]),
    ...(enabled.k8s_psat === undefined
      ? []
      : [{ type: "k8s_psat", ...k8sPsatConfig(enabled.k8s_psat, reader) } as const]),
    ...(enabled.tpm === undefined ? [] : [{ type: "tpm", ...tpmConfig(enabled.tpm, reader) } as const]),
    ...(enabled.tpm_devid === undefined
      ? []
      : [{ type: "tpm_devid", ...tpmDevIdConfig(enabled.tpm_devid, reader) } as const]),
    ...(enabled.sshpop === undefined ? [] : [{ type: "sshpop", ...sshpopConfig(enabled.sshpop, reader) } as const]),
    ...(enabled.aws_iid === undefined ? [] : [{ type: "aws_iid", ...awsIidConfig(enabled.aws_iid, spot) } as const]),
    ...(enabled.gcp_iit === undefined ? [] : [{ type: "gcp_iit", ...gcpIitConfig(enabled.gcp_iit, spot) } as const]),
    ...(enabled.azure_imds === undefined
      ? []
      : [{ type: "azure_imds", ...azureImdsConfig(enabled.azure_imds, spot) } as const]),
    ...(enabled.azure_msi === undefined
      ? []
      : [{ type: "azure_msi", ...azureMsiConfig(enabled.azure_msi, spot) } as const]),
  ];
}

function x509popConfig(values: Values<typeof x509pop>, reader: ConfigReader) {
  checkCaPaths(values, reader);
  const isSpiffe = values.mode === "spiffe";
  const fallback = isSpiffe ? "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}" : "/{{ .PluginName }}/{{ .Fingerprint }}";
  return {
    mode: isSpiffe
      ? ({ kind: "spiffe", prefix: withSlash(values.spiffe_prefix) } as const)
      : ({ kind: "external_pki", caPaths: caPaths(values) } as const),
    agentPath: values.agent_path_template ?? parseAgentPathTemplate(fallback),
    maxIntermediates: values.max_intermediates,
    maxRsaKeySize: values.max_rsa_key_size,
    verifyClientIp: values.verify_client_ip,
  };
}

function checkCaPaths(values: Values<typeof x509pop>, reader: ConfigReader): void {
  const at = "plugins.NodeAttestor.x509pop";
  const paths = caPaths(values);
  if (values.mode === "spiffe" && paths.length > 0)
    reader.fault(at, "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode");
  if (values.mode === "spiffe") return;
  if (values.ca_bundle_path !== undefined && values.ca_bundle_paths.length > 0)
    reader.fault(at, "only one of ca_bundle_path or ca_bundle_paths can be configured, not both");
  if (paths.length === 0) reader.fault(at, "one of ca_bundle_path or ca_bundle_paths must be configured");
}

function caPaths({ ca_bundle_path, ca_bundle_paths }: Values<typeof x509pop>): readonly string[] {
  return ca_bundle_path === undefined ? ca_bundle_paths : [ca_bundle_path];
}

function withSlash(prefix: string): string {
  return prefix.endsWith("/") ? prefix : `${prefix}/`;
}

function httpChallengeConfig(values: Values<typeof httpChallenge>, reader: ConfigReader) {
  const { required_port: requiredPort, allow_non_root_ports: nonRoot, tofu } = values;
  const anyUserMayServe = requiredPort === undefined ? nonRoot !== false : requiredPort >= 1024;
  if (!tofu && anyUserMayServe) {
    reader.fault(
      "plugins.NodeAttestor.http_challenge",
      "you can not turn off trust on first use (TOFU) when non-root ports are allowed",
    );
  }
  return {
    allowedDnsPatterns: values.allowed_dns_patterns,
    requiredPort,
    allowNonRootPorts: nonRoot ?? true,
    tofu,
    allowedNetworks: networkList(values.allowed_networks),
  };
}

function k8sPsatConfig({ clusters }: Values<typeof k8sPsat>, reader: ConfigReader) {
  const at = "plugins.NodeAttestor.k8s_psat";
  if (clusters.size === 0) reader.warn(at, "No clusters configured, PSAT attestation is effectively disabled");
  const read = [...clusters].map(([name, cluster]) => {
    const { service_account_allow_list: serviceAccountAllowList } = cluster;
    if (!/^[A-Za-z0-9._-]+$/.test(name) || name === "." || name === "..")
      reader.fault(`${at}.clusters.${name}`, `cluster name ${JSON.stringify(name)} cannot stand in an agent ID`);
    if (serviceAccountAllowList.length === 0)
      reader.fault(
        `${at}.clusters.${name}`,
        `cluster "${name}" configuration must have at least one service account allowed`,
      );
    return [
      name,
      {
        serviceAccountAllowList,
        audience: cluster.audience ?? ["spire-server"],
        kubeConfigFile: cluster.kube_config_file,
        allowedNodeLabelKeys: cluster.allowed_node_label_keys,
        allowedPodLabelKeys: cluster.allowed_pod_label_keys,
        usePodUidForAgentId: cluster.use_pod_uid_for_agent_id,
      },
    ] as const;
  });
  return { clusters: new Map(read) };
}

function tpmDevIdConfig(values: Values<typeof tpmDevId>, reader: ConfigReader) {
  for (const key of ["devid_ca_path", "endorsement_ca_path"] as const)
    if (values[key] === undefined)
      reader.fault("plugins.NodeAttestor.tpm_devid", `invalid configuration: ${key} is required`);
  return { devidCaPath: values.devid_ca_path ?? "", endorsementCaPath: values.endorsement_ca_path ?? "" };
}

function tpmConfig(values: Values<typeof tpm>, reader: ConfigReader) {
  const at = "plugins.NodeAttestor.tpm";
  const pcrs = [...new Set(values.pcrs)].sort((a, b) => a - b);
  const pcrSets = [...values.pcr_sets].map(([name, set]) => {
    const missing = set.pcrs.find(({ pcr }) => !pcrs.includes(pcr));
    if (missing !== undefined) reader.fault(`${at}.pcr_sets.${name}`, `PCR ${missing.pcr} is not among pcrs`);
    if (set.pcrs.length === 0) reader.fault(`${at}.pcr_sets.${name}`, `set "${name}" has no values`);
    return { name, values: new Map(set.pcrs.map(({ pcr, value }) => [pcr, value])) };
  });
  return { caPath: values.ca_path, hashPath: values.hash_path, pcrs, pcrSets };
}

function sshpopConfig(values: Values<typeof sshpop>, reader: ConfigReader) {
  const { cert_authorities: certAuthorities, cert_authorities_path: certAuthoritiesPath } = values;
  if (certAuthorities.length === 0 && certAuthoritiesPath === undefined)
    reader.fault(
      "plugins.NodeAttestor.sshpop",
      'missing required config value for "cert_authorities" or "cert_authorities_path"',
    );
  return {
    certAuthorities,
    certAuthoritiesPath,
    canonicalDomain: values.canonical_domain,
    agentPath: values.agent_path_template ?? parseAgentPathTemplate("/{{ .PluginName }}/{{ .Fingerprint }}"),
  };
}

/** Throws `invalid`. Host names are matched as a whole, so that nothing can stand before or behind what was meant. */
function wholePattern(pattern: string): RegExp {
  try {
    return new RegExp(`^(?:${pattern})$`);
  } catch {
    throw new Fault("invalid", `cannot compile allowed_dns_pattern: ${JSON.stringify(pattern)}`, {
      code: "config-invalid",
    });
  }
}

/** Throws `invalid`. */
function network(text: string): string {
  networkList([text]);
  return text;
}

/** Throws `invalid`. */
function pcrNumber(text: string): number {
  if (/^([0-9]|1[0-9]|2[0-3])$/.test(text)) return Number(text);
  throw new Fault("invalid", `${JSON.stringify(text)} is not a PCR; there are 0 to 23`, { code: "config-invalid" });
}

/** Throws `invalid`. */
function pcrValue(text: string): { readonly pcr: number; readonly value: string } {
  const [pcr = "", value = "", ...more] = text.split(":");
  if (/^[0-9a-fA-F]{64}$/.test(value) && more.length === 0) return { pcr: pcrNumber(pcr), value: value.toLowerCase() };
  throw new Fault("invalid", `${JSON.stringify(text)} is not of the form <PCR>:<SHA-256 in hex>`, {
    code: "config-invalid",
  });
}
