import { closeSync } from "node:fs";
import type { Socket } from "node:net";
import { Fault } from "../runtime/fault.ts";
import { type FileIdentity, type Libc, libc } from "./libc.ts";
import { readProcFile } from "./proc-file.ts";
import { isAnybody, sharesUsers } from "./user-namespace.ts";

/**
 * The process at the other end of a Unix socket, pinned since the connection was accepted: its pid cannot come to mean
 * another process while `isAlive` holds. Owned by the connection.
 */
export interface PeerProcess {
  /** In our own pid namespace. */
  readonly pid: number;
  /** Effective ids at the time of connect, and when accepted. */
  readonly uid: number;
  readonly gid: number;
  /** When accepted. */
  readonly realUid: number;
  readonly realGid: number;
  /** Its control groups as the kernel lists them, for sharing limits fairly. Absent when not readable. */
  readonly cgroup?: string;
  /** Field 22 of /proc/<pid>/stat: clock ticks after boot. */
  readonly startTime: string;
  /** Where the kernel placed the program in memory, anew at each exec; zeros when we may not see it. */
  readonly image: string;
  /** The program it ran when accepted; another one later means that it called exec. Absent when not readable. */
  readonly executable: FileIdentity | undefined;
  /** For asking others about the process; closed with the connection, and undefined from then on. */
  readonly pidfd: number | undefined;
  /** False once it has exited, as a zombie too, and for ever after the connection has closed. */
  isAlive(): boolean;
}

interface Credentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

const SO_PEERCRED = 17;
const SO_PEERPIDFD = 77;
const ENOPROTOOPT = 92;

/** What pinning asks of the kernel. */
export type PinningCalls = Pick<Libc, "getsockopt" | "pidfdOpen" | "hasExited">;

/** Reads who is connected and pins the process. Throws `denied` whenever that is not beyond doubt (T-W1). */
export function pinPeer(socket: Socket, system: PinningCalls = libc()): PeerProcess & Disposable {
  const fd = descriptorOf(socket);
  const credentials = readCredentials(fd, system);
  if (credentials.pid <= 0)
    throw refused(
      "the calling process is not visible from here",
      "peer-not-visible",
      "share the pid namespace with the workload",
    );
  const opened = openPidfd(fd, credentials.pid, system);
  try {
    return pinned(credentials, opened);
  } catch (error) {
    closeSync(opened.pidfd);
    throw error;
  }
}

/** Effective ids of a caller that is in no pid namespace of ours, such as another container's; its pid is zero. */
export type UnseenPeer = Credentials;

/** Undefined for a caller whose process can be seen from here. */
export function unseenPeer(socket: Socket): UnseenPeer | undefined {
  const credentials = readCredentials(descriptorOf(socket));
  return credentials.pid > 0 ? undefined : credentials;
}

/**
 * Pins a process by its pid in our own namespace, as if it had just connected. Throws `not_found` when there is none.
 * Its owner disposes of it.
 */
export function pinPid(pid: number): PeerProcess & Disposable {
  const pidfd = libc().pidfdOpen(pid);
  if (pidfd < 0) throw new Fault("not_found", `there is no process ${pid}`, { code: "process-gone" });
  try {
    const { uid, gid } = readIds(pid);
    return pinned({ pid, uid, gid }, { pidfd, system: libc(), before: undefined });
  } catch (cause) {
    closeSync(pidfd);
    throw new Fault("not_found", `process ${pid} has exited`, { code: "process-gone", cause });
  }
}

/** Pid of the process that listens at the other end of a connected client socket. */
export function listenerPid(socket: Socket): number | undefined {
  const pid = listenerCredentials(socket)?.pid ?? 0;
  return pid > 0 ? pid : undefined;
}

/** Effective user of the process that listens at the other end of a connected client socket, when it began to. */
export function listenerUid(socket: Socket): number | undefined {
  return listenerCredentials(socket)?.uid;
}

function listenerCredentials(socket: Socket): Credentials | undefined {
  try {
    return readCredentials(descriptorOf(socket));
  } catch {
    return undefined;
  }
}

/** What was read from /proc is the process's own only because it is still alive afterwards. */
function pinned(credentials: Credentials, { pidfd, system, before }: Opened): PeerProcess & Disposable {
  const { pid, uid, gid } = credentials;
  if ((isAnybody(uid) || isAnybody(gid)) && !sharesUsers(pid))
    throw refused(
      "the calling process's user or group has no number here",
      "peer-user-unknown",
      "run the program outside of user namespaces, or in that of its callers",
    );
  const { startTime, image } = readStat(pid);
  if (before !== undefined && before !== startTime) throw gone();
  const { realUid, realGid } = checkedIds(credentials);
  const executable = libc().fileOf(`/proc/${pid}/exe`);
  const cgroup = readCgroup(pid);
  if (system.hasExited(pidfd)) throw gone();
  let open = true;
  return {
    ...{ ...credentials, realUid, realGid, startTime, image, executable },
    ...(cgroup !== undefined && { cgroup }),
    get pidfd() {
      return open ? pidfd : undefined;
    },
    isAlive: () => open && !system.hasExited(pidfd),
    [Symbol.dispose]() {
      if (open) closeSync(pidfd);
      open = false;
    },
  };
}

