import { closeSync, readFileSync, statSync } from "node:fs";
import type { Socket } from "node:net";
import { Fault } from "../runtime/fault.ts";
import { libc } from "./libc.ts";

/**
 * The process at the other end of a Unix socket, pinned since the connection was accepted: its pid cannot come to mean
 * another process while `isAlive` holds. Owned by the connection.
 */
export interface PeerProcess {
  /** In our own pid namespace. */
  readonly pid: number;
  /** Effective ids at the time of connect. */
  readonly uid: number;
  readonly gid: number;
  /** Field 22 of /proc/<pid>/stat: clock ticks after boot. */
  readonly startTime: string;
  /** The program it ran when accepted; another one later means that it called exec. Absent when not readable. */
  readonly executable: Executable | undefined;
  /** For asking others about the process; closed with the connection, and undefined from then on. */
  readonly pidfd: number | undefined;
  /** False once it has exited, as a zombie too, and for ever after the connection has closed. */
  isAlive(): boolean;
}

interface Executable {
  readonly device: bigint;
  readonly inode: bigint;
}

interface Credentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

const SO_PEERCRED = 17;
const SO_PEERPIDFD = 77;
const ENOPROTOOPT = 92;

/** Reads who is connected and pins the process. Throws `denied` whenever that is not beyond doubt (T-W1). */
export function pinPeer(socket: Socket): PeerProcess & Disposable {
  const fd = descriptorOf(socket);
  const credentials = readCredentials(fd);
  if (credentials.pid <= 0)
    throw refused(
      "the calling process is not visible from here",
      "peer-not-visible",
      "share the pid namespace with the workload",
    );
  const pidfd = openPidfd(fd, credentials.pid);
  try {
    return pinned(credentials, pidfd);
  } catch (error) {
    closeSync(pidfd);
    throw error;
  }
}

/**
 * Pins a process by its pid in our own namespace, as if it had just connected. Throws `not_found` when there is none.
 * Its owner disposes of it.
 */
export function pinPid(pid: number): PeerProcess & Disposable {
  const pidfd = libc().pidfdOpen(pid);
  if (pidfd < 0) throw new Fault("not_found", `there is no process ${pid}`, { code: "process-gone" });
  try {
    return pinned({ pid, ...effectiveIds(pid) }, pidfd);
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
function pinned(credentials: Credentials, pidfd: number): PeerProcess & Disposable {
  const startTime = readStartTime(credentials.pid);
  const executable = readExecutable(credentials.pid);
  if (libc().hasExited(pidfd)) throw gone();
  let open = true;
  return {
    ...credentials,
    startTime,
    executable,
    get pidfd() {
      return open ? pidfd : undefined;
    },
    isAlive: () => open && !libc().hasExited(pidfd),
    [Symbol.dispose]() {
      if (open) closeSync(pidfd);
      open = false;
    },
  };
}

function effectiveIds(pid: number): Omit<Credentials, "pid"> {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  const effective = (key: string): number => Number(new RegExp(`^${key}:\\s+\\d+\\s+(\\d+)`, "m").exec(status)?.[1]);
  const ids = { uid: effective("Uid"), gid: effective("Gid") };
  if (Number.isNaN(ids.uid) || Number.isNaN(ids.gid)) throw gone();
  return ids;
}

function readCredentials(fd: number): Credentials {
  const bytes = libc().getsockopt(fd, SO_PEERCRED, 12);
  if (typeof bytes === "number" || bytes.length !== 12)
    throw refused("peer credentials cannot be read", "peer-credentials");
  return { pid: bytes.readInt32LE(0), uid: bytes.readUInt32LE(4), gid: bytes.readUInt32LE(8) };
}

/** Kernels before 6.5 lack the socket option; there the pid is opened, which the liveness check then confirms. */
function openPidfd(fd: number, pid: number): number {
  const bytes = libc().getsockopt(fd, SO_PEERPIDFD, 4);
  if (typeof bytes !== "number") return bytes.readInt32LE(0);
  if (bytes !== ENOPROTOOPT) throw gone();
  const opened = libc().pidfdOpen(pid);
  if (opened < 0) throw gone();
  return opened;
}

/** The name in field 2 may hold spaces and parentheses, so fields are counted from its last one. */
function readStartTime(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const startTime = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
    if (startTime !== undefined && /^\d+$/.test(startTime)) return startTime;
  } catch (cause) {
    throw gone(cause);
  }
  throw gone();
}

/** Follows the link in the kernel, so that a file replaced under the same name is told apart. */
function readExecutable(pid: number): Executable | undefined {
  try {
    const { dev, ino } = statSync(`/proc/${pid}/exe`, { bigint: true });
    return { device: dev, inode: ino };
  } catch {
    return undefined;
  }
}

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
