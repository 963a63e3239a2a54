import type { Key } from "../../src/runtime/config.ts";
import { block, flag, oneOf, text } from "../../src/runtime/config-keys.ts";
import { messageOf } from "../../src/runtime/fault.ts";
import { parseSpiffeId, type SpiffeId } from "../../src/spiffe/id.ts";
import { objects } from "./broker.ts";

/** Which pods a broker may point at. */
type PodScope = "agent_node" | "cluster";

export interface K8sBrokerConfig {
  /** Whether the cluster is asked before a broker gets anything for an object. */
  readonly enforced: boolean;
  readonly brokers: ReadonlyMap<SpiffeId, PodScope>;
}

const brokerKeys = {
  id: text({ doc: "SPIFFE ID of the broker.", default: "" }),
  pod_reference_scope: oneOf(["agent_node", "cluster"])({ doc: "Which pods.", default: "agent_node" }),
};

const keys = {
  access_policy: oneOf(["permissive", "enforced"])({
    doc: "enforced: a broker gets a pod or object, by whatever reference, if a SubjectAccessReview lets its SPIFFE ID, as a user, impersonate-via-spire it. permissive: without asking.",
  }),
  brokers: objects(
    "Who may point at objects: objects with id and pod_reference_scope, which is agent_node (default: pods of the own node only) or cluster.",
    (object, spot) => block("", brokerKeys).read(object, spot),
  ),
};

/** Undefined when it is not there: then no broker may refer to objects of the cluster. */
const k8sBroker: Key<K8sBrokerConfig | undefined> = {
  ...block("References of brokers to Kubernetes objects, and their access to pods.", keys),
  read: (value, spot) => {
    if (value === undefined) return undefined;
    const { access_policy, brokers } = block("", keys).read(value, spot);
    const fault = (message: string): void => spot.reader.fault(spot.at, `${spot.path}.${message}`);
    if (access_policy === undefined) fault("access_policy: must be specified as one of [permissive, enforced]");
    if (brokers.length === 0) fault("brokers: at least one broker is required");
    const found = new Map<SpiffeId, PodScope>();
    for (const [index, { id, pod_reference_scope }] of brokers.entries()) {
      try {
        if (id === "") fault(`brokers[${index}].id: must be specified`);
        else if (found.has(parseSpiffeId(id))) fault(`brokers[${id}].id: duplicate broker id`);
        else found.set(parseSpiffeId(id), pod_reference_scope);
      } catch (error) {
        fault(`brokers[${id}].id: ${messageOf(error)}`);
      }
    }
    return { enforced: access_policy !== "permissive", brokers: found };
  },
};

const cacheKeys = {
  enabled: flag({
    doc: "Watches the API server for the pods of this node (see node_name) and, with enable_namespace_labels, for namespaces: the agent needs the right to list and watch them. What is not watched, or not while the API server is away, is asked for as without the cache.",
    default: false,
  }),
};

/** `experimental` of the k8s workload attestor. */
export const k8sExperimental = block("Options that SPIRE counts as experimental.", {
  api_server: block("How the API server is asked.", {
    cache: block("What is kept of it.", cacheKeys),
  }),
  broker: k8sBroker,
});
