import type { VaultAuth, VaultConfig } from "../../src/keys/vault-client.ts";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { block, flag, text } from "../../src/runtime/config-keys.ts";
import { filePath } from "../../src/runtime/program-config.ts";

/** Keys that the plug-ins for HashiCorp Vault and OpenBao share. */
export const vaultKeys = {
  vault_addr: text({ doc: "URL of the server.", shown: "$VAULT_ADDR" }),
  namespace: text({ doc: "Namespace.", shown: "$VAULT_NAMESPACE" }),
  ca_cert_path: filePath({ doc: "CA certificates that the server's is checked with.", shown: "$VAULT_CACERT" }),
  insecure_skip_verify: flag({ doc: "Takes any certificate of the server; for tests.", default: false }),
  token_auth: block("A token.", { token: text({ doc: "The token.", shown: "$VAULT_TOKEN" }) }),
  cert_auth: block("A client certificate.", {
    cert_auth_mount_point: text({ doc: "Where the method is mounted.", default: "cert" }),
    cert_auth_role_name: text({ doc: "Name of the role." }),
    client_cert_path: filePath({ doc: "The certificate.", shown: "$VAULT_CLIENT_CERT" }),
    client_key_path: filePath({ doc: "Its private key.", shown: "$VAULT_CLIENT_KEY" }),
  }),
  approle_auth: block("An AppRole.", {
    approle_auth_mount_point: text({ doc: "Where the method is mounted.", default: "approle" }),
    approle_id: text({ doc: "The role ID.", shown: "$VAULT_APPROLE_ID" }),
    approle_secret_id: text({ doc: "The secret ID.", shown: "$VAULT_APPROLE_SECRET_ID" }),
  }),
  k8s_auth: block("A Kubernetes service account.", {
    k8s_auth_mount_point: text({ doc: "Where the method is mounted.", default: "kubernetes" }),
    k8s_auth_role_name: text({ doc: "Name of the role. Required." }),
    token_path: filePath({
      doc: "The service account's token.",
      default: "/var/run/secrets/kubernetes.io/serviceaccount/token",
    }),
  }),
};

export interface VaultSpot {
  readonly reader: ConfigReader;
  /** Of the plug-in, such as `plugins.UpstreamAuthority.vault`. */
  readonly path: string;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Reports what is missing, and more than one way to log in. */
export function vaultConfigOf(values: Values<typeof vaultKeys>, spot: VaultSpot): VaultConfig {
  const { env, reader, path } = spot;
  const address = values.vault_addr ?? env["VAULT_ADDR"] ?? "";
  if (!URL.canParse(address)) reader.fault(path, "vault_addr is required, as a URL");
  const namespace = values.namespace ?? env["VAULT_NAMESPACE"];
  const caCertPath = values.ca_cert_path ?? env["VAULT_CACERT"];
  return {
    address,
    ...(namespace === undefined ? {} : { namespace }),
    ...(caCertPath === undefined ? {} : { caCertPath }),
    insecureSkipVerify: values.insecure_skip_verify,
    auth: authOf(values, spot),
  };
}

function authOf(values: Values<typeof vaultKeys>, { env, reader, path }: VaultSpot): VaultAuth {
  const methods = ["token_auth", "cert_auth", "approle_auth", "k8s_auth"].filter((name) =>
    reader.isSet(`${path}.${name}`),
  );
  if (methods.length !== 1)
    reader.fault(path, "exactly one of token_auth, cert_auth, approle_auth and k8s_auth has to be configured");
  const required = (value: string | undefined, name: string): string => {
    if (value === undefined || value === "") reader.fault(path, `${name} is required`);
    return value ?? "";
  };
  const { token_auth, cert_auth, approle_auth, k8s_auth } = values;
  switch (methods[0]) {
    case "cert_auth": {
      const certPath = required(cert_auth.client_cert_path ?? env["VAULT_CLIENT_CERT"], "client_cert_path");
      const keyPath = required(cert_auth.client_key_path ?? env["VAULT_CLIENT_KEY"], "client_key_path");
      const { cert_auth_mount_point: mount, cert_auth_role_name: role } = cert_auth;
      return { method: "cert", mount, certPath, keyPath, ...(role === undefined ? {} : { role }) };
    }
    case "approle_auth": {
      const roleId = required(approle_auth.approle_id ?? env["VAULT_APPROLE_ID"], "approle_id");
      const secretId = required(approle_auth.approle_secret_id ?? env["VAULT_APPROLE_SECRET_ID"], "approle_secret_id");
      return { method: "approle", mount: approle_auth.approle_auth_mount_point, roleId, secretId };
    }
    case "k8s_auth": {
      const role = required(k8s_auth.k8s_auth_role_name, "k8s_auth_role_name");
      return { method: "k8s", mount: k8s_auth.k8s_auth_mount_point, role, tokenPath: k8s_auth.token_path };
    }
    default:
      return { method: "token", token: required(token_auth.token ?? env["VAULT_TOKEN"], "token") };
  }
}
