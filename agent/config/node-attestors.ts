import { hostname } from "node:os";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { duration, integer, oneOf, text } from "../../src/runtime/config-keys.ts";
import { pluginNames } from "../../src/runtime/config-plugins.ts";
import { filePath } from "../../src/runtime/program-config.ts";
import {
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
 * The agent's half of each node attestor, as configured.
 */

const x509pop = {
  private_key_path: filePath({ doc: "PEM file with the private key; read for each attestation." }),
  certificate_path: filePath({ doc: "PEM file with the certificate, and intermediates after it." }),
  intermediates_path: filePath({ doc: "PEM file with more intermediates." }),
  spiffe_endpoint_socket: text({ doc: "Another agent's Workload API: its SVID takes the files' place." }),
};

const httpChallenge = {
  hostname: text({ doc: "DNS name of the node.", shown: "the machine's host name" }),
  agentname: text({ doc: "Tells agents of one host apart.", default: "default" }),
  port: integer(0, 65_535)({ doc: "Port to serve the challenge on; 0 takes one that is free.", default: 0 }),
  advertised_port: integer(0, 65_535)({ doc: "Port that the server connects to.", default: 0, shown: "port" }),
};

const k8sPsat = {
  cluster: text({ doc: "Name of the cluster, as the server's configuration has it." }),
  token_path: filePath({ doc: "The pod's token.", default: "/var/run/secrets/tokens/spire-agent" }),
};

const sshpop = {
  host_key_path: filePath({ doc: "The host's private key.", default: "/etc/ssh/ssh_host_rsa_key" }),
  host_cert_path: filePath({ doc: "Its certificate.", default: "/etc/ssh/ssh_host_rsa_key-cert.pub" }),
};

const tpmAccess = {
  tpm_device_path: text({
    doc: "The TPM: a device, or a simulator as unix:/path or tcp:host:port.",
    shown: "the only device there is",
  }),
  owner_hierarchy_password: text({ doc: "Password of the owner hierarchy.", default: "" }),
  endorsement_hierarchy_password: text({ doc: "Password of the endorsement hierarchy.", default: "" }),
};

const tpmDevId = {
  devid_cert_path: filePath({ doc: "PEM file with the DevID certificate, and intermediates after it." }),
  devid_priv_path: filePath({ doc: "The key's private blob." }),
  devid_pub_path: filePath({ doc: "The key's public blob." }),
  devid_password: text({ doc: "The key's password.", default: "" }),
  ...tpmAccess,
};

const tpm = {
  ...tpmAccess,
  attestation_key: oneOf(["rsa", "ecc"])({
    doc: "Kind of attestation key; ecc is much faster, rsa is understood by every server.",
    default: "rsa",
    own: true,
  }),
  event_log_path: filePath({
    doc: "What the firmware has measured.",
    default: "/sys/kernel/security/tpm0/binary_bios_measurements",
    own: true,
  }),
  requote_interval: duration(
    0,
    "0s",
  )({
    doc: "How often the state is quoted anew; 0s is as often as the agent's SVID is renewed.",
    default: 0,
    shown: "0s",
    own: true,
  }),
};

/** Data of the `NodeAttestor` plug-ins. */
export const nodeAttestorPlugins = {
  join_token: { doc: "A one-time token.", keys: {} },
  x509pop: { doc: "A certificate whose key the node holds.", keys: x509pop },
  http_challenge: { doc: "A host name under which the agent serves a nonce.", keys: httpChallenge },
  tpm: { doc: "The TPM's endorsement key, and the state that it quotes.", keys: tpm },
  tpm_devid: { doc: "A DevID certificate whose key is in the TPM.", keys: tpmDevId },
  k8s_psat: { doc: "The service account token of the agent's pod.", keys: k8sPsat },
  sshpop: { doc: "The host's SSH certificate.", keys: sshpop },
  aws_iid: { doc: "The identity document of the EC2 instance.", keys: awsIid },
  azure_imds: { doc: "A document that Azure signs for the machine, over the server's nonce.", keys: azureImds },
  azure_msi: { doc: "A token of the machine's managed identity in Azure.", keys: azureMsi },
  gcp_iit: { doc: "The identity token of the Compute Engine instance.", keys: gcpIit },
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
  | { readonly type: "x509pop"; readonly source: X509PopSource }
  | ({ readonly type: "http_challenge" } & ReturnType<typeof httpChallengeConfig>)
  | { readonly type: "k8s_psat"; readonly cluster: string; readonly tokenPath: string }
  | ({ readonly type: "tpm" } & ReturnType<typeof tpmConfig>)
  | ({ readonly type: "tpm_devid" } & ReturnType<typeof tpmDevIdConfig>)
  | { readonly type: "sshpop"; readonly hostKeyPath: string; readonly hostCertPath: string }
  | ({ readonly type: "aws_iid" } & ReturnType<typeof awsIidConfig>)
  | ({ readonly type: "gcp_iit" } & ReturnType<typeof gcpIitConfig>)
  | ({ readonly type: "azure_imds" } & ReturnType<typeof azureImdsConfig>)
  | ({ readonly type: "azure_msi" } & ReturnType<typeof azureMsiConfig>);

/** Where certificate and key come from. */
export type X509PopSource =
  | { readonly kind: "socket"; readonly socket: string }
  | {
      readonly kind: "files";
      readonly privateKeyPath: string;
      readonly certificatePath: string;
      readonly intermediatesPath?: string;
    };

/** The one that is configured; without any, a join token. */
export function nodeAttestorConfig(enabled: Enabled, spot: CloudSpot): NodeAttestorConfig {
  const { reader } = spot;
  const count = pluginNames({ ...enabled }).length;
  if (count > 1)
    reader.fault("plugins", `plugin type "NodeAttestor" constraint not satisfied: expected exactly 1 but got ${count}`);
  if (enabled.x509pop !== undefined) return { type: "x509pop", source: x509popSource(enabled.x509pop, reader) };
  if (enabled.http_challenge !== undefined)
    return { type: "http_challenge", ...httpChallengeConfig(enabled.http_challenge) };
  if (enabled.k8s_psat !== undefined) {
    const { cluster = "", token_path: tokenPath } = enabled.k8s_psat;
    if (cluster === "") reader.fault("plugins.NodeAttestor.k8s_psat", "missing cluster configuration");
    return { type: "k8s_psat", cluster, tokenPath };
  }
  if (enabled.tpm !== undefined) return { type: "tpm", ...tpmConfig(enabled.tpm) };
  if (enabled.tpm_devid !== undefined) return { type: "tpm_devid", ...tpmDevIdConfig(enabled.tpm_devid, reader) };
  if (enabled.sshpop !== undefined) {
    const { host_key_path: hostKeyPath, host_cert_path: hostCertPath } = enabled.sshpop;
    return { type: "sshpop", hostKeyPath, hostCertPath };
  }
  if (enabled.aws_iid !== undefined) return { type: "aws_iid", ...awsIidConfig(enabled.aws_iid, spot) };
  if (enabled.gcp_iit !== undefined) return { type: "gcp_iit", ...gcpIitConfig(enabled.gcp_iit, spot) };
  if (enabled.azure_imds !== undefined) return { type: "azure_imds", ...azureImdsConfig(enabled.azure_imds, spot) };
  if (enabled.azure_msi !== undefined) return { type: "azure_msi", ...azureMsiConfig(enabled.azure_msi, spot) };
  return { type: "join_token" };
}

function httpChallengeConfig(values: Values<typeof httpChallenge>) {
  const { agentname: agentName, port, advertised_port: advertisedPort } = values;
  return { hostname: values.hostname ?? hostname(), agentName, port, advertisedPort };
}

function accessOf(values: Values<typeof tpmAccess>) {
  return {
    devicePath: values.tpm_device_path,
    ownerPassword: values.owner_hierarchy_password,
    endorsementPassword: values.endorsement_hierarchy_password,
  };
}

function tpmConfig(values: Values<typeof tpm>) {
  const { attestation_key: attestationKey, event_log_path: eventLogPath, requote_interval: requoteMs } = values;
  return { ...accessOf(values), attestationKey, eventLogPath, requoteMs };
}

function tpmDevIdConfig(values: Values<typeof tpmDevId>, reader: ConfigReader) {
  for (const key of ["devid_cert_path", "devid_priv_path", "devid_pub_path"] as const)
    if (values[key] === undefined)
      reader.fault("plugins.NodeAttestor.tpm_devid", `invalid configuration: ${key} is required`);
  const { devid_cert_path = "", devid_priv_path = "", devid_pub_path = "" } = values;
  const paths = { certPath: devid_cert_path, privPath: devid_priv_path, pubPath: devid_pub_path };
  return { ...accessOf(values), ...paths, devidPassword: values.devid_password };
}

function x509popSource(values: Values<typeof x509pop>, reader: ConfigReader): X509PopSource {
  const { private_key_path: privateKeyPath, certificate_path: certificatePath, intermediates_path: more } = values;
  if (values.spiffe_endpoint_socket !== undefined) return { kind: "socket", socket: values.spiffe_endpoint_socket };
  for (const [key, value] of Object.entries({ private_key_path: privateKeyPath, certificate_path: certificatePath }))
    if (value === undefined) reader.fault("plugins.NodeAttestor.x509pop", `${key} is required`);
  return {
    kind: "files",
    privateKeyPath: privateKeyPath ?? "",
    certificatePath: certificatePath ?? "",
    ...(more === undefined ? {} : { intermediatesPath: more }),
  };
}
