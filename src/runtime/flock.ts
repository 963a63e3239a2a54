import { Fault } from "./fault.ts";

const LOCK_EXCLUSIVE = 2;
const LOCK_NON_BLOCKING = 4;

/**
 * Locks an open file by flock(2), which Node doesn't offer: the kernel drops the lock when the process ends, whoever's
 * pid it has in whichever container. False when somebody else holds it.
 */
export async function tryLock(fd: number): Promise<boolean> {
  // Loaded on use: only programs with a data directory need it.
  const { default: koffi } = await import("koffi");
  const flock = koffi.load(null).func("int flock(int fd, int operation)");
  if (flock(fd, LOCK_EXCLUSIVE | LOCK_NON_BLOCKING) === 0) return true;
  const errno = koffi.errno();
  if (errno === koffi.os.errno.EAGAIN) return false;
  throw new Fault("unavailable", `unable to lock a file: error ${errno}`, { code: "lock-failed" });
}
