import { randomBytes } from "node:crypto";
import { constants, type Stats } from "node:fs";
import { chmod, lstat, mkdir, open, realpath, rename, rm } from "node:fs/promises";
import { basename, dirname, join, resolve, sep } from "node:path";
import { Fault, messageOf } from "./fault.ts";

/**
 * Creates the directory and its missing parents with exactly this mode, whatever the umask, and checks the way to it
 * with `checkDirectory`. A directory that exists keeps its mode.
 */
export async function ensureDirectory(path: string, mode: number): Promise<void> {
  const target = resolve(path);
  // One by one, since a umask may take the owner's own rights to what was just made.
  await attempt(`unable to create directory ${target}`, makeMissing(target, mode));
  await checkDirectory(target);
}

async function makeMissing(target: string, mode: number): Promise<void> {
  for (const step of ancestors(target)) {
    const made = await mkdir(step, { mode }).then(
      () => true,
      (error: NodeJS.ErrnoException) => (error.code === "EEXIST" ? false : Promise.reject(error)),
    );
    if (made) await chmod(step, mode);
  }
}

/** `ensureDirectory` for keys and state: nobody but the owner may look inside. */
export async function ensurePrivateDirectory(path: string): Promise<void> {
  await ensureDirectory(path, 0o700);
}

/**
 * Throws `precondition` when a user whom nobody chose could replace what lies in the directory (T-W10): a directory
 * on the way that everyone may write to and that isn't sticky, or one that another user put into a sticky one such as
 * /tmp. Symbolic links are checked themselves and followed. The root of a mount counts as chosen by the administrator.
 */
export async function checkDirectory(path: string): Promise<void> {
  const lexical = resolve(path);
  await checkWay(lexical);
  const real = await attempt(`unable to resolve ${lexical}`, realpath(lexical));
  if (real !== lexical) await checkWay(real);
}

/**
 * Replaces the file in one step: readers see the old or the new content, also after a crash. The file has mode 0600
 * from its creation on, whatever the umask (T-F2).
 */
export async function writePrivateFile(path: string, content: string | Uint8Array): Promise<void> {
  await writeFileOnce(path, content, 0o600);
}

/** As `writePrivateFile`, for what anyone may read: certificates and bundles. Mode 0644. */
export async function writePublicFile(path: string, content: string | Uint8Array): Promise<void> {
  await writeFileOnce(path, content, 0o644);
}

async function writeFileOnce(path: string, content: string | Uint8Array, mode: number): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}.tmp`);
  await attempt(`unable to write ${path}`, replaceFile({ path, temporary, content, mode }));
}

interface Replacement {
  readonly path: string;
  readonly temporary: string;
  readonly content: string | Uint8Array;
  readonly mode: number;
}

async function replaceFile({ path, temporary, content, mode }: Replacement): Promise<void> {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
  const file = await open(temporary, flags, 0o600);
  try {
    try {
      await file.chmod(mode);
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncDirectory(dirname(path));
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

async function checkWay(path: string): Promise<void> {
  let parent: Stats | undefined;
  for (const step of ancestors(path)) {
    const stats = await attempt(`unable to look at ${step}`, lstat(step));
    checkStep(step, stats, parent);
    parent = stats.isDirectory() ? stats : undefined;
  }
}

function checkStep(step: string, stats: Stats, parent: Stats | undefined): void {
  if (parent !== undefined && anyoneMayWrite(parent) && !ownedByUs(stats)) {
    throw unsafe(
      `${step} belongs to user ${stats.uid} in a directory that everyone can write to`,
      "remove it, or use another directory",
    );
  }
  if (stats.isSymbolicLink()) return;
  if (!stats.isDirectory()) throw unsafe(`${step} is not a directory`, "remove it, or use another directory");
  const sticky = (stats.mode & 0o1000) !== 0;
  const mountPoint = parent !== undefined && parent.dev !== stats.dev;
  if (anyoneMayWrite(stats) && !sticky && !mountPoint) {
    throw unsafe(
      `directory ${step} can be written to by everyone`,
      `run "chmod o-w ${step}", or use another directory`,
    );
  }
}

function anyoneMayWrite(stats: Stats): boolean {
  return (stats.mode & 0o002) !== 0;
}

function ownedByUs(stats: Stats): boolean {
  return stats.uid === 0 || stats.uid === process.geteuid?.();
}

function unsafe(message: string, hint: string): Fault {
  return new Fault("precondition", message, { code: "directory-unsafe", hint });
}

/** The root, then every directory on the way, then the path itself. */
function ancestors(path: string): readonly string[] {
  const names = path.split(sep).filter((name) => name !== "");
  return [sep, ...names.map((_, index) => sep + names.slice(0, index + 1).join(sep))];
}

/** What the work gives. Throws `unavailable` that says what was tried and why it failed. */
export async function attempt<T>(what: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    if (cause instanceof Fault) throw cause;
    throw new Fault("unavailable", `${what}: ${messageOf(cause)}`, { code: "file-error", cause });
  }
}
