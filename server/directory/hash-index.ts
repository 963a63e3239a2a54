import { Column, Lists } from "./column.ts";

/**
 * Finds items, which are numbers, by text. A `Map` moves everything it holds whenever it has to grow, which for a
 * million keys stops the event loop for a tenth of a second; here one item more divides one bucket (linear hashing,
 * Litwin 1980).
 */
export class HashIndex {
  readonly #hashes = new Column();
  readonly #buckets = new Lists();
  #size = 0;
  /** Buckets before `#split` have been divided already, by one more bit of the hash. */
  #mask = 15;
  #split = 0;

  /** The first item that was added under such a hash and that `is` accepts; -1 when there is none. */
  find(hash: number, is: (item: number) => boolean): number {
    for (let item = this.#buckets.first(this.#bucketOf(hash)); item >= 0; item = this.#buckets.next(item))
      if (this.#hashes.get(item) === hash && is(item)) return item;
    return -1;
  }

  add(hash: number, item: number): void {
    this.#hashes.set(item, hash);
    this.#buckets.add(this.#bucketOf(hash), item);
    this.#size += 1;
    if (this.#size > this.#mask + this.#split) this.#divide();
  }

  remove(item: number): void {
    this.#buckets.remove(this.#bucketOf(this.#hashes.get(item)), item);
    this.#size -= 1;
  }

  #bucketOf(hash: number): number {
    const bucket = hash & this.#mask;
    return bucket < this.#split ? hash & (this.#mask * 2 + 1) : bucket;
  }

  #divide(): void {
    const from = this.#split;
    const bit = this.#mask + 1;
    for (let item = this.#buckets.first(from); item >= 0; ) {
      const next = this.#buckets.next(item);
      if ((this.#hashes.get(item) & bit) !== 0) {
        this.#buckets.remove(from, item);
        this.#buckets.add(from + bit, item);
      }
      item = next;
    }
    this.#split += 1;
    if (this.#split <= this.#mask) return;
    this.#mask = this.#mask * 2 + 1;
    this.#split = 0;
  }
}

/** 32 bits, signed: FNV-1a with a last mixing, for texts that differ in few places. */
export function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let at = 0; at < text.length; at += 1) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return hash ^ (hash >>> 13);
}
