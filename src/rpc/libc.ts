import { endianness } from "node:os";
import koffi from "koffi";
import { once } from "./once.ts";

/** The few calls into the C library that Node has no way to make. Linux. */
export interface Libc {
  /** Returns the option's bytes, or the errno. */
  getsockopt(fd: number, option: number, size: number): Buffer | number;
  /** A new file descriptor, or the errno negated. */
  pidfdOpen(pid: number): number;
  /** True once the process behind the descriptor has exited, reaped or not. */
  hasExited(pidfd: number): boolean;
  /** The same for many at once, in their order. */
  haveExited(pidfds: readonly number[]): readonly boolean[];
  /** Sends bytes and a copy of an open file over a Unix socket without waiting: how many bytes, or the errno negated. */
  sendDescriptor(socket: number, bytes: Buffer, descriptor: number): number;
  /**
   * Which file a path leads to, links followed; undefined when there is none that we may see. Does not wait for a file
   * system that does not answer, as stat(2) does: what the kernel knows is enough. statx(2).
   */
  fileOf(path: string): FileIdentity | undefined;
  /**
   * Opens a path below a folder for looking at, without following links: a new descriptor, or the errno negated. Looks in
   * the kernel's memory alone, so that no file system is waited for; what a process runs is always there. openat2(2).
   */
  openKnown(folder: number, path: string): number;
  /** The user namespace that owns another namespace: a new descriptor, or the errno negated. ioctl_ns(2). */
  ownerOf(namespace: number): number;
  /** Effective user who made a user namespace, as we number users; or the errno negated. ioctl_ns(2). */
  makerOf(userNamespace: number): number;
  /** Takes an exclusive lock without waiting; false when another open file holds it. */
  tryLock(fd: number): boolean;
}

/** As stat(2) gives them. */
export interface FileIdentity {
  readonly device: bigint;
  readonly inode: bigint;
}

const AT_FDCWD = -100;
const AT_STATX_DONT_SYNC = 0x4000;
const STATX_INO = 0x100;
const STATX_BYTES = 256;
const SOL_SOCKET = 1;
const SYS_PIDFD_OPEN = 434;
const SYS_OPENAT2 = 437;
const OPEN_HOW_BYTES = 24;
/** O_PATH | O_CLOEXEC. */
const PATH_ONLY = 0o12000000n;
/** RESOLVE_CACHED | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS. */
const KNOWN_ONLY = 0x20n | 0x04n | 0x02n;
const EAGAIN = 11;
/** Whatever is renamed anywhere at that moment may disturb a look. */
const LOOKS = 20;
const NS_GET_USERNS = 0xb701;
const NS_GET_OWNER_UID = 0xb704;
const POLLIN = 1;
const POLLFD_BYTES = 8;
const LOCK_EX_NB = 2 | 4;
const SCM_RIGHTS = 1;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/** Loads at the first call; throws where there is no such library. */
export const libc = once(load);

