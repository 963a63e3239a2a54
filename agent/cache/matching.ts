import { formatSelector, matches } from "../../src/spiffe/selector.ts";
import type { CachedEntry } from "./entry.ts";

/**
 * Entries by one of their selectors each. An entry matches a caller only when the caller has all of its selectors, so
 * any one of them leads to it; the rarest keeps the lists short.
 */
export class SelectorIndex {
  readonly #bySelector = new Map<string, Set<CachedEntry>>();
  readonly #home = new Map<CachedEntry, string>();

  add(entry: CachedEntry): void {
    const home = this.#rarest(entry.selectors.map(formatSelector));
    if (home === undefined || this.#home.has(entry)) return;
    const bucket = this.#bySelector.get(home) ?? new Set();
    this.#bySelector.set(home, bucket.add(entry));
    this.#home.set(entry, home);
  }

  delete(entry: CachedEntry): void {
    const home = this.#home.get(entry);
    if (home === undefined) return;
    this.#home.delete(entry);
    const bucket = this.#bySelector.get(home);
    bucket?.delete(entry);
    if (bucket?.size === 0) this.#bySelector.delete(home);
  }

  /** All entries whose selectors are all among `present`, in no order. */
  match(present: ReadonlySet<string>): CachedEntry[] {
    const found: CachedEntry[] = [];
    for (const text of present) {
      for (const entry of this.#bySelector.get(text) ?? []) {
        if (matches(entry.selectors, present)) found.push(entry);
      }
    }
    return found;
  }

  #rarest(texts: readonly string[]): string | undefined {
    const sizeOf = (text: string): number => this.#bySelector.get(text)?.size ?? 0;
    return texts.reduce<string | undefined>(
      (best, text) => (best === undefined || sizeOf(text) < sizeOf(best) ? text : best),
      undefined,
    );
  }
}
