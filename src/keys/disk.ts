import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { generateKey, type LocalSigner, localSigner, privateKeyFromPkcs8, privateKeyToPkcs8 } from "../crypto/key.ts";
import { Fault, messageOf } from "../runtime/fault.ts";
import { ensurePrivateDirectory, writePrivateFile } from "../runtime/files.ts";
import type { ExportingKeyManager } from "./keys.ts";
import { exportFrom, findIn, listOf, managedKey } from "./memory.ts";

/** A key manager that keeps its keys in one file. */
export interface DiskKeys extends ExportingKeyManager {
  /** What was put right while opening, for the log. */
  readonly notices: readonly string[];
}

type Signers = ReadonlyMap<string, LocalSigner>;

const MAX_FILE_BYTES = 4 * 1024 * 1024;
const BASE64 = /^[A-Za-z0-9+/]+={0,2}$/;

/**
 * Keys in SPIRE's file form, `{"keys":{"<id>":"<base64 PKCS#8>"}}`, mode 0600. A file that others may read or write is
 * tightened, and a notice says so. Throws `invalid` for a file that does not read, which stays as it is. T-F2.
 */
export async function openDiskKeys(file: string): Promise<DiskKeys> {
  const path = resolve(file);
  await ensurePrivateDirectory(dirname(path));
  const { signers, notices } = await load(path);
  let current = signers;
  let last: Promise<unknown> = Promise.resolve();
  const replace = async (id: string, signer: LocalSigner): Promise<void> => {
    const next = new Map(current).set(id, signer);
    await writePrivateFile(path, serialize(next));
    current = next;
  };
  return {
    notices,
    async generate(id, type) {
      const signer = await generateKey(type);
      const stored = last.then(() => replace(id, signer));
      last = stored.catch(() => undefined);
      await stored;
      return managedKey(id, signer);
    },
    find: async (id) => findIn(current, id),
    list: async () => listOf(current),
    exportPrivateKey: async (id) => exportFrom(current, id),
    async [Symbol.asyncDispose]() {
      await last;
    },
  };
}

function serialize(signers: Signers): string {
  const sorted = [...signers].sort(([a], [b]) => (a < b ? -1 : 1));
  const keys = sorted.map(([id, { privateKey }]) => [
    id,
    Buffer.from(privateKeyToPkcs8(privateKey)).toString("base64"),
  ]);
  return JSON.stringify({ keys: Object.fromEntries(keys) }, undefined, "\t");
}

async function load(path: string): Promise<{ readonly signers: Signers; readonly notices: readonly string[] }> {
  const file = await openExisting(path);
  if (file === undefined) return { signers: new Map(), notices: [] };
  try {
    const stats = await file.stat();
    if (!stats.isFile()) throw unreadable(path, "it is not a file");
    const notices = await tighten(file, path, stats.mode);
    if (stats.size > MAX_FILE_BYTES) throw corrupt(path, "it is larger than 4 MiB");
    return { signers: parse(path, await file.readFile("utf8")), notices };
  } finally {
    await file.close();
  }
}

async function tighten(file: FileHandle, path: string, mode: number): Promise<readonly string[]> {
  if ((mode & 0o077) === 0) return [];
  await file.chmod(0o600);
  return [`key file ${path} was open to other users; its mode is 0600 now`];
}

async function openExisting(path: string): Promise<FileHandle | undefined> {
  try {
    // A pipe in the place of the file must not hold up the start.
    return await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw unreadable(path, messageOf(cause), cause);
  }
}

function unreadable(path: string, reason: string, cause?: unknown): Fault {
  return new Fault("unavailable", `unable to open key file ${path}: ${reason}`, { code: "key-file", cause });
}

function parse(path: string, text: string): Signers {
  const signers = new Map<string, LocalSigner>();
  for (const [id, value] of Object.entries(readKeys(path, text))) {
    if (typeof value !== "string" || !BASE64.test(value)) throw corrupt(path, `key "${id}" is not base64`);
    try {
      signers.set(id, localSigner(privateKeyFromPkcs8(Buffer.from(value, "base64"))));
    } catch (cause) {
      throw corrupt(path, `unable to parse key "${id}": ${messageOf(cause)}`);
    }
  }
  return signers;
}

function readKeys(path: string, text: string): object {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch {
    // The parser's own message may quote the text, which holds private keys.
    throw corrupt(path, "unable to decode keys JSON");
  }
  const keys = typeof data === "object" && data !== null && "keys" in data ? data.keys : undefined;
  if (typeof keys !== "object" || keys === null || Array.isArray(keys)) throw corrupt(path, 'it has no "keys" object');
  return keys;
}

function corrupt(path: string, reason: string): Fault {
  return new Fault("invalid", `key file ${path} cannot be read: ${reason}`, {
    code: "key-file",
    hint: "restore the file from a copy, or move it away to start with new keys",
  });
}
