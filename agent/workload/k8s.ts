import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Selector } from "../../src/spiffe/selector.ts";
import { type Attestor, atOnce, type Remote } from "./attest.ts";
import { type ContainerPlace, isOurNode, readContainer } from "./container.ts";
import { type ImageVerifier, verified } from "./image-verifier.ts";
import { KubeApi } from "./kube-api.ts";
import { type BrokerPolicy, KubernetesReferences } from "./kube-references.ts";
import { KubeWatch } from "./kube-watch.ts";
import { KubeletClient, type KubeletConfig } from "./kubelet.ts";
import { NamespaceLabels, watchNamespaces } from "./namespaces.ts";
import { NodePods, watchedPod } from "./node-pods.ts";
import { PodLists } from "./pod-lists.ts";
import {
  type ContainerStatus,
  containerSelectors,
  type Pod,
  type PodList,
  type PodSource,
  podSelectors,
} from "./pods.ts";
import type { ClusterReferences } from "./references.ts";

export interface K8sAttestorConfig {
  /** Undefined when no kubelet may be asked: then no caller can be attested. */
  readonly kubelet: KubeletConfig | undefined;
  readonly maxPollAttempts: number;
  readonly pollRetryIntervalMs: number;
  readonly disableContainerSelectors: boolean;
  readonly enableNamespaceLabels: boolean;
  readonly verboseContainerLocatorLogs: boolean;
  /** Keeps what the API server is asked for by watches. */
  readonly watches: boolean;
  /** What brokers may point at; undefined when they may not. */
  readonly broker?: BrokerPolicy | undefined;
}

export interface K8sAttestorOptions extends K8sAttestorConfig {
  readonly clock: Clock;
  readonly log: Log;
  /** The attestor's own life. */
  readonly signal: AbortSignal;
  readonly procRoot: string;
  /** The API server. Default: where a pod finds it. */
  readonly api?: KubeApi;
  /** Undefined when images need no signature. */
  readonly images?: ImageVerifier | undefined;
}

/** The list is given this much longer than the waiting for it, so that the reason is said before the deadline. */
const GRACE_MS = 15_000;
/** And this for asking the image's registry. */
const VERIFY_MS = 25_000;

/** A watch is trusted to say what is new for this many intervals; then the kubelet is asked, too. */
const PATIENCE_INTERVALS = 10;

/** Selectors of type `k8s`: pod and container of the caller, as the kubelet of this node knows them. */
export class K8sAttestor implements Attestor {
  readonly name = "k8s";
  readonly timeoutMs: number;
  readonly #options: K8sAttestorOptions;
  readonly #pods: PodSource | undefined;
  readonly #namespaces: NamespaceLabels;
  /** Resolves references of brokers, where they are allowed. */
  readonly references: ClusterReferences | undefined;

  constructor(options: K8sAttestorOptions) {
    this.#options = options;
    const { clock, signal, broker, images } = options;
    const verifyMs = images === undefined ? 0 : VERIFY_MS;
    this.timeoutMs = options.maxPollAttempts * options.pollRetryIntervalMs + GRACE_MS + verifyMs;
    const api = options.api ?? new KubeApi(clock, signal);
    this.#namespaces = this.#openNamespaces(api);
    this.#pods = options.kubelet === undefined ? undefined : this.#openPods(options.kubelet, api);
    if (broker === undefined) return;
    const namespaceLabels = (namespace: string) => this.#namespaceLabels(namespace);
    this.references = new KubernetesReferences({
      ...{ policy: broker, api, clock },
      pods: this.#pods,
      namespaceLabels,
    });
  }

