import { hash } from "node:crypto";

/** What tells one version of an entry from another. */
export interface EntryVersion {
  readonly id: string;
  readonly revisionNumber: number;
  /** Unix seconds; an entry made again under its id may carry the same revision. */
  readonly createdAt: number;
}

export function sameVersion(a: EntryVersion | undefined, b: EntryVersion | undefined): boolean {
  return a?.id === b?.id && a?.revisionNumber === b?.revisionNumber && a?.createdAt === b?.createdAt;
}

const BYTES = 16;

/**
 * 16 bytes over a set of entries, whatever their order: the exclusive or of the first 16 bytes of the SHA-256 of
 * `<id>/<revision number>/<creation time>`. Finds divergence between peers that trust each other, and proves nothing.
 */
export class EntryDigest {
  readonly #sum = Buffer.alloc(BYTES);

  constructor(entries: Iterable<EntryVersion> = []) {
    for (const entry of entries) this.toggle(entry);
  }

  /** Adds the entry, or takes it out again. */
  toggle({ id, revisionNumber, createdAt }: EntryVersion): void {
    const one = hash("sha256", `${id}/${revisionNumber}/${createdAt}`, "buffer");
    for (let at = 0; at < BYTES; at += 1) this.#sum[at] = (this.#sum[at] ?? 0) ^ (one[at] ?? 0);
  }

  copy(): EntryDigest {
    const copy = new EntryDigest();
    copy.#sum.set(this.#sum);
    return copy;
  }

  bytes(): Buffer {
    return Buffer.from(this.#sum);
  }

  equals(digest: Uint8Array): boolean {
    return this.#sum.equals(digest);
  }
}
