import { readFileSync, statSync } from "node:fs";
import { Fault } from "../../src/runtime/fault.ts";

/** Far above any real account file; a larger one is refused before it is read. */
const MAX_FILE_BYTES = 32 * 1024 * 1024;
const MAX_ID = 0xffff_ffff;

/**
 * Names of users and groups, from files in the form of `/etc/passwd` and `/etc/group`, read again when they change.
 * Sources that only the C library's name service switch reaches (LDAP, SSSD) are not asked: their accounts have
 * numbers and no names here, as in a statically linked agent.
 */
export class AccountNames {
  readonly #users: IdTable;
  readonly #groups: IdTable;

  constructor(files: { readonly passwd?: string; readonly group?: string } = {}) {
    this.#users = new IdTable(files.passwd ?? "/etc/passwd");
    this.#groups = new IdTable(files.group ?? "/etc/group");
  }

  /** As the files are at this moment. Throws when one cannot be read. */
  now(): Accounts {
    return { users: this.#users.now(), groups: this.#groups.now() };
  }
}

/** Names by number. */
export interface Accounts {
  readonly users: ReadonlyMap<number, string>;
  readonly groups: ReadonlyMap<number, string>;
}

/**
 * One file of lines `name:password:id:…`. A missing file holds no names. Looking whether it has changed costs less than
 * having another thread do so.
 */
class IdTable {
  readonly #path: string;
  #stamp = "";
  #names: ReadonlyMap<number, string> = new Map();

  constructor(path: string) {
    this.#path = path;
  }

  now(): ReadonlyMap<number, string> {
    const stamp = this.#currentStamp();
    if (stamp !== this.#stamp) {
      this.#names = stamp === "" ? new Map() : parseAccounts(readFileSync(this.#path, "utf8"));
      this.#stamp = stamp;
    }
    return this.#names;
  }

  #currentStamp(): string {
    const found = statSync(this.#path, { bigint: true, throwIfNoEntry: false });
    if (found === undefined) return "";
    const { dev, ino, size, mtimeNs, ctimeNs } = found;
    if (size > MAX_FILE_BYTES) {
      throw new Fault("precondition", `${this.#path} is larger than ${MAX_FILE_BYTES} bytes`, {
        code: "accounts-size",
      });
    }
    return `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`;
  }
}

/** The first line of an id wins, as with getpwuid(3). Lines of the old NIS form (`+` or `-` first) name nobody. */
export function parseAccounts(text: string): ReadonlyMap<number, string> {
  const names = new Map<number, string>();
  for (const line of text.split("\n")) {
    const [name, , digits] = line.split(":", 4);
    if (name === undefined || digits === undefined || !/^[^\s+#-][^\s\0]*$/.test(name)) continue;
    const id = /^\d{1,10}$/.test(digits) ? Number(digits) : MAX_ID + 1;
    if (id <= MAX_ID && !names.has(id)) names.set(id, name);
  }
  return names;
}