function readCredentials(fd: number, system: PinningCalls = libc()): Credentials {
  const bytes = system.getsockopt(fd, SO_PEERCRED, 12);
  if (typeof bytes === "number" || bytes.length !== 12)
    throw refused("peer credentials cannot be read", "peer-credentials");
  return { pid: bytes.readInt32LE(0), uid: bytes.readUInt32LE(4), gid: bytes.readUInt32LE(8) };
}

/** Kernels before 6.5 lack the socket option; there the pid is opened, between two looks at its start time. */
function openPidfd(fd: number, pid: number, system: PinningCalls): Opened {
  const bytes = system.getsockopt(fd, SO_PEERPIDFD, 4);
  if (typeof bytes !== "number") return { pidfd: bytes.readInt32LE(0), system, before: undefined };
  if (bytes !== ENOPROTOOPT) throw gone();
  const before = readStat(pid).startTime;
  const pidfd = system.pidfdOpen(pid);
  if (pidfd < 0) throw gone();
  return { pidfd, system, before };
}

interface Opened {
  readonly pidfd: number;
  readonly system: PinningCalls;
  /** Start time before the pidfd was opened, where that proves something. */
  readonly before: string | undefined;
}

function readStat(pid: number): ProcessStat {
  try {
    return parseStat(readProcFile(`/proc/${pid}/stat`));
  } catch (cause) {
    throw gone(cause);
  }
}

export interface ProcessStat {
  readonly startTime: string;
  readonly image: string;
}

/**
 * Reads the text of `/proc/<pid>/stat`: proc(5), fields 22, 26 and 28. The name in field 2 may hold spaces and
 * parentheses, so fields are counted from its last one. Throws `denied`.
 */
export function parseStat(text: string): ProcessStat {
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const [startTime, startCode, startStack] = [fields[19], fields[23], fields[25]];
  if (startTime === undefined || startStack === undefined || !/^\d+$/.test(startTime)) throw gone();
  return { startTime, image: `${startCode}:${startStack}` };
}

/** A process that has become another user since it connected is neither the one nor the other. */
function checkedIds({ pid, uid, gid }: Credentials): { readonly realUid: number; readonly realGid: number } {
  const ids = readIds(pid);
  if (ids.uid !== uid || ids.gid !== gid)
    throw refused("the calling process is no longer the user that connected", "peer-changed");
  return ids;
}

function readIds(pid: number): ProcessIds {
  try {
    return parseIds(readProcFile(`/proc/${pid}/status`));
  } catch (cause) {
    throw gone(cause);
  }
}

export interface ProcessIds {
  readonly realUid: number;
  readonly realGid: number;
  /** Effective. */
  readonly uid: number;
  readonly gid: number;
}

/** Reads the text of `/proc/<pid>/status`. Throws `unavailable` when it lacks the ids. */
export function parseIds(text: string): ProcessIds {
  const [realUid, uid] = statusNumbers(text, "Uid");
  const [realGid, gid] = statusNumbers(text, "Gid");
  if (realUid === undefined || uid === undefined || realGid === undefined || gid === undefined)
    throw new Fault("unavailable", "process status has no effective ids", { code: "proc-status" });
  return { realUid, realGid, uid, gid };
}

/** Numbers of one line of that text, not its first. Throws `unavailable` when there is no such line. */
export function statusNumbers(text: string, key: string): readonly number[] {
  const start = text.indexOf(`\n${key}:`) + 1;
  const line = start === 0 ? undefined : text.slice(start + key.length + 1).split("\n", 1)[0];
  if (line !== undefined && /^[\d\s]*$/.test(line)) return line.split(/\s+/).filter(Boolean).map(Number);
  throw new Fault("unavailable", `process status has no line "${key}"`, { code: "proc-status" });
}

function readCgroup(pid: number): string | undefined {
  try {
    return readProcFile(`/proc/${pid}/cgroup`);
  } catch {
    return undefined;
  }
}

/** Follows the link in the kernel, so that a file replaced under the same name is told apart. */
/** Node keeps the descriptor out of its public interface. Throws `denied` when the socket is closed. */
export function descriptorOf(socket: Socket): number {
  const fd = (socket as unknown as { readonly _handle?: { readonly fd?: number } })._handle?.fd;
  if (fd === undefined || fd < 0) throw gone();
  return fd;
}

function gone(cause?: unknown): Fault {
  return refused("the calling process is gone", "peer-gone", undefined, cause);
}

function refused(message: string, code: string, hint?: string, cause?: unknown): Fault {
  return new Fault("denied", message, { code, cause, ...(hint === undefined ? {} : { hint }) });
}
