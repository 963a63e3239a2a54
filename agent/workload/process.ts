import { isUtf8 } from "node:buffer";
import { type FileHandle, open, readlink } from "node:fs/promises";
import { join } from "node:path";
import { type FileIdentity, libc } from "../../src/rpc/libc.ts";
import { type PeerProcess, parseIds, parseStat, statusNumbers } from "../../src/rpc/peer-credentials.ts";
import { readProcFile } from "../../src/rpc/proc-file.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";

const PROC = "/proc";
/** Linux; not among Node's constants. Reaches a file without the right to read it. */
const O_PATH = 0o10000000;

/** What the kernel says of a process, by effective ids. */
export interface ProcessStatus {
  readonly uid: number;
  readonly gid: number;
  readonly supplementaryGids: readonly number[];
}

/**
 * Proves that the caller still is the process, the program and the user that connected; only then do facts read
 * before belong to it. Throws `unauthenticated`. T-W1.
 */
export async function verifyCaller(peer: PeerProcess, procRoot = PROC): Promise<void> {
  if (peer.pid <= 0) throw gone("its PID is not visible here");
  readCallerStatus(peer, procRoot);
  const { startTime, image } = parseStat(readProcText(peer, "stat", procRoot));
  if (startTime !== peer.startTime) throw gone("its PID means another process now");
  if (image !== peer.image) throw gone("it runs another program now");
  if (peer.executable !== undefined) {
    const now = libc().fileOf(procPath(procRoot, peer, "exe"));
    if (now === undefined) throw gone("its program cannot be seen any more");
    if (now.device !== peer.executable.device || now.inode !== peer.executable.inode)
      throw gone("it runs another program now");
  }
  if (!peer.isAlive()) throw gone("it has exited");
}

/** Throws `unauthenticated` when the process has another user or group than when it connected. */
export function readCallerStatus(peer: PeerProcess, procRoot = PROC): ProcessStatus {
  const text = readProcText(peer, "status", procRoot);
  const { uid, gid, realUid, realGid } = parseIds(text);
  const pairs = [
    ["uid", uid, peer.uid],
    ["gid", gid, peer.gid],
    ["real uid", realUid, peer.realUid],
    ["real gid", realGid, peer.realGid],
  ] as const;
  for (const [what, now, then] of pairs)
    if (now !== then) throw gone(`process ${what} ${now} does not match original caller ${then}`);
  return { uid, gid, supplementaryGids: statusNumbers(text, "Groups") };
}

const CAP_SYS_PTRACE = 19n;

/**
 * Whether who has this status may see the programs of other users' processes; who may not cannot tell when one of them
 * has become another program.
 */
export function seesPrograms(status: string): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1];
  return effective !== undefined && ((BigInt(`0x${effective}`) >> CAP_SYS_PTRACE) & 1n) === 1n;
}

/** The program a process runs: the file itself, held open so that path and contents are of one and the same file. */
export interface Executable extends AsyncDisposable, FileIdentity {
  /** Without the right to read. */
  readonly file: FileHandle;
  /** As the kernel names it; ends with ` (deleted)` when the file has no name any more. */
  readonly path: string;
}

/** Throws `unavailable` when it cannot be opened, `unauthenticated` when it is not the program that connected. */
export async function openExecutable(peer: PeerProcess, procRoot = PROC): Promise<Executable> {
  await using scope = new AsyncDisposableStack();
  const file = scope.use(await pathLookup(open(procPath(procRoot, peer, "exe"), O_PATH)));
  const opened = libc().fileOf(`/proc/self/fd/${file.fd}`);
  if (opened === undefined || opened.device !== peer.executable?.device || opened.inode !== peer.executable.inode)
    throw gone("it runs another program now");
  const path = await pathLookup(readlink(`/proc/self/fd/${file.fd}`, { encoding: "buffer" }));
  if (!isUtf8(path)) throw new Fault("unavailable", "path lookup: path is not UTF-8", { code: "path-lookup" });
  const held = scope.move();
  return { ...opened, file, path: path.toString(), [Symbol.asyncDispose]: () => held.disposeAsync() };
}

/** Text of a file in the caller's folder, latin1, at most 1 MiB. Throws `unauthenticated` when the caller is gone. */
export function readProcText(peer: PeerProcess, name: string, procRoot = PROC): string {
  try {
    return readProcFile(procPath(procRoot, peer, name));
  } catch (error) {
    throw error instanceof Fault ? error : gone(messageOf(error));
  }
}

function procPath(procRoot: string, peer: PeerProcess, name: string): string {
  return join(procRoot, String(peer.pid), name);
}

async function pathLookup<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw new Fault("unavailable", `path lookup: ${messageOf(error)}`, {
      code: "path-lookup",
      hint: "discover_workload_path needs an agent that may see the programs of its callers: run it as root",
      cause: error,
    });
  }
}

function gone(reason: string): Fault {
  return new Fault("unauthenticated", `could not verify existence of the original caller: ${reason}`, {
    code: "caller-changed",
  });
}
