import { closeSync, constants, fstatSync, openSync, statSync } from "node:fs";
import { join } from "node:path";
import { type FileIdentity, libc } from "../../src/rpc/libc.ts";
import { once } from "../../src/rpc/once.ts";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";

/** Linux; not among Node's constants. */
const O_PATH = 0o10000000;
const EPERM = 1;
const EINVAL = 22;
const ENOSYS = 38;
const DELETED = " (deleted)";

/** What a caller runs, and the name that the kernel has for it. */
export interface NamedProgram extends FileIdentity {
  readonly path: string;
}

/**
 * Whether the file that the caller runs has this name: in our own tree of files, or in the caller's, unless an ordinary
 * user could have arranged that. Whoever may make user namespaces may mount what he likes where he likes in a tree of his
 * own, and the kernel gives the name that his program has there. A file that has been deleted has no name that could be
 * wrong. T-W1.
 */
export function isNamed(peer: PeerProcess, program: NamedProgram, procRoot: string): boolean {
  if (program.path.endsWith(DELETED)) return true;
  const found = opened("/", (root) => isAt(root, program));
  if (found !== false) return found ?? isOrdinary(peer, procRoot);
  if (!isOrdinary(peer, procRoot)) return false;
  return opened(join(procRoot, String(peer.pid), "root"), (root) => isAt(root, program)) ?? false;
}

/** Undefined on kernels that cannot say without waiting for a file system: before 5.12. */
function isAt(root: number, { path, device, inode }: NamedProgram): boolean | undefined {
  const file = libc().openKnown(root, `.${path}`);
  if (file === -ENOSYS || file === -EINVAL) return undefined;
  if (file < 0) return false;
  try {
    const found = libc().fileOf(`/proc/self/fd/${file}`);
    return found?.device === device && found.inode === inode;
  } finally {
    closeSync(file);
  }
}

/** Whether neither the caller's users nor its tree of files are those of a namespace that an ordinary user made. */
function isOrdinary({ pid }: PeerProcess, procRoot: string): boolean {
  const namespace = (name: string): string => join(procRoot, String(pid), "ns", name);
  const users = opened(namespace("user"), (fd) => isTrusted(fd));
  const files = opened(namespace("mnt"), (fd) => {
    const owner = libc().ownerOf(fd);
    if (owner < 0) return owner === -EPERM;
    try {
      return isTrusted(owner);
    } finally {
      closeSync(owner);
    }
  });
  return users === true && files === true;
}

/** Ours, or made by root or by our own user. */
function isTrusted(userNamespace: number): boolean {
  if (fstatSync(userNamespace).ino === ourUsers()) return true;
  const maker = libc().makerOf(userNamespace);
  return maker === 0 || maker === process.geteuid?.();
}

const ourUsers = once(() => statSync("/proc/self/ns/user").ino);

/** What `use` says of what is there; false when there is nothing. */
function opened<T>(path: string, use: (fd: number) => T): T | false {
  let fd: number;
  try {
    fd = openSync(path, path.includes("/ns/") ? constants.O_RDONLY : O_PATH);
  } catch {
    return false;
  }
  try {
    return use(fd);
  } finally {
    closeSync(fd);
  }
}
