import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import { type Selector, selectorSet } from "../../src/spiffe/selector.ts";
import type { KubeApi } from "./kube-api.ts";
import { KubeObjects, type ObjectName, objectSelectors, onlyOne, PODS, type Resource } from "./kube-objects.ts";
import { type Pod, type PodList, type PodSource, podOf, podSelectors } from "./pods.ts";
import {
  type Asking,
  type ClusterReferences,
  type KubernetesObject,
  OBJECT_ACCESS_DENIED,
  type ReferencedWorkload,
} from "./references.ts";

export interface BrokerPolicy {
  /** Whether the API server is asked if a broker may have an object. */
  readonly enforced: boolean;
  readonly brokers: ReadonlyMap<SpiffeId, "agent_node" | "cluster">;
}

interface KubernetesReferencesOptions {
  readonly policy: BrokerPolicy;
  readonly api: KubeApi;
  readonly clock: Clock;
  /** Undefined when no kubelet may be asked. */
  readonly pods: PodSource | undefined;
  /** Values of the selectors of a namespace. */
  readonly namespaceLabels: (namespace: string) => Promise<readonly string[]>;
}

/** An object that was there when it was looked for. */
interface Found extends ObjectName {
  readonly resource: Pick<Resource, "plural" | "group">;
  readonly values: readonly string[];
  /** Throws `not_found` when it is not there any more. */
  readonly look: (signal: AbortSignal) => Promise<unknown>;
  readonly everyMs: number;
}

const VERB = "impersonate-via-spire";
const REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/** The kubelet is near, and all who ask it share its answer; the API server is neither. */
const KUBELET_EVERY_MS = 1_000;
const API_SERVER_EVERY_MS = 3_000;

/** References of brokers to objects of the cluster: pods by this node's kubelet, everything else by the API server. */
export class KubernetesReferences implements ClusterReferences {
  readonly attestor = "k8s";
  readonly #options: KubernetesReferencesOptions;
  readonly #objects: KubeObjects;

  constructor(options: KubernetesReferencesOptions) {
    this.#options = options;
    this.#objects = new KubeObjects(options.api, options.clock);
  }

  async open(object: KubernetesObject, { broker, signal }: Asking): Promise<ReferencedWorkload> {
    const scope = this.#scopeOf(broker);
    const isPod = object.plural === PODS.plural && object.group === PODS.group;
    const found = isPod ? await this.#pod(object, scope, signal) : await this.#object(object, signal);
    await this.#review(found, { broker, signal });
    const labels = found.namespace === "" ? [] : await this.#options.namespaceLabels(found.namespace);
    const selectors = selectorSet([...found.values, ...labels].map((value) => ({ type: "k8s", value })));
    const life = new AbortController();
    return {
      selectors,
      verify: async () => void (await found.look(life.signal)),
      ended: (until) => this.#untilGone(found, until),
      [Symbol.dispose]: () => life.abort(),
    };
  }

  async authorize(selectors: readonly Selector[], asking: Asking): Promise<void> {
    const after = (prefix: string): string | undefined =>
      selectors.find(({ type, value }) => type === "k8s" && value.startsWith(prefix))?.value.slice(prefix.length);
    const [namespace, name] = [after("ns:"), after("pod-name:")];
    if (namespace === undefined || name === undefined) return;
    this.#scopeOf(asking.broker);
    await this.#review({ resource: PODS, namespace, name }, asking);
  }

