import { randomBytes, randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { K8sAttestor, type K8sAttestorOptions } from "../../agent/workload/k8s.ts";
import { KubeApi } from "../../agent/workload/kube-api.ts";
import type { KubeletConfig } from "../../agent/workload/kubelet.ts";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { KubeApiServer } from "./kube-apiserver.ts";
import { Kubelet, type KubePod, podJson } from "./kubelet.ts";
import { ProcRoot } from "./proc-root.ts";
import { RecordingLog } from "./recording-log.ts";
import { temporaryDirectory } from "./workload.ts";

export const AGENT = "system:serviceaccount:spire:spire-agent";

export interface RunningPod {
  readonly pod: KubePod;
  /** Of its container. */
  readonly id: string;
  /** Somebody inside. */
  readonly peer: PeerProcess;
}

/** A node of a cluster, and attestors of agents on it, which may ask its kubelet. */
export class K8sNode implements AsyncDisposable {
  readonly apiserver: KubeApiServer;
  readonly kubelet: Kubelet;
  readonly proc: ProcRoot;
  readonly folder: string;
  readonly signal: AbortSignal;
  readonly #scope: AsyncDisposableStack;

  private constructor(
    parts: Pick<K8sNode, "apiserver" | "kubelet" | "proc" | "folder" | "signal">,
    scope: AsyncDisposableStack,
  ) {
    this.apiserver = parts.apiserver;
    this.kubelet = parts.kubelet;
    this.proc = parts.proc;
    this.folder = parts.folder;
    this.signal = parts.signal;
    this.#scope = scope;
  }

  /** The kubelet's certificate names `nodeName`. */
  static async open(nodeName = "node-1"): Promise<K8sNode> {
    const scope = new AsyncDisposableStack();
    const apiserver = scope.use(await KubeApiServer.open());
    const kubelet = scope.use(await Kubelet.open(apiserver, { nodeName, anonymous: true }));
    const proc = scope.use(await ProcRoot.open());
    const { path: folder } = scope.use(await temporaryDirectory());
    const stop = new AbortController();
    scope.defer(() => stop.abort());
    apiserver.rules.push({ user: AGENT, verb: "get", resource: "nodes", subresource: "pods" });
    const node = new K8sNode({ apiserver, kubelet, proc, folder, signal: stop.signal }, scope);
    await node.file("ca.crt", apiserver.ca.pem);
    await node.file("token", apiserver.token("spire", "spire-agent"));
    return node;
  }

  async file(name: string, content: string): Promise<string> {
    const path = join(this.folder, name);
    await writeFile(path, content);
    return path;
  }

  kubeletConfig(config: Partial<KubeletConfig> = {}): KubeletConfig {
    return {
      port: this.kubelet.port,
      secure: true,
      caPath: join(this.folder, "ca.crt"),
      credentials: { type: "token", path: join(this.folder, "token") },
      nodeName: undefined,
      reloadIntervalMs: 60_000,
      ...config,
    };
  }

  api(signal = this.signal): KubeApi {
    return new KubeApi(systemClock, signal, { host: "127.0.0.1", port: this.apiserver.port, directory: this.folder });
  }

  attestor(options: Partial<K8sAttestorOptions> = {}): K8sAttestor {
    return new K8sAttestor({
      ...{ kubelet: this.kubeletConfig(), maxPollAttempts: 60, pollRetryIntervalMs: 500, clock: systemClock },
      ...{ disableContainerSelectors: false, enableNamespaceLabels: false, verboseContainerLocatorLogs: false },
      ...{ log: new RecordingLog(), signal: this.signal, procRoot: this.proc.path, watches: false },
      ...options,
    });
  }

  /** Sorted. */
  async valuesOf(attestor: K8sAttestor, peer: PeerProcess): Promise<readonly string[]> {
    const selectors = await attestor.attest(peer, this.signal);
    const wrong = selectors.find(({ type }) => type !== "k8s");
    if (wrong !== undefined) throw new Error(`a selector of type ${wrong.type}`);
    return selectors.map(({ value }) => value).sort();
  }

  /** A pod of one container, which nobody knows yet, and a caller inside. */
  async pod(pod: Partial<KubePod> = {}): Promise<RunningPod> {
    const id = containerId();
    const uid = randomUUID();
    const containers = [{ name: "web", image: "nginx:1", containerID: `containerd://${id}` }];
    const full = { uid, name: `web-${uid}`, containers, ...pod };
    return { pod: full, id, peer: await this.proc.caller(`0::/kubepods/burstable/pod${full.uid}/${id}`) };
  }

  /** The same, which the kubelet knows. */
  async running(pod: Partial<KubePod> = {}): Promise<RunningPod> {
    const made = await this.pod(pod);
    this.kubelet.set(made.pod);
    return made;
  }

  /** Lets the API server know of a pod. */
  publish(pod: KubePod, nodeName = this.kubelet.nodeName): void {
    this.apiserver.pods.set(keyOf(pod), { uid: pod.uid, object: podJson(pod, nodeName) });
  }

  unpublish(pod: KubePod): void {
    this.apiserver.pods.delete(keyOf(pod));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#scope.disposeAsync();
  }
}

export function containerId(): string {
  return randomBytes(32).toString("hex");
}

function keyOf({ namespace = "default", name }: KubePod): string {
  return `${namespace}/${name}`;
}
