import type { VaultConfig } from "../../src/keys/vault-client.ts";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { block, ignored, text, unsupported } from "../../src/runtime/config-keys.ts";
import { pluginNames } from "../../src/runtime/config-plugins.ts";
import { filePath, socketPath } from "../../src/runtime/program-config.ts";
import { type VaultSpot, vaultConfigOf, vaultKeys } from "./vault.ts";

/** Who signs the CA certificate. */
export type UpstreamAuthorityConfig =
  | { readonly type: "disk"; readonly certPath: string; readonly keyPath: string; readonly bundlePath?: string }
  | { readonly type: "spire"; readonly address: string; readonly port: number; readonly workloadApiSocket: string }
  | { readonly type: "vault"; readonly vault: VaultConfig; readonly mount: string };

const diskKeys = {
  cert_file_path: filePath({ doc: "The signing certificate and those above it, in PEM. Required." }),
  key_file_path: filePath({ doc: "Its private key, in PEM. Required." }),
  bundle_file_path: filePath({ doc: "The roots, in PEM; needed unless the certificate is self-signed." }),
  ttl: ignored("Old key; ca_ttl counts."),
};

const spireKeys = {
  server_address: text({ doc: "Host name or IP address of the upstream server. Required." }),
  server_port: text({ doc: "Its port. Required." }),
  workload_api_socket: socketPath({
    doc: "Workload API of the agent that identifies this server.",
    default: "/tmp/spire-agent/public/api.sock",
  }),
  experimental: block("Options that SPIRE counts as experimental.", {
    workload_api_named_pipe_name: unsupported("Named pipe of the Workload API on Windows."),
    require_pq_kem: unsupported("Post-quantum hybrid key exchange only."),
  }),
};

const pkiKeys = {
  ...vaultKeys,
  pki_mount_point: text({ doc: "Where the PKI engine is mounted.", default: "pki" }),
};

/** The `UpstreamAuthority` plug-ins. */
export const upstreamAuthorityPlugins = {
  aws_pca: undefined,
  awssecret: undefined,
  "cert-manager": undefined,
  disk: { doc: "A CA in files, read anew for every certificate.", keys: diskKeys },
  ejbca: undefined,
  gcp_cas: undefined,
  spire: { doc: "A SPIRE or Steeple server above this one.", keys: spireKeys },
  vault: { doc: "The PKI engine of HashiCorp Vault or OpenBao.", keys: pkiKeys },
} as const;

interface UpstreamValues {
  readonly disk?: Values<typeof diskKeys> | undefined;
  readonly spire?: Values<typeof spireKeys> | undefined;
  readonly vault?: Values<typeof pkiKeys> | undefined;
}

const PATH = "plugins.UpstreamAuthority";

/** Undefined for none. Reports what is missing. */
export function upstreamAuthorityOf(
  plugins: UpstreamValues,
  { reader, env }: Pick<VaultSpot, "reader" | "env">,
): UpstreamAuthorityConfig | undefined {
  const names = pluginNames({ ...plugins });
  if (names.length > 1)
    reader.fault(
      "plugins",
      `plugin type "UpstreamAuthority" constraint not satisfied: expected at most 1 but got ${names.length}`,
    );
  const { disk, spire, vault } = plugins;
  if (disk !== undefined) {
    const { cert_file_path: certPath = "", key_file_path: keyPath = "", bundle_file_path: bundlePath } = disk;
    if (certPath === "" || keyPath === "")
      reader.fault(`${PATH}.disk`, "'cert_file_path' and 'key_file_path' must be set and not empty");
    return { type: "disk", certPath, keyPath, ...(bundlePath === undefined ? {} : { bundlePath }) };
  }
  if (vault !== undefined) {
    const config = vaultConfigOf(vault, { reader, env, path: `${PATH}.vault` });
    return { type: "vault", vault: config, mount: vault.pki_mount_point };
  }
  if (spire === undefined) return undefined;
  const address = required(reader, "spire", "server_address", spire.server_address);
  const port = Number(required(reader, "spire", "server_port", spire.server_port));
  if (!Number.isInteger(port) || port < 1 || port > 65_535)
    reader.fault(`${PATH}.spire`, `server_port ${JSON.stringify(spire.server_port)} is not a port`);
  return { type: "spire", address, port, workloadApiSocket: spire.workload_api_socket };
}

function required(reader: ConfigReader, plugin: string, key: string, value: string | undefined): string {
  if (value === undefined || value === "") reader.fault(`${PATH}.${plugin}`, `${key} is required`);
  return value ?? "";
}
