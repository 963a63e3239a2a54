import { readFileSync } from "node:fs";
import { readlink } from "node:fs/promises";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { delegateOf } from "./cgroup-owner.ts";
import { readProcText } from "./process.ts";

/** The container that a process runs in, as its control groups say. */
export interface ContainerPlace {
  /** 64 hexadecimal digits. */
  readonly containerId: string;
  /** With dashes; a static pod's is 32 hexadecimal digits. Absent where the runtime does not name the pod. */
  readonly podUid?: string;
  /** Every id on the way to the process, the outermost first; a container may make groups of any name below its own. */
  readonly chain: readonly string[];
  /** The user whose slice or service holds the group, and who can name groups below it at will. */
  readonly user?: number;
  /** Podman made the container. */
  readonly podman: boolean;
}

/** Text of the process's files; absent when there is no such file. */
export interface ContainerFiles {
  readonly cgroup?: string;
  readonly mountinfo?: string;
}

/** `/proc/<pid>/ns/cgroup` of a process that sees every control group by its full path. */
const INITIAL_NAMESPACE = "cgroup:[4026531835]";
const CONTAINER_ID = /(?<![0-9A-Za-z_])[0-9a-f]{64}(?![0-9A-Za-z_])/g;
const POD_UID = /(?<![0-9A-Za-z])pod([0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?![0-9A-Za-z])/g;
/** Helper processes of the runtime on the host carry the id of the container they watch. */
const HELPER = /(?:conmon|conmon-rs)-$/;
/** A node made of a container (kind, minikube) stands above its pods. */
const NODE_CONTAINER = /(?:^|[/-])(?:docker|libpod)[-/]$/;
const PODMAN = /libpod-|\/libpod\//;
const USER_SLICE = /\/user-(\d{1,16})\.slice\//;

/**
 * Finds the container in the files of a process. `cgroup` is the kernel's word; `mountinfo`, which a process can shape,
 * is asked only when the former names no container. Undefined outside of containers; throws `precondition` when the
 * files contradict each other. T-W4.
 */
export function locateContainer({ cgroup, mountinfo }: ContainerFiles): ContainerPlace | undefined {
  const found = cgroup === undefined ? undefined : merge(cgroupPaths(cgroup));
  return found ?? (mountinfo === undefined ? undefined : merge(cgroupMounts(mountinfo)));
}

/** Reads the caller's files below `procRoot`. As `locateContainer`; throws `unauthenticated` when the caller is gone. */
export async function readContainer(peer: PeerProcess, procRoot: string): Promise<ContainerPlace | undefined> {
  const cgroup = readProcText(peer, "cgroup", procRoot);
  const found = locateContainer({ cgroup });
  if (found !== undefined) return withDelegate(found, cgroup);
  if (!(await isOwnGroup(cgroup))) return undefined;
  return locateContainer({ mountinfo: readProcText(peer, "mountinfo", procRoot) });
}

/** The place with the user, if any, who could have named the container's group as it is named. */
export function withDelegate(place: ContainerPlace, cgroup: string): ContainerPlace {
  if (place.user !== undefined) return place;
  const users = cgroupLines(cgroup).map(({ controllers, path }) => {
    const at = path.indexOf(place.containerId);
    return at < 0 ? undefined : delegateOf(controllers, path.slice(0, at));
  });
  const user = users.find((each) => each !== undefined);
  return user === undefined ? place : { ...place, user };
}

/** Whether we ourselves run inside of this container: then it is our node. */
export function isOurNode(containerId: string): boolean {
  return cgroupPaths(readFileSync("/proc/self/cgroup", "latin1")).some((path) => path.includes(containerId));
}

/** Paths of the control groups that a process is in. Throws `precondition` for a malformed line. */
export function cgroupPaths(text: string): readonly string[] {
  return cgroupLines(text).map(({ path }) => path);
}

function cgroupLines(text: string): readonly { readonly controllers: string; readonly path: string }[] {
  return lines(text).map((line) => {
    const [id, controllers, ...path] = line.split(":");
    if (id === undefined || controllers === undefined || path.length === 0)
      throw new Fault("precondition", `malformed cgroup entry ${JSON.stringify(line)}`, { code: "cgroup-malformed" });
    return { controllers, path: path.join(":") };
  });
}

/** Roots of the mounted control group file systems. Fields are parted by single spaces; a mount's source may be empty. */
function cgroupMounts(text: string): readonly string[] {
  return lines(text).flatMap((line) => {
    const fields = line.split(" ");
    const type = fields[fields.indexOf("-", 6) + 1];
    const root = fields[3];
    return (type === "cgroup" || type === "cgroup2") && root !== undefined && root !== "/" ? [root] : [];
  });
}

/**
 * Whether the mounts may fill in for a path that says nothing. Only where we ourselves see control groups from inside a
 * container and the process is in our own: everywhere else the kernel has named the group, and the process's mounts are
 * whatever it wants them to be.
 */
async function isOwnGroup(cgroup: string): Promise<boolean> {
  if (cgroupPaths(cgroup).some((path) => path.startsWith("/.."))) return false;
  return (await readlink("/proc/self/ns/cgroup")) !== INITIAL_NAMESPACE;
}

/** What names a pod counts more than what does not; what names no container does not count. */
function merge(paths: readonly string[]): ContainerPlace | undefined {
  const places = paths.flatMap((path) => placeOf(path) ?? []);
  const withPod = places.filter(({ podUid }) => podUid !== undefined);
  const counted = withPod.length > 0 ? withPod : places;
  refuseConflict("pod UIDs", new Set(counted.map(({ podUid }) => podUid)));
  refuseConflict("container IDs", new Set(counted.map(({ containerId }) => containerId)));
  return counted[0];
}

export function refuseConflict(what: string, values: ReadonlySet<string | undefined>): void {
  if (values.size < 2) return;
  const named = [...values].slice(0, 2).map((value) => JSON.stringify(value));
  throw new Fault("precondition", `multiple ${what} found (${named.join(", ")})`, { code: "container-ambiguous" });
}

interface Candidate {
  readonly containerId: string;
  readonly podUid: string | undefined;
  readonly isNode: boolean;
}

/**
 * The outermost container of a path that is not a node's: a container names the groups inside its own, never those
 * around it.
 */
function placeOf(path: string): ContainerPlace | undefined {
  const candidates = candidatesOf(path);
  const own = candidates.find(({ isNode }, at) => !isNode || at === candidates.length - 1);
  if (own === undefined) return undefined;
  return {
    containerId: own.containerId,
    chain: [...new Set(candidates.map(({ containerId }) => containerId))],
    ...ownerOf(path),
    ...(own.podUid === undefined ? {} : { podUid: own.podUid }),
  };
}

/** Who made the container, and whose slice it is in. */
export function ownerOf(path: string): Pick<ContainerPlace, "podman" | "user"> {
  const user = USER_SLICE.exec(path)?.[1];
  return { podman: PODMAN.test(path), ...(user === undefined ? {} : { user: Number(user) }) };
}

/** A node's container has no pod, and another container inside. */
function candidatesOf(path: string): readonly Candidate[] {
  const candidates: Candidate[] = [];
  let from = 0;
  for (const { 0: containerId, index } of path.matchAll(CONTAINER_ID)) {
    const before = path.slice(from, index);
    from = index + containerId.length;
    if (HELPER.test(before)) return candidates;
    const podUid = [...before.matchAll(POD_UID)].at(-1)?.[1]?.replaceAll("_", "-");
    candidates.push({ containerId, podUid, isNode: podUid === undefined && NODE_CONTAINER.test(before) });
  }
  return candidates;
}

function lines(text: string): readonly string[] {
  return text.split("\n").filter((line) => line !== "");
}
