import type { KubernetesObjectReference__Output } from "../../src/rpc/gen/spiffe/broker/KubernetesObjectReference.ts";
import type { WorkloadReference__Output } from "../../src/rpc/gen/spiffe/broker/WorkloadReference.ts";
import { kubernetesObjectReference, workloadPidReference } from "../../src/rpc/protos.ts";
import type { Asking, KubernetesObject, ObjectReferences, ReferencedWorkload } from "../workload/references.ts";
import { invalidReference } from "./broker-errors.ts";

/** Those who know what references point at; each may be missing. */
export interface ReferenceResolvers {
  readonly processes: { open(pid: number, asking: Asking): Promise<ReferencedWorkload> };
  readonly objects?: ObjectReferences | undefined;
}

/** A reference that is well formed; whether it points at anything is not known yet. */
export interface Reference {
  /** Full name of its message, such as `spiffe.broker.WorkloadPIDReference`. */
  readonly type: string;
  open(asking: Asking): Promise<ReferencedWorkload>;
}

type Reader = (value: Buffer, resolvers: ReferenceResolvers) => Reference["open"] | undefined;

const PID = "spiffe.broker.WorkloadPIDReference";
const KUBERNETES_OBJECT = "spiffe.broker.KubernetesObjectReference";
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** References by the full name of their message. */
const readers: Readonly<Record<string, Reader>> = {
  [PID]: (value, { processes }) => {
    const { pid } = decoded(() => workloadPidReference().deserialize(value));
    if (pid <= 0) throw invalidReference(`process ID ${pid} is not a positive number`);
    return (asking) => processes.open(pid, asking);
  },
  [KUBERNETES_OBJECT]: (value, { objects }) => {
    if (objects === undefined) return undefined;
    const object = kubernetesObject(decoded(() => kubernetesObjectReference().deserialize(value)));
    return (asking) => objects.open(object, asking);
  },
};

/** Full names of the messages by which workloads are referred to. */
export const REFERENCE_TYPES: readonly string[] = Object.keys(readers);

/** The name of the message in a type URL; undefined without a slash before it (D-18). */
export function typeNameOf(typeUrl: string): string | undefined {
  const slash = typeUrl.lastIndexOf("/");
  return slash < 0 || slash === typeUrl.length - 1 ? undefined : typeUrl.slice(slash + 1);
}

/** Throws `invalid` for none, for one of a type that nobody here resolves, and for a malformed one. */
export function readReference(message: WorkloadReference__Output | null, resolvers: ReferenceResolvers): Reference {
  const any = message?.reference as { readonly type_url: string; readonly value: Buffer } | null | undefined;
  if (!any?.type_url) throw invalidReference("workload reference must be provided");
  const type = typeNameOf(any.type_url);
  const reader = type !== undefined && Object.hasOwn(readers, type) ? readers[type] : undefined;
  const open = reader?.(any.value, resolvers);
  if (type === undefined || open === undefined)
    throw invalidReference(`workload references of type ${JSON.stringify(any.type_url)} are not supported`);
  return { type, open };
}

function decoded<T>(decode: () => T): T {
  try {
    return decode();
  } catch (cause) {
    throw invalidReference("workload reference is malformed", cause);
  }
}

/** SPIFFE Broker API, section 3.1.3. */
function kubernetesObject({ type, key, uid }: KubernetesObjectReference__Output): KubernetesObject {
  if (!type?.plural || type.group === "") throw invalidReference("the type of the Kubernetes object is incomplete");
  if (!key && uid === "") throw invalidReference("the Kubernetes object has neither a key nor a UID");
  if (key && key.name === "") throw invalidReference("the key of the Kubernetes object has no name");
  const lower = uid.toLowerCase();
  if (uid !== "" && !UUID.test(lower)) throw invalidReference("the UID of the Kubernetes object is not a UUID");
  return {
    plural: type.plural,
    group: type.group,
    key: key ? { namespace: key.namespace, name: key.name } : undefined,
    uid: uid === "" ? undefined : lower,
  };
}
