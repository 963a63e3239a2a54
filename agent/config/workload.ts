import type { ConfigReader, Values } from "../../src/runtime/config.ts";
import { flag, integer } from "../../src/runtime/config-keys.ts";
import { docker, dockerConfig } from "./docker.ts";
import { k8s, k8sConfig } from "./k8s.ts";

const unix = {
  doc: "User, groups and program of the calling process.",
  keys: {
    discover_workload_path: flag({
      doc: "Adds the program's path, unless an ordinary user's namespaces made it up, and, unless the limit forbids, its SHA-256.",
      default: false,
    }),
    workload_size_limit: integer(
      -1,
      Number.MAX_SAFE_INTEGER,
    )({ doc: "Largest program that is hashed, in bytes; 0 is no limit, -1 hashes none.", default: 0 }),
  },
};

const systemd = { doc: "The systemd unit of the calling process, by D-Bus.", keys: {} };

/** Every workload attestor of SPIRE's; undefined for those that are not built. */
export const workloadAttestors = {
  unix,
  k8s,
  docker,
  slurm: undefined,
  systemd,
  windows: undefined,
};

type Enabled = {
  readonly unix?: Values<typeof unix.keys>;
  readonly k8s?: Values<typeof k8s.keys>;
  readonly docker?: Values<typeof docker.keys>;
  readonly systemd?: Values<typeof systemd.keys>;
};

export type WorkloadAttestorConfig =
  | ReturnType<typeof unixConfig>
  | ReturnType<typeof k8sConfig>
  | ReturnType<typeof dockerConfig>
  | { readonly type: "systemd" };

/** The configured attestors; `unix` alone when none is. */
export function workloadAttestorConfigs(
  enabled: Enabled,
  reader: ConfigReader,
  env: NodeJS.ProcessEnv,
): readonly WorkloadAttestorConfig[] {
  const found = [
    ...(enabled.unix === undefined ? [] : [unixConfig(enabled.unix)]),
    ...(enabled.k8s === undefined ? [] : [k8sConfig(enabled.k8s, reader, env)]),
    ...(enabled.docker === undefined ? [] : [dockerConfig(enabled.docker, reader)]),
    ...(enabled.systemd === undefined ? [] : [{ type: "systemd" as const }]),
  ];
  return found.length > 0 ? found : [{ type: "unix", discoverWorkloadPath: false, workloadSizeLimit: 0 }];
}

function unixConfig(values: Values<typeof unix.keys>) {
  return {
    type: "unix" as const,
    discoverWorkloadPath: values.discover_workload_path,
    workloadSizeLimit: values.workload_size_limit,
  };
}
