import { join } from "node:path";
import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { text } from "../../src/runtime/config-keys.ts";
import { pluginNames } from "../../src/runtime/config-plugins.ts";
import { filePath } from "../../src/runtime/program-config.ts";

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

/** The `KeyManager` plug-ins. */
export const keyManagerPlugins = {
  disk: { doc: "A file, mode 0600.", keys: diskKeys },
  memory: { doc: "Memory: the authority is gone when the server stops.", keys: {} },
  pkcs11: { doc: "A PKCS#11 token, which keys never leave. Steeple's own.", keys: pkcs11Keys },
  aws_kms: undefined,
  azure_key_vault: undefined,
  gcp_kms: undefined,
  hashicorp_vault: undefined,
} as const;

interface KeyManagerValues {
  readonly disk?: Values<typeof diskKeys> | undefined;
  readonly memory?: object | undefined;
  readonly pkcs11?: Values<typeof pkcs11Keys> | undefined;
}

/** Default: disk. Reports what is missing. */
export function keyManagerOf(plugins: KeyManagerValues, dataDir: string, reader: ConfigReader): KeyManagerConfig {
  const { disk, memory, pkcs11 } = plugins;
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
  return memory === undefined
    ? { type: "disk", keysPath: disk?.keys_path ?? join(dataDir, "keys.json") }
    : { type: "memory" };
}
