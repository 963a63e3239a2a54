import { join } from "node:path";
import { openDiskKeys } from "../src/keys/disk.ts";
import type { ExportingKeyManager } from "../src/keys/keys.ts";
import { openMemoryKeys } from "../src/keys/memory.ts";
import type { Clock } from "../src/runtime/clock.ts";
import type { Log } from "../src/runtime/log.ts";
import type { SigstoreConfig } from "./config/sigstore.ts";
import type { AgentConfig } from "./config.ts";
import type { NodeAttestor } from "./node/attestor.ts";
import { awsIidAttestor } from "./node/aws-iid.ts";
import { azureImdsAttestor } from "./node/azure-imds.ts";
import { azureMsiAttestor } from "./node/azure-msi.ts";
import { gcpIitAttestor } from "./node/gcp-iit.ts";
import { httpChallengeAttestor } from "./node/http-challenge.ts";
import { joinTokenAttestor } from "./node/join-token.ts";
import { k8sPsatAttestor } from "./node/k8s-psat.ts";
import { sshpopAttestor } from "./node/sshpop.ts";
import { tpmAttestor } from "./node/tpm.ts";
import { tpmDevIdAttestor } from "./node/tpm-devid.ts";
import { x509popAttestor } from "./node/x509pop.ts";
import type { Attestor } from "./workload/attest.ts";
import { DockerAttestor } from "./workload/docker.ts";
import type { ImageVerifier } from "./workload/image-verifier.ts";
import { K8sAttestor } from "./workload/k8s.ts";
import { SystemdAttestor } from "./workload/systemd.ts";
import { UnixAttestor } from "./workload/unix.ts";

/*
 * What can be chosen by name in the configuration. Another key manager or attestor is its file, one row here and its
 * test.
 */

type KeyManagerConfig = AgentConfig["keyManager"];
type KeyManagerOf<T extends KeyManagerConfig["type"]> = Extract<KeyManagerConfig, { readonly type: T }>;

const keyManagers: {
  readonly [T in KeyManagerConfig["type"]]: (config: KeyManagerOf<T>, log: Log) => Promise<ExportingKeyManager>;
} = {
  memory: async () => openMemoryKeys(),
  disk: async ({ directory }, log) => {
    const keys = await openDiskKeys(join(directory, "keys.json"));
    for (const notice of keys.notices) log.warn(notice);
    return keys;
  },
};

export function openKeyManager(config: KeyManagerConfig, log: Log): Promise<ExportingKeyManager> {
  return config.type === "disk" ? keyManagers.disk(config, log) : keyManagers.memory(config, log);
}

type NodeAttestorConfig = AgentConfig["nodeAttestor"];
type NodeAttestorOf<T extends NodeAttestorConfig["type"]> = Extract<NodeAttestorConfig, { readonly type: T }>;

interface NodeAttestorParts {
  readonly config: AgentConfig;
  readonly clock: Clock;
}

const nodeAttestors: {
  readonly [T in NodeAttestorConfig["type"]]: (own: NodeAttestorOf<T>, parts: NodeAttestorParts) => NodeAttestor;
} = {
  join_token: (_, { config }) => joinTokenAttestor(config),
  http_challenge: httpChallengeAttestor,
  k8s_psat: k8sPsatAttestor,
  tpm: tpmAttestor,
  tpm_devid: tpmDevIdAttestor,
  sshpop: sshpopAttestor,
  azure_imds: (own, { clock }) => azureImdsAttestor(own, clock),
  azure_msi: (own, { clock }) => azureMsiAttestor(own, clock),
  gcp_iit: (own, { clock }) => gcpIitAttestor(own, clock),
  aws_iid: (own, { clock }) => awsIidAttestor(own, clock),
  x509pop: ({ source }) => x509popAttestor(source),
};

export function openNodeAttestor(parts: NodeAttestorParts): NodeAttestor {
  return openAttestor(parts.config.nodeAttestor, parts);
}

function openAttestor<T extends NodeAttestorConfig["type"]>(
  own: NodeAttestorOf<T>,
  parts: NodeAttestorParts,
): NodeAttestor {
  return nodeAttestors[own.type as T](own, parts);
}

export interface WorkloadAttestorParts {
  readonly clock: Clock;
  readonly log: Log;
  readonly procRoot: string;
  /** Where they may keep what must outlive a restart. */
  readonly dataDir: string;
  /** The attestors' own life. */
  readonly signal: AbortSignal;
}

type WorkloadAttestorConfig = AgentConfig["workloadAttestors"][number];
type WorkloadAttestors = {
  readonly [T in WorkloadAttestorConfig["type"]]: (
    config: Extract<WorkloadAttestorConfig, { readonly type: T }>,
    parts: WorkloadAttestorParts,
  ) => Attestor;
};

const workloadAttestors: WorkloadAttestors = {
  unix: (config, parts) => new UnixAttestor({ ...config, ...parts }),
  k8s: (config, parts) =>
    new K8sAttestor({ ...config, ...parts, kubelet: config.kubelet, images: imagesOf(config, parts) }),
  systemd: (_config, parts) => new SystemdAttestor(parts),
  docker: (config, parts) => new DockerAttestor({ ...config, ...parts, images: imagesOf(config, parts) }),
};

/** What verifies images is loaded only where it is asked for. */
function imagesOf(
  { sigstore }: { readonly sigstore?: SigstoreConfig },
  parts: WorkloadAttestorParts,
): ImageVerifier | undefined {
  if (sigstore === undefined) return undefined;
  let open: ImageVerifier | undefined;
  const opened = import("./workload/sigstore/open.ts").then(({ openSigstore }) =>
    openSigstore({
      ...{ ...sigstore, ...parts },
      trust: sigstore.trust.type === "file" ? sigstore.trust : { ...sigstore.trust, directory: parts.dataDir },
    }),
  );
  opened.then(
    (verifier) => {
      open = verifier;
    },
    () => undefined,
  );
  return { verify: async (image) => (await opened).verify(image), held: (image) => open?.held(image) };
}

export function openWorkloadAttestors(
  configs: AgentConfig["workloadAttestors"],
  parts: WorkloadAttestorParts,
): readonly Attestor[] {
  return configs.map((config) => openWorkloadAttestor(config, parts));
}

function openWorkloadAttestor<T extends WorkloadAttestorConfig["type"]>(
  config: Extract<WorkloadAttestorConfig, { readonly type: T }>,
  parts: WorkloadAttestorParts,
): Attestor {
  const open: WorkloadAttestors[T] = workloadAttestors[config.type as T];
  return open(config, { ...parts, log: parts.log.child({ plugin_name: config.type }) });
}
