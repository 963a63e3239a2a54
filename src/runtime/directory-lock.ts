import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { Fault } from "./fault.ts";
import { attempt } from "./files.ts";

const LOCK_EXCLUSIVE = 2;
const LOCK_NON_BLOCKING = 4;

/**
 * Takes the directory for this process, by a lock that the kernel drops when the process ends, however it ends.
 * Throws `precondition` naming the holder's pid when it's taken.
 */
export async function lockDirectory(path: string): Promise<AsyncDisposable> {
  const name = join(path, "steeple.lock");
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
  const file = await attempt(`unable to open ${name}`, open(name, flags, 0o600));
  try {
    if (!(await tryLock(file.fd))) throw await heldBy(path, file);
    await file.truncate(0);
    await file.write(`${process.pid}\n`, 0);
  } catch (error) {
    await file.close();
    throw error;
  }
  return { [Symbol.asyncDispose]: () => file.close() };
}

async function heldBy(path: string, file: FileHandle): Promise<Fault> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(16), 0, 16, 0);
  const pid = /^\d+$/.exec(buffer.toString("latin1", 0, bytesRead).trim())?.[0];
  const holder = pid === undefined ? "another process" : `process ${pid}`;
  return new Fault("precondition", `directory ${path} is in use by ${holder}`, {
    code: "directory-locked",
    hint: "stop that process, or use another directory",
  });
}

/**
 * Locks an open file by flock(2), which Node doesn't offer: the kernel drops the lock when the process ends, whoever's
 * pid it has in whichever container. False when somebody else holds it.
 */
async function tryLock(fd: number): Promise<boolean> {
  // Loaded on use: only programs with a data directory need it.
  const { default: koffi } = await import("koffi");
  const flock = koffi.load(null).func("int flock(int fd, int operation)");
  if (flock(fd, LOCK_EXCLUSIVE | LOCK_NON_BLOCKING) === 0) return true;
  const errno = koffi.errno();
  if (errno === koffi.os.errno.EAGAIN) return false;
  throw new Fault("unavailable", `unable to lock a file: error ${errno}`, { code: "lock-failed" });
}
