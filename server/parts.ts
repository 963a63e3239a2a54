import { openDiskKeys } from "../src/keys/disk.ts";
import type { KeyManager } from "../src/keys/keys.ts";
import { openMemoryKeys } from "../src/keys/memory.ts";
import type { Log } from "../src/runtime/log.ts";
import type { NodeAttestor } from "./attest/attestor.ts";
import { JoinTokenAttestor, type JoinTokenOptions } from "./attest/join-token.ts";
import type { ServerConfig } from "./config.ts";

/*
 * What can be chosen by name in the configuration. Another key manager or attestor is its file, one row here and its
 * test.
 */

type KeyManagerConfig = ServerConfig["keyManager"];
type ConfigOf<T extends KeyManagerConfig["type"]> = Extract<KeyManagerConfig, { readonly type: T }>;

const keyManagers: {
  readonly [T in KeyManagerConfig["type"]]: (config: ConfigOf<T>, log: Log) => Promise<KeyManager>;
} = {
  memory: async () => openMemoryKeys(),
  disk: async ({ keysPath }, log) => {
    const keys = await openDiskKeys(keysPath);
    for (const notice of keys.notices) log.warn(notice);
    return keys;
  },
};

export function openKeyManager(config: KeyManagerConfig, log: Log): Promise<KeyManager> {
  return config.type === "disk" ? keyManagers.disk(config, log) : keyManagers.memory(config, log);
}

type NodeAttestorType = ServerConfig["nodeAttestors"][number]["type"];
export type NodeAttestorParts = JoinTokenOptions;

const nodeAttestors: { readonly [T in NodeAttestorType]: (parts: NodeAttestorParts) => NodeAttestor } = {
  join_token: (parts) => new JoinTokenAttestor(parts),
};

/** Those of the configuration, and join tokens always: only an administrator can make one. */
export function openNodeAttestors(
  config: ServerConfig["nodeAttestors"],
  parts: NodeAttestorParts,
): readonly NodeAttestor[] {
  const types = new Set<NodeAttestorType>(["join_token", ...config.map(({ type }) => type)]);
  return [...types].map((type) => nodeAttestors[type](parts));
}
