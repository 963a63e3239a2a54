import { K8S_PSAT, readEvidence } from "../../src/evidence/k8s-psat.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { agentId, type TrustDomain } from "../../src/spiffe/id.ts";
import type { AttestationContext, Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";
import { KubeApi, type KubeNode, type KubePod, type TokenStatus } from "./kube-api.ts";

export interface K8sCluster {
  /** `<namespace>:<service account>`. */
  readonly serviceAccountAllowList: readonly string[];
  /** Empty means the API server's own. */
  readonly audience: readonly string[];
  /** Undefined when the server itself runs in the cluster. */
  readonly kubeConfigFile: string | undefined;
  readonly allowedNodeLabelKeys: readonly string[];
  readonly allowedPodLabelKeys: readonly string[];
  readonly usePodUidForAgentId: boolean;
}

export interface K8sPsatOptions {
  readonly trustDomain: TrustDomain;
  readonly clusters: ReadonlyMap<string, K8sCluster>;
  readonly clock: Clock;
}

const MAX_TOKEN_BYTES = 16 * 1024;
const EXTRA = "authentication.kubernetes.io/";

/** What the token says, as the API server vouches for it. */
interface Bearer {
  readonly namespace: string;
  readonly account: string;
  readonly podName: string;
  readonly podUid: string;
  /** From Kubernetes 1.32 on. */
  readonly nodeName: string | undefined;
  readonly nodeUid: string | undefined;
}

/** The agent's pod shows its service account token; the cluster's API server says whose it is and on which node. */
export class K8sPsatAttestor implements NodeAttestor {
  readonly type = K8S_PSAT;
  readonly #options: K8sPsatOptions;

  constructor(options: K8sPsatOptions) {
    this.#options = options;
  }

  async attest(payload: Uint8Array, _challenge: Challenge, { signal }: AttestationContext): Promise<NodeClaim> {
    const { cluster: name, token } = readEvidence(payload);
    if (name === "") throw invalid("missing cluster in attestation data");
    if (token === "") throw invalid("missing token in attestation data");
    if (token.length > MAX_TOKEN_BYTES) throw invalid("token in attestation data is too long");
    const cluster = this.#options.clusters.get(name);
    if (cluster === undefined) throw invalid(`not configured for cluster ${JSON.stringify(name.slice(0, 64))}`);
    const at = `for cluster "${name}"`;
    using api = await attempt(`unable to reach the API server ${at}`, () =>
      KubeApi.open(cluster.kubeConfigFile, this.#options.clock),
    );
    const status = await attempt(`unable to validate token with TokenReview API ${at}`, () =>
      api.review(token, cluster.audience, signal),
    );
    const bearer = readBearer(status, cluster, name);
    const pod = await attempt(`failed to get pod from k8s API server ${at}`, () =>
      api.pod(bearer.namespace, bearer.podName, signal),
    );
    checkPod(bearer, pod, name);
    const node = await attempt(`failed to get node from k8s API server ${at}`, () =>
      api.node(pod.spec.nodeName, signal),
    );
    checkNode(bearer, pod, { node, cluster: name });
    return this.#claim(bearer, pod, { node, name, cluster });
  }

  #claim({ podUid, namespace, account, podName }: Bearer, pod: KubePod, found: Found): NodeClaim {
    const { node, name, cluster } = found;
    const suffix = cluster.usePodUidForAgentId ? `pod/${podUid}` : node.metadata.uid;
    const values = [
      `cluster:${name}`,
      `agent_ns:${namespace}`,
      `agent_sa:${account}`,
      `agent_pod_name:${podName}`,
      `agent_pod_uid:${podUid}`,
      `agent_node_ip:${pod.status.hostIP ?? ""}`,
      `agent_node_name:${node.metadata.name}`,
      `agent_node_uid:${node.metadata.uid}`,
      ...labels("agent_node_label", node.metadata.labels, cluster.allowedNodeLabelKeys),
      ...labels("agent_pod_label", pod.metadata.labels, cluster.allowedPodLabelKeys),
    ];
    return {
      id: agentId(this.#options.trustDomain, `${K8S_PSAT}/${name}/${suffix}`),
      selectors: values.map((value) => ({ type: K8S_PSAT, value })),
      canReattest: true,
    };
  }
}

interface Found {
  readonly node: KubeNode;
  readonly name: string;
  readonly cluster: K8sCluster;
}

function labels(
  what: string,
  present: Readonly<Record<string, string>> | null | undefined,
  allowed: readonly string[],
): readonly string[] {
  return allowed.flatMap((key) => (Object.hasOwn(present ?? {}, key) ? [`${what}:${key}:${present?.[key]}`] : []));
}

function readBearer(status: TokenStatus, cluster: K8sCluster, name: string): Bearer {
  const at = `for cluster "${name}"`;
  const { authenticated, error, user } = status;
  // The API server says why it does not know a token in the same place as what went wrong.
  if (!authenticated) throw denied(`token not authenticated according to TokenReview API ${at}`);
  if (error !== "")
    throw new Fault("unavailable", `unable to validate token with TokenReview API ${at}`, { code: "kube-api" });
  const audiences = status.audiences ?? [];
  if (cluster.audience.length > 0 && !cluster.audience.some((audience) => audiences.includes(audience)))
    throw denied(`token is for another audience according to TokenReview API ${at}`);
  const [system, kind, namespace = "", account = "", ...more] = (user.username ?? "").split(":");
  if (system !== "system" || kind !== "serviceaccount" || namespace === "" || account === "" || more.length > 0)
    throw denied(`token is not a service account's ${at}`);
  if (!cluster.serviceAccountAllowList.includes(`${namespace}:${account}`))
    throw denied(`"${namespace}:${account}" is not an allowed service account ${at}`);
  const extra = user.extra ?? {};
  const podName = only(extra, "pod-name");
  const podUid = only(extra, "pod-uid");
  if (podName === undefined || podUid === undefined) throw denied(`token is not bound to a pod ${at}`);
  return { namespace, account, podName, podUid, nodeName: only(extra, "node-name"), nodeUid: only(extra, "node-uid") };
}

/** Its only value; several are none. */
function only(extra: Readonly<Record<string, readonly string[]>>, name: string): string | undefined {
  const values = Object.hasOwn(extra, EXTRA + name) ? extra[EXTRA + name] : undefined;
  return values?.length === 1 && values[0] !== "" ? values[0] : undefined;
}

/** The pod of that name is the one that the token was made for, and runs where and as what the token says (T-N10). */
function checkPod({ namespace, account, podName, podUid, nodeName }: Bearer, pod: KubePod, cluster: string): void {
  const { metadata, spec } = pod;
  const wrong = (what: string): Fault => denied(`${what} for pod "${podName}" in cluster "${cluster}"`);
  if (metadata.uid !== podUid)
    throw denied(`pod UID mismatch for pod "${podName}" in cluster "${cluster}": token bound to pod UID "${podUid}"`);
  if (metadata.name !== podName || metadata.namespace !== namespace) throw wrong("pod name mismatch");
  if (spec.serviceAccountName !== account) throw wrong("service account mismatch");
  if (spec.nodeName === "") throw wrong("node is not known yet");
  if (nodeName !== undefined && nodeName !== spec.nodeName) throw wrong("node name mismatch");
}

function checkNode({ nodeUid }: Bearer, pod: KubePod, { node, cluster }: { node: KubeNode; cluster: string }): void {
  const { uid, name } = node.metadata;
  if (uid === "") throw new Fault("unavailable", `node UID is empty for cluster "${cluster}"`, { code: "kube-api" });
  if (name !== pod.spec.nodeName || (nodeUid !== undefined && nodeUid !== uid))
    throw denied(`node mismatch for pod "${pod.metadata.name}" in cluster "${cluster}"`);
}

/** What the API server answers is told with the cluster; what it was asked never is. */
async function attempt<T>(what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const { kind, message, code, hint } = Fault.from(error);
    throw new Fault(kind, `${what}: ${message}`, { code, cause: error, ...(hint === undefined ? {} : { hint }) });
  }
}

function denied(message: string): Fault {
  return new Fault("denied", message, { code: "k8s-psat-refused" });
}

function invalid(message: string): Fault {
  return new Fault("invalid", message, { code: "k8s-psat-evidence" });
}