  #scopeOf(broker: SpiffeId): "agent_node" | "cluster" {
    const scope = this.#options.policy.brokers.get(broker);
    if (scope !== undefined) return scope;
    throw new Fault("denied", `broker "${broker}" may not refer to objects of the cluster`, {
      code: OBJECT_ACCESS_DENIED,
      hint: "name it in experimental.broker.brokers of the agent's k8s workload attestor",
    });
  }

  async #review({ resource, namespace, name }: Pick<Found, "resource" | keyof ObjectName>, { broker, signal }: Asking) {
    if (!this.#options.policy.enforced) return;
    const { plural, group } = resource;
    const attributes = { verb: VERB, group: group === PODS.group ? "" : group, resource: plural, namespace, name };
    const body = {
      ...{ apiVersion: "authorization.k8s.io/v1", kind: "SubjectAccessReview" },
      spec: { user: broker, resourceAttributes: attributes },
    };
    const { status } = await this.#options.api.ask({ path: REVIEWS, body, signal }).catch(unanswered);
    if ((status as { readonly allowed?: unknown } | undefined)?.allowed === true) return;
    throw new Fault("denied", `the cluster does not let broker "${broker}" use ${VERB} for the referenced object`, {
      code: OBJECT_ACCESS_DENIED,
      hint: `let the user "${broker}" "${VERB}" the resource "${plural}" by a role of the cluster`,
    });
  }

  async #pod(object: KubernetesObject, scope: "agent_node" | "cluster", signal: AbortSignal): Promise<Found> {
    if (object.key?.namespace === "") throw new Fault("invalid", "a pod is named with its namespace");
    if (scope === "agent_node") return this.#localPod(object, signal);
    try {
      return await this.#localPod(object, signal);
    } catch {
      signal.throwIfAborted();
      return this.#distantPod(object, signal);
    }
  }

  async #localPod(object: KubernetesObject, signal: AbortSignal): Promise<Found> {
    const { pods } = this.#options;
    if (pods === undefined) throw new Fault("precondition", "kubelet client is disabled", { code: "kubelet-disabled" });
    const pod = await inFirstLists(pods, (list) => podIn(list, object), signal);
    if (pod === undefined) throw new Fault("not_found", "the kubelet of this node knows no such pod");
    const { uid, namespace, name } = pod;
    const look = async (stop: AbortSignal): Promise<void> => {
      if ((await inFirstLists(pods, (list) => list.pods.get(uid), stop)) === undefined)
        throw new Fault("not_found", "the pod is gone");
    };
    return { resource: PODS, namespace, name, values: podSelectors(pod), look, everyMs: KUBELET_EVERY_MS };
  }

  async #distantPod(object: KubernetesObject, signal: AbortSignal): Promise<Found> {
    const { namespace, name, uid } = await this.#objects.find(PODS, object, signal);
    const get = async (stop: AbortSignal): Promise<Pod> => {
      const pod = podOf(await this.#objects.get(PODS, { namespace, name }, { signal: stop }));
      if (pod.uid.toLowerCase() !== uid) throw new Fault("not_found", "another pod has this name now");
      return pod;
    };
    const values = podSelectors(await get(signal));
    return { resource: PODS, namespace, name, values, look: get, everyMs: API_SERVER_EVERY_MS };
  }

  async #object(object: KubernetesObject, signal: AbortSignal): Promise<Found> {
    const resource = await this.#objects.resource(object, signal);
    if (object.key !== undefined && resource.namespaced !== (object.key.namespace !== ""))
      throw new Fault("invalid", resource.namespaced ? "the namespace is missing" : "this type has no namespaces");
    const { namespace, name, uid, ...rest } = await this.#objects.find(resource, object, signal);
    const pinned = { ...object, key: { namespace, name }, uid };
    const look = (stop: AbortSignal): Promise<unknown> => this.#objects.find(resource, pinned, stop);
    const values = objectSelectors(resource, { namespace, name, uid, ...rest });
    return { resource, namespace, name, values, look, everyMs: API_SERVER_EVERY_MS };
  }

  /** Who cannot be asked has not said that it is gone. */
  async #untilGone({ look, everyMs }: Found, signal: AbortSignal): Promise<unknown> {
    for (;;) {
      await this.#options.clock.sleep(everyMs, signal);
      try {
        await look(signal);
      } catch (error) {
        if (!signal.aborted && isFault(error, "not_found")) return error;
      }
    }
  }
}

/** What is newer than the list at hand is looked for in the next one. */
async function inFirstLists(
  pods: PodSource,
  find: (list: PodList) => Pod | undefined,
  signal: AbortSignal,
): Promise<Pod | undefined> {
  const search = pods.search();
  return find(await search.next(signal)) ?? find(await search.next(signal));
}

function podIn(list: PodList, { key, uid }: KubernetesObject): Pod | undefined {
  const named = key === undefined ? [...list.named.values()].flat() : list.named.get(`${key.namespace}/${key.name}`);
  const found = (named ?? []).filter((pod) => uid === undefined || pod.uid.toLowerCase() === uid);
  return found.length === 0 ? undefined : onlyOne(found);
}

/** A review that the API server does not know of is no answer about the object. */
function unanswered(error: unknown): never {
  const { message } = Fault.from(error);
  throw new Fault("unavailable", `unable to check Kubernetes authorization for broker: ${message}`, {
    code: "access-review",
    cause: error,
  });
}
