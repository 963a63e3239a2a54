/** What attestation uses of a pod. */
export interface Pod {
  readonly uid: string;
  readonly name: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly nodeName: string;
  readonly labels: readonly (readonly [key: string, value: string])[];
  readonly owners: readonly Owner[];
  readonly containers: readonly ContainerStatus[];
  readonly initContainers: readonly ContainerStatus[];
  readonly ephemeralContainers: readonly ContainerStatus[];
  /** The API server's image of a static pod, with a UID of its own. */
  readonly isMirror: boolean;
}

/** Marks what the API server shows for a pod that only the kubelet knows. */
const MIRROR = "kubernetes.io/config.mirror";

export interface Owner {
  readonly apiVersion: string;
  readonly kind: string;
  readonly name: string;
  readonly uid: string;
  readonly controller: boolean;
}

export interface ContainerStatus {
  readonly name: string;
  readonly image: string;
  readonly imageId: string;
  /** Without the runtime's scheme; empty until the container exists. */
  readonly containerId: string;
}

/** The pods of a node as they were known at one moment. */
export interface PodList {
  /** Who knew them. */
  readonly source: string;
  readonly pods: ReadonlyMap<string, Pod>;
  /** By namespace and name, which an old pod and the one after it may share for a while. */
  readonly named: ReadonlyMap<string, readonly Pod[]>;
  /** By container id. More than one place is a fault of the source's that nobody may gain from. */
  readonly containers: ReadonlyMap<string, readonly PodContainer[]>;
}

/** Where the pods of this node are known. */
export interface PodSource {
  search(): PodSearch;
}

/** One look for a pod, through one list after the other. */
export interface PodSearch {
  /** At first a list that is fresh; then one that is newer, when there is one or it is time to look anew. */
  next(signal: AbortSignal): Promise<PodList>;
}

export interface PodContainer {
  readonly pod: Pod;
  readonly status: ContainerStatus;
}

type Json = Readonly<Record<string, unknown>>;

export function podListOf(all: Iterable<Pod>, source: string): PodList {
  const pods = new Map<string, Pod>();
  const named = new Map<string, Pod[]>();
  const containers = new Map<string, PodContainer[]>();
  for (const pod of all) {
    pods.set(pod.uid, pod);
    append(named, `${pod.namespace}/${pod.name}`, pod);
    for (const status of allContainers(pod)) {
      if (status.containerId === "") continue;
      append(containers, status.containerId, { pod, status });
    }
  }
  return { source, pods, named, containers };
}

function append<T>(lists: Map<string, T[]>, key: string, value: T): void {
  const list = lists.get(key);
  if (list === undefined) lists.set(key, [value]);
  else list.push(value);
}

function allContainers(pod: Pod): readonly ContainerStatus[] {
  return [...pod.containers, ...pod.initContainers, ...pod.ephemeralContainers];
}

/** Values of the selectors of every container of the pod. */
export function podSelectors(pod: Pod): readonly string[] {
  return [
    `sa:${pod.serviceAccount}`,
    `ns:${pod.namespace}`,
    `node-name:${pod.nodeName}`,
    `pod-uid:${pod.uid}`,
    `pod-name:${pod.name}`,
    `pod-image-count:${pod.containers.length}`,
    `pod-init-image-count:${pod.initContainers.length}`,
    ...images(pod.containers).map((image) => `pod-image:${image}`),
    ...images(pod.initContainers).map((image) => `pod-init-image:${image}`),
    ...pod.labels.map(([key, value]) => `pod-label:${key}:${value}`),
    ...pod.owners.flatMap(({ kind, name, uid }) => [`pod-owner:${kind}:${name}`, `pod-owner-uid:${kind}:${uid}`]),
  ];
}

/** Values of the selectors of the calling container alone. */
export function containerSelectors(status: ContainerStatus): readonly string[] {
  return [`container-name:${status.name}`, ...images([status]).map((image) => `container-image:${image}`)];
}

/** Both by digest and as configured: the name of an image may be any of several for one digest. */
function images(statuses: readonly ContainerStatus[]): readonly string[] {
  return [...new Set(statuses.flatMap(({ image, imageId }) => [imageId, image]))].filter((image) => image !== "");
}

export function podOf(item: unknown): Pod {
  const pod = objectOf(item);
  const [metadata, spec, status] = [objectOf(pod["metadata"]), objectOf(pod["spec"]), objectOf(pod["status"])];
  return {
    uid: textOf(metadata["uid"]),
    name: textOf(metadata["name"]),
    namespace: textOf(metadata["namespace"]),
    serviceAccount: textOf(spec["serviceAccountName"]),
    nodeName: textOf(spec["nodeName"]),
    labels: textEntries(metadata["labels"]),
    owners: ownersOf(metadata["ownerReferences"]),
    containers: statusesOf(status["containerStatuses"]),
    initContainers: statusesOf(status["initContainerStatuses"]),
    ephemeralContainers: statusesOf(status["ephemeralContainerStatuses"]),
    isMirror: Object.hasOwn(objectOf(metadata["annotations"]), MIRROR),
  };
}

export function ownersOf(references: unknown): readonly Owner[] {
  return listOf(references).map((owner) => ({
    apiVersion: textOf(owner["apiVersion"]),
    kind: textOf(owner["kind"]),
    name: textOf(owner["name"]),
    uid: textOf(owner["uid"]),
    controller: owner["controller"] === true,
  }));
}

function statusesOf(value: unknown): readonly ContainerStatus[] {
  return listOf(value).map((status) => ({
    name: textOf(status["name"]),
    image: textOf(status["image"]),
    imageId: textOf(status["imageID"]),
    containerId: textOf(status["containerID"]).replace(/^[a-z0-9.+-]+:\/\//, ""),
  }));
}

/** Entries of a map of strings, such as labels. */
export function textEntries(value: unknown): readonly (readonly [string, string])[] {
  return Object.entries(objectOf(value)).map(([key, text]) => [key, textOf(text)]);
}

export function objectOf(value: unknown): Json {
  return isObject(value) ? value : {};
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function listOf(value: unknown): readonly Json[] {
  return Array.isArray(value) ? value.map(objectOf) : [];
}

export function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}
