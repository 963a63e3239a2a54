const PARTS = 64;

/**
 * A map of strings for millions of keys. A `Map` moves everything it holds whenever it has to grow, which for a million
 * keys stops the event loop for a tenth of a second; here only one part of many grows at a time.
 */
export class WideMap<K extends string, V> {
  readonly #parts: readonly Map<K, V>[] = Array.from({ length: PARTS }, () => new Map<K, V>());
  #size = 0;

  get size(): number {
    return this.#size;
  }

  get(key: K): V | undefined {
    return this.#partOf(key).get(key);
  }

  set(key: K, value: V): void {
    const part = this.#partOf(key);
    const before = part.size;
    part.set(key, value);
    this.#size += part.size - before;
  }

  delete(key: K): void {
    if (this.#partOf(key).delete(key)) this.#size -= 1;
  }

  #partOf(key: K): Map<K, V> {
    return this.#parts[hash(key) % PARTS] as Map<K, V>;
  }
}

/** Of the last characters, in which ids and paths differ most. */
function hash(key: string): number {
  let hash = key.length;
  for (let at = Math.max(0, key.length - 12); at < key.length; at += 1) hash = (hash * 31 + key.charCodeAt(at)) >>> 0;
  return hash;
}
