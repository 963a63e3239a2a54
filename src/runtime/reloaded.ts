import type { Stats } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { Fault, messageOf } from "./fault.ts";

export interface ReloadedOptions<T> {
  readonly paths: readonly string[];
  /** Makes the value of all contents, in the order of the paths. Throws when they are no good. */
  readonly read: (contents: readonly string[]) => T;
  /** For a change that can't be used: the value from before stays. */
  readonly rejected: (error: Fault) => void;
}

const MAX_BYTES = 4 * 1024 * 1024;
/** Read at least, for files that do not tell their size. */
const MIN_BYTES = 4096;

interface Content {
  readonly mark: string;
  readonly text: string;
}

/** A value that files hold; they are looked at whenever it is asked for, and read again when one has changed. */
export class Reloaded<T> {
  readonly #options: ReloadedOptions<T>;
  #kept: { readonly value: T } | undefined;
  #mark = "";

  constructor(options: ReloadedOptions<T>) {
    this.#options = options;
  }

  /** Throws what is wrong with the files until they have been good once. */
  async value(): Promise<T> {
    try {
      return await this.#current();
    } catch (error) {
      if (this.#kept === undefined) throw error;
      return this.#kept.value;
    }
  }

  async #current(): Promise<T> {
    const { paths, read, rejected } = this.#options;
    if (this.#kept !== undefined && (await marksOf(paths)) === this.#mark) return this.#kept.value;
    const contents = await Promise.all(paths.map(readContent));
    const mark = contents.map((content) => (content instanceof Fault ? content.message : content.mark)).join("\n");
    if (this.#kept !== undefined && mark === this.#mark) return this.#kept.value;
    this.#mark = mark;
    try {
      const value = read(contents.map(textOf));
      this.#kept = { value };
      return value;
    } catch (error) {
      if (this.#kept !== undefined) rejected(Fault.from(error));
      throw error;
    }
  }
}

function textOf(content: Content | Fault): string {
  if (content instanceof Fault) throw content;
  return content.text;
}

async function readContent(path: string): Promise<Content | Fault> {
  try {
    await using file = await open(path, "r");
    const found = await file.stat();
    return { mark: markOf(found), text: await readCapped(path, file, found.size) };
  } catch (error) {
    if (error instanceof Fault) return error;
    return new Fault("invalid", `unable to read ${path}: ${messageOf(error)}`, { code: "file-error", cause: error });
  }
}

/** Without a look inside: an attestation asks each time. Undefined when one of the files is not there. */
async function marksOf(paths: readonly string[]): Promise<string | undefined> {
  try {
    return (await Promise.all(paths.map(async (path) => markOf(await stat(path))))).join("\n");
  } catch {
    return undefined;
  }
}

function markOf({ dev, ino, size, mtimeMs, ctimeMs }: Stats): string {
  return [dev, ino, size, mtimeMs, ctimeMs].join(":");
}

async function readCapped(path: string, file: FileHandle, size: number): Promise<string> {
  const room = Math.min(Math.max(size, MIN_BYTES), MAX_BYTES) + 1;
  const { buffer, bytesRead } = await file.read(Buffer.alloc(room), 0, room, 0);
  // It has grown meanwhile, or is no ordinary file.
  if (bytesRead === room && room <= MAX_BYTES) return readCapped(path, file, MAX_BYTES);
  if (bytesRead > MAX_BYTES) throw new Fault("invalid", `${path} is larger than 4 MiB`, { code: "file-too-large" });
  return buffer.toString("utf8", 0, bytesRead);
}
