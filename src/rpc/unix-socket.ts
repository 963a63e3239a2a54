import { randomBytes } from "node:crypto";
import {
  chmodSync,
  closeSync,
  constants,
  lstatSync,
  mkdirSync,
  openSync,
  realpathSync,
  renameSync,
  type Stats,
  unlinkSync,
} from "node:fs";
import { connect, type Server } from "node:net";
import { basename, dirname, join, resolve, sep } from "node:path";
import type { Clock } from "../runtime/clock.ts";
import { Fault, isFault, messageOf } from "../runtime/fault.ts";
import { checkDirectory } from "../runtime/files.ts";
import type { Log } from "../runtime/log.ts";
import { Backoff } from "../runtime/task.ts";
import { libc } from "./libc.ts";
import { listenerPid } from "./peer-credentials.ts";

export interface SocketPlace {
  readonly path: string;
  /** Permission bits: connecting takes write permission. */
  readonly mode: number;
}

/** The kernel holds no more than this, its final NUL aside. */
const MAX_PATH_BYTES = 107;
const BACKLOG = 4096;
const LOCK_PATIENCE_MS = 5_000;

/**
 * Makes the server listen at the path and returns how to take the socket away again. The socket is made under another
 * name with no access for others, gets its mode, and only then its own name, so that there is no moment with the wrong
 * mode and none without a socket when a dead one is replaced (T-W10).
 */
export async function listenAt(
  server: Server,
  place: SocketPlace,
  { clock, log }: { readonly clock: Clock; readonly log: Pick<Log, "warn"> },
): Promise<() => void> {
  const path = checkedPath(place.path);
  try {
    await prepareDirectory(dirname(path), log);
    return await claim(server, { path, mode: place.mode }, clock);
  } catch (cause) {
    if (cause instanceof Fault) throw cause;
    throw new Fault("precondition", `could not listen on "unix://${path}": ${messageOf(cause)}`, {
      code: "listen-failed",
      cause,
    });
  }
}

async function claim(server: Server, { path, mode }: SocketPlace, clock: Clock): Promise<() => void> {
  const lock = await lockPath(path, clock);
  try {
    await refuseIfInUse(path);
    const fresh = join(dirname(path), `.${randomBytes(3).toString("hex")}`);
    await listenPrivately(server, fresh);
    chmodSync(fresh, mode);
    const made = lstatSync(fresh);
    renameSync(fresh, path);
    return () => removeOwn(path, made);
  } finally {
    closeSync(lock);
  }
}

function checkedPath(path: string): string {
  const absolute = resolve(path);
  const length = Buffer.byteLength(absolute);
  if (length > MAX_PATH_BYTES) {
    throw new Fault("invalid", `socket path "${absolute}" is ${length} bytes long; at most ${MAX_PATH_BYTES} fit`, {
      code: "socket-path-too-long",
      hint: "choose a shorter path",
    });
  }
  return absolute;
}

/**
 * Creates what is missing. Every folder and link on the way, and on the way that links lead, belongs to root or to us,
 * else its owner could put a socket of his own in place of ours. So could anybody in a folder that everyone may write to:
 * whoever made it so is warned, since SPIRE's own examples do.
 */
async function prepareDirectory(directory: string, log: Pick<Log, "warn">): Promise<void> {
  withUmask(0o022, () => mkdirSync(directory, { recursive: true, mode: 0o755 }));
  for (const way of [directory, realpathSync(directory)]) checkOwners(way, directory);
  try {
    await checkDirectory(directory);
  } catch (error) {
    if (!isFault(error, "precondition")) throw error;
    log.warn("Anybody on this machine can put another socket in the place of this one", {
      path: directory,
      error: error.message,
    });
  }
}

function checkOwners(way: string, directory: string): void {
  const parts = way.split(sep);
  for (let depth = 1; depth <= parts.length; depth++) {
    const step = parts.slice(0, depth).join(sep) || sep;
    const { uid } = lstatSync(step);
    if (uid !== 0 && uid !== process.geteuid?.()) {
      throw new Fault(
        "precondition",
        `the socket directory "${directory}" is not safe: "${step}" belongs to uid ${uid}`,
        {
          code: "socket-directory-owner",
          hint: "use a directory that only root or the running user can replace",
        },
      );
    }
  }
}

/** Held only while a path is being claimed; the kernel lets go of it when the process dies. */
async function lockPath(path: string, clock: Clock): Promise<number> {
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
  const lock = openSync(join(dirname(path), `.${basename(path)}.lock`), flags, 0o600);
  const backoff = new Backoff(clock, { firstMs: 20, maxMs: 200 });
  const started = clock.monotonic();
  try {
    while (!libc().tryLock(lock)) {
      if (clock.monotonic() - started > LOCK_PATIENCE_MS) {
        throw new Fault("precondition", `another process is opening the socket "${path}"`, { code: "socket-in-use" });
      }
      await clock.sleep(backoff.next());
    }
    return lock;
  } catch (error) {
    closeSync(lock);
    throw error;
  }
}

async function refuseIfInUse(path: string): Promise<void> {
  const existing = lstatSync(path, { throwIfNoEntry: false });
  if (existing === undefined) return;
  if (!existing.isSocket()) {
    throw new Fault("precondition", `"${path}" is in the way: it is not a socket`, {
      code: "socket-path-taken",
      hint: "remove it, or choose another path",
    });
  }
  const holder = await probe(path);
  if (holder === undefined) return;
  throw new Fault(
    "precondition",
    `the socket "${path}" is in use${holder.pid === undefined ? "" : ` by process ${holder.pid}`}`,
    {
      code: "socket-in-use",
      hint: "stop that process first, or choose another path",
    },
  );
}

/** Undefined when nobody listens. Only a refused connection proves that. */
function probe(path: string): Promise<{ readonly pid: number | undefined } | undefined> {
  return new Promise((done) => {
    const socket = connect(path);
    socket.on("connect", () => {
      done({ pid: listenerPid(socket) });
      socket.destroy();
    });
    socket.on("error", (error: NodeJS.ErrnoException) =>
      done(error.code === "ECONNREFUSED" || error.code === "ENOENT" ? undefined : { pid: undefined }),
    );
  });
}

/** `bind` happens inside `listen`, before it returns. */
function listenPrivately(server: Server, path: string): Promise<void> {
  return new Promise((done, fail) => {
    server.once("error", fail);
    withUmask(0o077, () => {
      server.listen({ path, backlog: BACKLOG }, () => {
        server.off("error", fail);
        done();
      });
    });
  });
}

/** The umask is the whole process's, so `work` must not wait for anything. */
function withUmask(mask: number, work: () => void): void {
  const before = process.umask(mask);
  try {
    work();
  } finally {
    process.umask(before);
  }
}

function removeOwn(path: string, made: Stats): void {
  const present = lstatSync(path, { throwIfNoEntry: false });
  if (present?.ino === made.ino && present.dev === made.dev) unlinkSync(path);
}