  #openPods(config: KubeletConfig, api: KubeApi): PodSource {
    const { clock, log, signal, watches, pollRetryIntervalMs: intervalMs } = this.#options;
    const client = new KubeletClient(config, clock);
    signal.addEventListener("abort", () => client[Symbol.dispose](), { once: true });
    const kubelet = new PodLists({ fetch: (stop) => client.pods(stop), intervalMs, clock, signal });
    if (!watches || config.nodeName === undefined) return kubelet;
    const fieldSelector = `spec.nodeName=${config.nodeName}`;
    const watch = new KubeWatch({ api, clock, log, path: "/api/v1/pods", fieldSelector, read: watchedPod });
    watch.start(signal);
    return new NodePods({ watch, kubelet, clock, patienceMs: intervalMs * PATIENCE_INTERVALS });
  }

  #openNamespaces(api: KubeApi): NamespaceLabels {
    const { clock, log, signal, watches, enableNamespaceLabels } = this.#options;
    if (!watches || !enableNamespaceLabels) return new NamespaceLabels(api);
    const watch = watchNamespaces({ api, clock, log });
    watch.start(signal);
    return new NamespaceLabels(api, watch);
  }

  /** Nothing for a caller outside of containers. Throws when it is in one that the kubelet does not know. */
  async attest(peer: PeerProcess, signal: AbortSignal, remote: Remote = atOnce): Promise<readonly Selector[]> {
    const { images, enableNamespaceLabels } = this.#options;
    const pods = this.#pods;
    if (pods === undefined) throw new Fault("precondition", "kubelet client is disabled", { code: "kubelet-disabled" });
    const place = await readContainer(peer, this.#options.procRoot);
    const { log, verboseContainerLocatorLogs } = this.#options;
    if (verboseContainerLocatorLogs) log.debug("Container located", { pid: peer.pid, ...logged(place) });
    if (place === undefined || !mayCount(place)) return [];
    const { pod, status } = await remote("kubelet", () => this.#find(pods, place, signal));
    const values = [...podSelectors(pod)];
    if (status !== undefined && !this.#options.disableContainerSelectors) values.push(...containerSelectors(status));
    if (enableNamespaceLabels) values.push(...(await remote("API server", () => this.#namespaceLabels(pod.namespace))));
    if (status !== undefined && images !== undefined) values.push(...(await verified(images, status.imageId, remote)));
    return values.map((value) => ({ type: this.name, value }));
  }

  /** A new pod calls before its kubelet has heard from the runtime, so the kubelet is asked again for a while. */
  async #find(pods: PodSource, place: ContainerPlace, signal: AbortSignal): Promise<Found> {
    const { clock, log, maxPollAttempts, pollRetryIntervalMs } = this.#options;
    const giveUpAt = clock.monotonic() + maxPollAttempts * pollRetryIntervalMs;
    // Without its container a caller has no image whose signature could be looked at.
    const podIsEnough = this.#options.disableContainerSelectors && this.#options.images === undefined;
    const seeker = new Seeker(place, podIsEnough);
    const search = pods.search();
    for (let attempt = 0; ; attempt += 1) {
      const found = await seeker.look(() => search.next(signal));
      if (found !== undefined) return found;
      signal.throwIfAborted();
      if (clock.monotonic() >= giveUpAt) throw seeker.notFound();
      if (attempt === 0) log.debug("Container id not found; will retry after backoff", logged(place));
      if (seeker.isNewFailure) log.warn("Unable to get pod list; will retry after backoff", { error: seeker.failure });
    }
  }

  /** None where they are not wanted. */
  async #namespaceLabels(namespace: string): Promise<readonly string[]> {
    if (!this.#options.enableNamespaceLabels) return [];
    const labels = await this.#namespaces.of(namespace);
    return labels.map(([key, value]) => `ns-label:${key}:${value}`);
  }
}

interface Found {
  readonly pod: Pod;
  /** Absent while the kubelet knows the pod but not yet the container. */
  readonly status: ContainerStatus | undefined;
}

/** One search for a container through one pod list after the other. */
class Seeker {
  failure: string | undefined;
  isNewFailure = false;
  readonly #place: ContainerPlace;
  readonly #podIsEnough: boolean;
  #list: PodList | undefined;

  constructor(place: ContainerPlace, podIsEnough: boolean) {
    this.#place = place;
    this.#podIsEnough = podIsEnough;
  }

  async look(next: () => Promise<PodList>): Promise<Found | undefined> {
    try {
      this.#list = await next();
    } catch (error) {
      const failure = messageOf(error);
      this.isNewFailure = failure !== this.failure;
      this.failure = failure;
      return undefined;
    }
    this.failure = undefined;
    this.isNewFailure = false;
    return this.#match(this.#list);
  }

  /** The pod that the control group names must be the pod that the kubelet knows the container in. */
  #match(list: PodList): Found | undefined {
    const { containerId, podUid } = this.#place;
    const known = list.containers.get(containerId) ?? [];
    const found = podUid === undefined ? known : known.filter(({ pod }) => pod.uid === podUid);
    if (found.length > 1)
      throw new Fault("internal", "two pods found with same container Id", { code: "container-ambiguous" });
    if (found[0] !== undefined) return found[0];
    const pod = podUid === undefined || !this.#podIsEnough ? undefined : list.pods.get(podUid);
    return pod === undefined ? undefined : { pod, status: undefined };
  }

  notFound(): Fault {
    if (this.failure !== undefined) return new Fault("unavailable", this.failure, { code: "kubelet-unavailable" });
    return new Fault("timeout", `no selectors found after max poll attempts: ${this.#reason()}`, {
      code: "container-unknown",
      hint: "see whether the pod belongs to the node whose kubelet this agent asks",
    });
  }

  #reason(): string {
    const { containerId, podUid } = this.#place;
    const source = this.#list?.source ?? "the kubelet";
    const pod = podUid === undefined ? undefined : this.#list?.pods.get(podUid);
    if (pod !== undefined)
      return `${source} knows the pod ${pod.namespace}/${pod.name}, but no container ${containerId} in it yet`;
    if (podUid !== undefined) return `${source} knows no pod ${podUid}`;
    return `${source} knows no container ${containerId}`;
  }
}

/**
 * Whoever can name groups at will is believed only by a program of his own; and a container names those of its pods at
 * will unless it is the node that we run on.
 */
function mayCount({ user, chain, containerId }: ContainerPlace): boolean {
  const around = chain.slice(0, chain.indexOf(containerId));
  return (user === undefined || user === process.geteuid?.()) && around.every(isOurNode);
}

function logged(place: ContainerPlace | undefined): { readonly pod_uid?: string; readonly container_id?: string } {
  if (place === undefined) return {};
  return { container_id: place.containerId, ...(place.podUid === undefined ? {} : { pod_uid: place.podUid }) };
}
