import { readFileSync } from "node:fs";
import { isIPv4 } from "node:net";
import { kubernetesObjectReference, workloadPidReference } from "../rpc/protos.ts";
import { Fault } from "../runtime/fault.ts";
import type { EndpointAddress } from "./address.ts";

/** Points at a workload. Made by `pidReference` and its like, or from a message that both sides agree on. Immutable. */
export interface WorkloadReference {
  /** Such as `type.googleapis.com/spiffe.broker.WorkloadPIDReference`. */
  readonly typeUrl: string;
  /** The message, encoded. */
  readonly value: Uint8Array;
  /** Means something on this node only. SPIFFE Broker API, section 3.1. */
  readonly local: boolean;
  /** Asked before every call, where the caller can tell; false once it would mean another workload. */
  readonly stillMeant?: () => boolean;
}

/** An object of the Kubernetes API. SPIFFE Broker API, section 3.1.3. */
export interface KubernetesObject {
  /** The resource as its URL has it, such as `pods`. */
  readonly plural: string;
  /** Such as `apps`; `core` for the core group. */
  readonly group: string;
  /** For what has one. */
  readonly namespace?: string;
  /** At least one of name and UID; with both, only an object that has both will do. */
  readonly name?: string;
  readonly uid?: string;
}

const PREFIX = "type.googleapis.com/spiffe.broker.";
const MAX_PID = 0x7fffffff;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** The process with this ID, as the endpoint sees it; of a container, its own process, not the pause process. Throws `invalid`. */
export function pidReference(pid: number): WorkloadReference {
  if (!Number.isInteger(pid) || pid < 1 || pid > MAX_PID)
    throw invalidReference(`process ID ${pid} is not a positive number`);
  const value = workloadPidReference().serialize({ pid });
  return Object.freeze({ typeUrl: `${PREFIX}WorkloadPIDReference`, value, local: true });
}

/**
 * As `pidReference`, for a process that this one sees under the same ID. A process that gets the ID after it, while the
 * endpoint is out of reach, is not taken for it. Throws `invalid`, and `not_found` when there is no such process.
 */
export function processReference(pid: number): WorkloadReference {
  const reference = pidReference(pid);
  const started = startOf(pid);
  if (started === undefined) throw new Fault("not_found", `there is no process ${pid}`, { code: "workload-not-found" });
  return Object.freeze({ ...reference, stillMeant: () => startOf(pid) === started });
}

/** When it was started, in clock ticks since boot; undefined when it is not there, or has exited. proc(5). */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const [state, ...fields] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return state === "Z" || state === "X" ? undefined : fields[18];
  } catch {
    return undefined;
  }
}

/** Throws `invalid` for an object that no server can find. */
export function kubernetesReference(object: KubernetesObject): WorkloadReference {
  const { plural, group, namespace = "", name = "", uid = "" } = object;
  if (plural === "" || group === "") throw invalidReference("the type of the Kubernetes object is incomplete");
  if (name === "" && uid === "") throw invalidReference("the Kubernetes object has neither a name nor a UID");
  if (name === "" && namespace !== "") throw invalidReference("the Kubernetes object has a namespace but no name");
  if (uid !== "" && !UUID.test(uid)) throw invalidReference("the UID of the Kubernetes object is not a UUID");
  const key = name === "" ? {} : { key: { namespace, name } };
  const value = kubernetesObjectReference().serialize({ type: { plural, group }, ...key, uid });
  return Object.freeze({ typeUrl: `${PREFIX}KubernetesObjectReference`, value, local: false });
}

/** What a process ID means to another node is another process. Throws `invalid`. SPIFFE Broker API, section 3.1.2. */
export function checkScope({ local }: WorkloadReference, address: EndpointAddress): void {
  if (!local || address.transport === "unix" || isLoopback(address.host)) return;
  throw new Fault("invalid", `a reference to a local process does not go to ${address.host}`, {
    code: "workload-reference-local",
    hint: "use the endpoint of this node, or allowRemote where the address is known to be on it",
  });
}

function isLoopback(host: string): boolean {
  return host === "::1" || host.toLowerCase() === "localhost" || (isIPv4(host) && host.startsWith("127."));
}

function invalidReference(message: string): Fault {
  return new Fault("invalid", message, { code: "workload-reference-invalid" });
}