function load(): Libc {
  const library = koffi.load(null);
  const getsockopt = library.func(
    "int getsockopt(int fd, int level, int option, _Out_ uint8_t *value, _Inout_ uint32_t *size)",
  );
  const syscall = library.func("long syscall(long number, long first, long second)");
  const poll = library.func("int poll(_Inout_ uint8_t *fds, unsigned long count, int timeout)");
  const vector = koffi.struct({ base: "const uint8_t *", size: "size_t" });
  const message = koffi.struct({
    ...{ name: "const uint8_t *", nameSize: "uint32_t", vectors: koffi.pointer(vector), vectorCount: "size_t" },
    ...{ control: "const uint8_t *", controlSize: "size_t", flags: "int" },
  });
  const sendmsg = library.func("sendmsg", "long", ["int", koffi.pointer(message), "int"]);
  const statx = library.func(
    "int statx(int folder, const char *path, int flags, unsigned int mask, _Out_ uint8_t *found)",
  );
  const flock = library.func("int flock(int fd, int operation)");
  const haveExited = (pidfds: readonly number[]): readonly boolean[] => {
    const entries = Buffer.alloc(pidfds.length * POLLFD_BYTES);
    for (const [at, pidfd] of pidfds.entries()) {
      entries.writeInt32LE(pidfd, at * POLLFD_BYTES);
      entries.writeInt16LE(POLLIN, at * POLLFD_BYTES + 4);
    }
    poll(entries, pidfds.length, 0);
    return pidfds.map((_, at) => entries.readInt16LE(at * POLLFD_BYTES + 6) !== 0);
  };
  return {
    getsockopt(fd, option, size) {
      const value = Buffer.alloc(size);
      const length = [size];
      if (getsockopt(fd, SOL_SOCKET, option, value, length) !== 0) return koffi.errno();
      return value.subarray(0, length[0]);
    },
    pidfdOpen(pid) {
      const fd = Number(syscall(SYS_PIDFD_OPEN, pid, 0));
      return fd < 0 ? -koffi.errno() : fd;
    },
    hasExited: (pidfd) => haveExited([pidfd])[0] === true,
    haveExited,
    sendDescriptor(socket, bytes, descriptor) {
      const control = controlOf(descriptor);
      const vectors = [{ base: bytes, size: bytes.length }];
      const header = {
        name: null,
        nameSize: 0,
        vectors,
        vectorCount: 1,
        control,
        controlSize: control.length,
        flags: 0,
      };
      const sent = Number(sendmsg(socket, header, MSG_DONTWAIT | MSG_NOSIGNAL));
      return sent < 0 ? -koffi.errno() : sent;
    },
    fileOf(path) {
      const found = Buffer.alloc(STATX_BYTES);
      return statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_INO, found) === 0 ? identityOf(found) : undefined;
    },
    ...lookingCalls(library),
    tryLock: (fd) => flock(fd, LOCK_EX_NB) === 0,
  };
}

function lookingCalls(library: ReturnType<typeof koffi.load>): Pick<Libc, "openKnown" | "ownerOf" | "makerOf"> {
  const openat2 = library.func("syscall", "long", ["long", "int", "const char *", "const uint8_t *", "size_t"]);
  const ioctl = library.func("int ioctl(int fd, unsigned long request, _Out_ uint8_t *found)");
  return {
    openKnown(folder, path) {
      const how = Buffer.from(new BigUint64Array([PATH_ONLY, 0n, KNOWN_ONLY]).buffer);
      for (let looks = 0; looks < LOOKS; looks += 1) {
        const fd = Number(openat2(SYS_OPENAT2, folder, path, how, OPEN_HOW_BYTES));
        if (fd >= 0) return fd;
        if (koffi.errno() !== EAGAIN) break;
      }
      return -koffi.errno();
    },
    ownerOf(namespace) {
      const fd = ioctl(namespace, NS_GET_USERNS, null);
      return fd < 0 ? -koffi.errno() : fd;
    },
    makerOf(userNamespace) {
      const uid = new Uint32Array(1);
      const failed = ioctl(userNamespace, NS_GET_OWNER_UID, Buffer.from(uid.buffer)) < 0;
      return failed ? -koffi.errno() : (uid[0] ?? 0);
    },
  };
}

/** Of a `struct statx`: stx_ino, stx_dev_major, stx_dev_minor; the device's number is made as makedev(3) does. */
function identityOf(found: Buffer): FileIdentity {
  const view = new DataView(found.buffer, found.byteOffset, STATX_BYTES);
  const isLittle = endianness() === "LE";
  const [major, minor] = [136, 140].map((at) => BigInt(view.getUint32(at, isLittle))) as [bigint, bigint];
  const device = ((major & ~0xfffn) << 32n) | ((major & 0xfffn) << 8n) | ((minor & ~0xffn) << 12n) | (minor & 0xffn);
  return { device, inode: view.getBigUint64(32, isLittle) };
}

/** One control message, cmsg(3): its length as size_t, level, type, and the descriptor, padded. 64 bits. */
function controlOf(descriptor: number): Buffer {
  const control = Buffer.alloc(24);
  const isLittle = endianness() === "LE";
  const word = (value: number, at: number): number =>
    isLittle ? control.writeInt32LE(value, at) : control.writeInt32BE(value, at);
  word(20, isLittle ? 0 : 4);
  word(SOL_SOCKET, 8);
  word(SCM_RIGHTS, 12);
  word(descriptor, 16);
  return control;
}
