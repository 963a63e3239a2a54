import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { openDiskKeys } from "../src/keys/disk.ts";
import type { KeyManager } from "../src/keys/keys.ts";
import { openMemoryKeys } from "../src/keys/memory.ts";
import { openPkcs11Keys } from "../src/keys/pkcs11.ts";
import { openVaultKeys } from "../src/keys/vault.ts";
import type { Clock } from "../src/runtime/clock.ts";
import { writePrivateFile } from "../src/runtime/files.ts";
import type { Log } from "../src/runtime/log.ts";
import type { NodeAttestor } from "./attest/attestor.ts";
import { AwsIidAttestor } from "./attest/aws-iid.ts";
import { AzureImdsAttestor } from "./attest/azure-imds.ts";
import { AzureMsiAttestor } from "./attest/azure-msi.ts";
import { GcpIitAttestor } from "./attest/gcp-iit.ts";
import { HttpChallengeAttestor } from "./attest/http-challenge.ts";
import { JoinTokenAttestor, type JoinTokenOptions } from "./attest/join-token.ts";
import { K8sPsatAttestor } from "./attest/k8s-psat.ts";
import { SshPopAttestor } from "./attest/sshpop.ts";
import { TpmAttestor } from "./attest/tpm.ts";
import { TpmDevIdAttestor } from "./attest/tpm-devid.ts";
import { X509PopAttestor, type X509PopOptions } from "./attest/x509pop.ts";
import { openDiskUpstream } from "./ca/upstream/disk.ts";
import { openSpireUpstream, type SpireUpstreamOptions } from "./ca/upstream/spire.ts";
import { openVaultUpstream } from "./ca/upstream/vault.ts";
import type { UpstreamAuthority } from "./ca/upstream.ts";
import type { ServerConfig } from "./config.ts";

/*
 * What can be chosen by name in the configuration. Another key manager or attestor is its file, one row here and its
 * test.
 */

type KeyManagerConfig = ServerConfig["keyManager"];
type ConfigOf<T extends KeyManagerConfig["type"]> = Extract<KeyManagerConfig, { readonly type: T }>;

const keyManagers: {
  readonly [T in KeyManagerConfig["type"]]: (config: ConfigOf<T>, log: Log, clock: Clock) => Promise<KeyManager>;
} = {
  memory: async () => openMemoryKeys(),
  disk: async ({ keysPath }, log) => {
    const keys = await openDiskKeys(keysPath);
    for (const notice of keys.notices) log.warn(notice);
    return keys;
  },
  hashicorp_vault: async ({ vault, mount, identifier }, _, clock) => {
    const serverId = "value" in identifier ? identifier.value : await identifierIn(identifier.file);
    return openVaultKeys({ vault, mount, serverId, clock });
  },
  pkcs11: async ({ pinPath, ...token }) => openPkcs11Keys({ ...token, pin: (await readFile(pinPath, "utf8")).trim() }),
};

export function openKeyManager<T extends KeyManagerConfig["type"]>(
  config: ConfigOf<T>,
  { log, clock }: { readonly log: Log; readonly clock: Clock },
): Promise<KeyManager> {
  const open = keyManagers[config.type as T];
  return open(config, log, clock);
}

/** The name in the file, made when there is none: as SPIRE has it. */
async function identifierIn(file: string): Promise<string> {
  const held = await readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT") throw error;
    return "";
  });
  if (held.trim() !== "") return held.trim();
  const made = randomUUID();
  await writePrivateFile(file, made);
  return made;
}

type UpstreamConfig = NonNullable<ServerConfig["upstreamAuthority"]>;
type UpstreamOf<T extends UpstreamConfig["type"]> = Extract<UpstreamConfig, { readonly type: T }>;
type UpstreamParts = Pick<SpireUpstreamOptions, "trustDomain" | "clock" | "log" | "signal">;

const upstreamAuthorities: {
  readonly [T in UpstreamConfig["type"]]: (
    config: UpstreamOf<T>,
    parts: UpstreamParts,
  ) => UpstreamAuthority | Promise<UpstreamAuthority>;
} = {
  disk: ({ bundlePath, ...paths }, parts) => openDiskUpstream({ ...paths, bundlePath, ...parts }),
  spire: (config, parts) => openSpireUpstream({ ...config, ...parts }),
  vault: (config, { clock }) => openVaultUpstream({ ...config, clock }),
};

/** Undefined for none. Throws `invalid` when what it needs to sign can't be read. */
export async function openUpstreamAuthority<T extends UpstreamConfig["type"]>(
  config: UpstreamOf<T> | undefined,
  parts: UpstreamParts,
): Promise<UpstreamAuthority | undefined> {
  if (config === undefined) return undefined;
  const open = upstreamAuthorities[config.type as T];
  return open(config, parts);
}

type NodeAttestorConfig = ServerConfig["nodeAttestors"][number];
type NodeAttestorOf<T extends NodeAttestorConfig["type"]> = Extract<NodeAttestorConfig, { readonly type: T }>;
export type NodeAttestorParts = JoinTokenOptions & Pick<X509PopOptions, "ownAuthorities" | "log">;

const nodeAttestors: {
  readonly [T in NodeAttestorConfig["type"]]: (
    config: NodeAttestorOf<T>,
    parts: NodeAttestorParts,
  ) => NodeAttestor | Promise<NodeAttestor>;
} = {
  join_token: (_, parts) => new JoinTokenAttestor(parts),
  http_challenge: (config, parts) => new HttpChallengeAttestor({ ...config, ...parts }),
  k8s_psat: (config, parts) => new K8sPsatAttestor({ ...config, ...parts }),
  tpm: (config, parts) => new TpmAttestor({ ...config, ...parts }),
  tpm_devid: (config, parts) => TpmDevIdAttestor.open({ ...config, ...parts }),
  sshpop: (config, parts) => SshPopAttestor.open({ ...config, ...parts }),
  azure_imds: (config, parts) => AzureImdsAttestor.open({ ...config, ...parts }),
  azure_msi: (config, parts) => new AzureMsiAttestor({ ...config, ...parts }),
  gcp_iit: (config, parts) => new GcpIitAttestor({ ...config, ...parts }),
  aws_iid: (config, parts) => AwsIidAttestor.open({ ...config, ...parts }),
  x509pop: (config, parts) => X509PopAttestor.open({ ...config, ...parts }),
};

/** Those of the configuration. Throws `invalid` when what one needs to judge can't be read. */
export function openNodeAttestors(
  configs: ServerConfig["nodeAttestors"],
  parts: NodeAttestorParts,
): Promise<readonly NodeAttestor[]> {
  return Promise.all(configs.map((config) => openNodeAttestor(config, parts)));
}

function openNodeAttestor<T extends NodeAttestorConfig["type"]>(config: NodeAttestorOf<T>, parts: NodeAttestorParts) {
  const open = nodeAttestors[config.type as T];
  return open(config, { ...parts, log: parts.log.child({ node_attestor_type: config.type }) });
}
