import { join } from "node:path";
import type { VaultConfig } from "../../src/keys/vault-client.ts";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { text } from "../../src/runtime/config-keys.ts";
import { pluginNames } from "../../src/runtime/config-plugins.ts";
import { filePath } from "../../src/runtime/program-config.ts";
import { vaultConfigOf, vaultKeys } from "./vault.ts";

/** Where the authority's private keys live. */
export type KeyManagerConfig =
  | { readonly type: "memory" }
  | { readonly type: "disk"; readonly keysPath: string }
  | {
      readonly type: "pkcs11";
      readonly module: string;
      readonly tokenLabel: string;
      readonly pinPath: string;
      readonly keyPrefix: string;
    }
  | {
      readonly type: "hashicorp_vault";
      readonly vault: VaultConfig;
      readonly mount: string;
      readonly identifier: { readonly value: string } | { readonly file: string };
    };

const diskKeys = { keys_path: filePath({ doc: "The file. SPIRE requires it.", shown: "keys.json in data_dir" }) };

const pkcs11Keys = {
  module_path: filePath({ doc: "The module's shared library. Required.", own: true }),
  token_label: text({ doc: "Label of the token. Required.", own: true }),
  pin_path: filePath({ doc: "A file that holds the user's PIN. Required.", own: true }),
  key_prefix: text({
    doc: "Goes before the labels of keys; servers that share a token need different ones.",
    default: "steeple/",
    own: true,
  }),
};

const transitKeys = {
  ...vaultKeys,
  transit_engine_path: text({ doc: "Where the transit engine is mounted.", default: "transit" }),
  key_identifier_file: filePath({
    doc: "A file with the name that tells this server's keys; made when it is not there.",
  }),
  key_identifier_value: text({ doc: "That name itself." }),
};

/** The `KeyManager` plug-ins. */
export const keyManagerPlugins = {
  disk: { doc: "A file, mode 0600.", keys: diskKeys },
  memory: { doc: "Memory: the authority is gone when the server stops.", keys: {} },
  pkcs11: { doc: "A PKCS#11 token, which keys never leave. Steeple's own.", keys: pkcs11Keys },
  aws_kms: undefined,
  azure_key_vault: undefined,
  gcp_kms: undefined,
  hashicorp_vault: { doc: "The transit engine of HashiCorp Vault or OpenBao.", keys: transitKeys },
} as const;

interface KeyManagerValues {
  readonly disk?: Values<typeof diskKeys> | undefined;
  readonly memory?: object | undefined;
  readonly pkcs11?: Values<typeof pkcs11Keys> | undefined;
  readonly hashicorp_vault?: Values<typeof transitKeys> | undefined;
}

export interface KeyManagerSpot {
  readonly dataDir: string;
  readonly reader: ConfigReader;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Default: disk. Reports what is missing. */
export function keyManagerOf(plugins: KeyManagerValues, spot: KeyManagerSpot): KeyManagerConfig {
  const { disk, memory, pkcs11, hashicorp_vault } = plugins;
  const { dataDir, reader } = spot;
  const names = pluginNames({ ...plugins });
  if (names.length > 1) {
    reader.fault(
      "plugins",
      `plugin type "KeyManager" constraint not satisfied: expected exactly 1 but got ${names.length}`,
    );
  }
  if (pkcs11 !== undefined) {
    const required = (key: "module_path" | "token_label" | "pin_path"): string => {
      const value = pkcs11[key] ?? "";
      if (value === "") reader.fault("plugins.KeyManager.pkcs11", `${key} is required`);
      return value;
    };
    const [module, tokenLabel, pinPath] = [required("module_path"), required("token_label"), required("pin_path")];
    return { type: "pkcs11", module, tokenLabel, pinPath, keyPrefix: pkcs11.key_prefix };
  }
  if (hashicorp_vault !== undefined) return transitOf(hashicorp_vault, spot);
  return memory === undefined
    ? { type: "disk", keysPath: disk?.keys_path ?? join(dataDir, "keys.json") }
    : { type: "memory" };
}

function transitOf(values: Values<typeof transitKeys>, { reader, env }: KeyManagerSpot): KeyManagerConfig {
  const path = "plugins.KeyManager.hashicorp_vault";
  const { key_identifier_file: file = "", key_identifier_value: value = "", transit_engine_path: mount } = values;
  if (file !== "" && value !== "")
    reader.fault(path, "only one of 'key_identifier_file' or 'key_identifier_value' should be provided");
  if (file === "" && value === "")
    reader.fault(path, "one of 'key_identifier_file' or 'key_identifier_value' must be provided");
  const identifier = value === "" ? { file } : { value };
  return { type: "hashicorp_vault", vault: vaultConfigOf(values, { reader, env, path }), mount, identifier };
}
