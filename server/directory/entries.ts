import type { Entry } from "../../src/spiffe/entry.ts";
import { type SpiffeId, serverId, type TrustDomain, trustDomainOf } from "../../src/spiffe/id.ts";
import { formatSelector, matches, type Selector, selectorTexts } from "../../src/spiffe/selector.ts";

const NOTHING: ReadonlyMap<string, Entry> = new Map();

/**
 * Entries of one trust domain by id, by parent, by SPIFFE ID, and node aliases by their first selector. Owned by the
 * directory.
 */
export class EntryIndex {
  readonly #trustDomain: TrustDomain;
  readonly #aliasParent: SpiffeId;
  readonly #byId = new Map<string, Entry>();
  readonly #byParent = new Map<string, Map<string, Entry>>();
  /** Most IDs have one entry, which stands here without a list around it. */
  readonly #bySpiffeId = new Map<SpiffeId, Entry | readonly Entry[]>();
  readonly #byFirstSelector = new Map<string, Map<string, Entry>>();
  readonly #privileged = new Map<string, Map<string, Entry>>();

  constructor(trustDomain: TrustDomain) {
    this.#trustDomain = trustDomain;
    this.#aliasParent = serverId(trustDomain);
  }

  get size(): number {
    return this.#byId.size;
  }

  get(id: string): Entry | undefined {
    return this.#byId.get(id);
  }

  /** Replaces the entry of the same id. One of another trust domain is never held. */
  put(entry: Entry): void {
    this.delete(entry.id);
    if (trustDomainOf(entry.spiffeId) !== this.#trustDomain || trustDomainOf(entry.parentId) !== this.#trustDomain)
      return;
    this.#byId.set(entry.id, entry);
    const namesakes = this.#namesakes(entry.spiffeId);
    this.#bySpiffeId.set(entry.spiffeId, namesakes.length === 0 ? entry : [...namesakes, entry]);
    if (entry.parentId === this.#aliasParent) add(this.#byFirstSelector, firstSelector(entry), entry);
    else add(this.#byParent, entry.parentId, entry);
    if (entry.admin || entry.downstream) add(this.#privileged, entry.spiffeId, entry);
  }

  delete(id: string): void {
    const entry = this.#byId.get(id);
    if (entry === undefined) return;
    this.#byId.delete(id);
    this.#dropNamesake(entry);
    if (entry.parentId === this.#aliasParent) remove(this.#byFirstSelector, firstSelector(entry), id);
    else remove(this.#byParent, entry.parentId, id);
    if (entry.admin || entry.downstream) remove(this.#privileged, entry.spiffeId, id);
  }

  /** Entries whose parent this ID is; node aliases are nobody's children. */
  children(parent: SpiffeId): Iterable<Entry> {
    return (this.#byParent.get(parent) ?? NOTHING).values();
  }

  /**
   * Where a question about an agent may come from to this entry: every ID above it, and every node alias on the way. Of
   * an alias, itself.
   */
  above(entry: Entry): { readonly parents: ReadonlySet<SpiffeId>; readonly aliases: readonly Entry[] } {
    const parents = new Set<SpiffeId>();
    const aliases = new Map<string, Entry>();
    const open = [entry];
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      if (next.parentId === this.#aliasParent) aliases.set(next.id, next);
      else if (!parents.has(next.parentId)) {
        parents.add(next.parentId);
        open.push(...this.#namesakes(next.parentId));
      }
    }
    return { parents, aliases: [...aliases.values()] };
  }

  /** Node aliases whose selectors are all among those of the node. */
  *aliasesOf(selectors: readonly Selector[]): Generator<Entry> {
    const present = selectorTexts(selectors);
    for (const text of present) {
      for (const alias of (this.#byFirstSelector.get(text) ?? NOTHING).values()) {
        if (matches(alias.selectors, present)) yield alias;
      }
    }
  }

  /** Entries with a privilege bit that name this SPIFFE ID. */
  privileged(id: SpiffeId): Iterable<Entry> {
    return (this.#privileged.get(id) ?? NOTHING).values();
  }

  #namesakes(id: SpiffeId): readonly Entry[] {
    const held = this.#bySpiffeId.get(id);
    if (held === undefined) return [];
    return "id" in held ? [held] : held;
  }

  #dropNamesake({ id, spiffeId }: Entry): void {
    const [first, ...rest] = this.#namesakes(spiffeId).filter((entry) => entry.id !== id);
    if (first === undefined) this.#bySpiffeId.delete(spiffeId);
    else this.#bySpiffeId.set(spiffeId, rest.length === 0 ? first : [first, ...rest]);
  }
}

function firstSelector(entry: Entry): string {
  const first = entry.selectors[0];
  return first === undefined ? "" : formatSelector(first);
}

function add(index: Map<string, Map<string, Entry>>, key: string, entry: Entry): void {
  const held = index.get(key);
  if (held === undefined) index.set(key, new Map([[entry.id, entry]]));
  else held.set(entry.id, entry);
}

function remove(index: Map<string, Map<string, Entry>>, key: string, id: string): void {
  const held = index.get(key);
  if (held?.delete(id) === true && held.size === 0) index.delete(key);
}
