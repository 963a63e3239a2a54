import { resolve } from "node:path";
import { parseAgentPathTemplate } from "../../src/evidence/agent-path.ts";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { flag, integer, list, oneOf, parsed, text } from "../../src/runtime/config-keys.ts";
import { filePath } from "../../src/runtime/program-config.ts";

/*
 * The server's half of each node attestor, as configured. The attestors of server/attest take these values as they are.
 */

const agentPathTemplate = parsed("template", parseAgentPathTemplate, "failed to parse agent svid template");

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

/** Data of the `NodeAttestor` plug-ins. */
export const nodeAttestorPlugins = {
  join_token: { doc: "One-time tokens; always on.", keys: {} },
  x509pop: { doc: "Certificates whose key the node holds.", keys: x509pop },
  aws_iid: undefined,
  azure_imds: undefined,
  azure_msi: undefined,
  gcp_iit: undefined,
  http_challenge: undefined,
  k8s_psat: undefined,
  sshpop: undefined,
  tpm_devid: undefined,
};

interface Enabled {
  readonly x509pop?: Values<typeof x509pop>;
}

export type NodeAttestorConfig =
  | { readonly type: "join_token" }
  | ({ readonly type: "x509pop" } & ReturnType<typeof x509popConfig>);

/** Join tokens first: they are always on. */
export function nodeAttestorConfigs(enabled: Enabled, reader: ConfigReader): readonly NodeAttestorConfig[] {
  return [
    { type: "join_token" },
    ...(enabled.x509pop === undefined ? [] : [{ type: "x509pop", ...x509popConfig(enabled.x509pop, reader) } as const]),
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
