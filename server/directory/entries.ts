import type { Entry } from "../../src/spiffe/entry.ts";
import { type SpiffeId, serverId, type TrustDomain, trustDomainOf } from "../../src/spiffe/id.ts";
import { formatSelector, matches, type Selector, selectorTexts } from "../../src/spiffe/selector.ts";
import { WideMap } from "./wide-map.ts";

const NOTHING: ReadonlyMap<string, Entry> = new Map();

/**
 * Entries of one trust domain by id, by parent, by SPIFFE ID, and node aliases by their first selector. Owned by the
 * directory.
 */
export class EntryIndex {
  readonly #trustDomain: TrustDomain;
  readonly #aliasParent: SpiffeId;
  readonly #byId = new WideMap<string, Entry>();
  readonly #byParent = new Map<string, Map<string, Entry>>();
  /** Most IDs have one entry, which stands here without a list around it. */
  readonly #bySpiffeId = new WideMap<SpiffeId, Entry | readonly Entry[]>();
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
    if (this.#byId.get(entry.id) !== undefined) this.delete(entry.id);
    if (trustDomainOf(entry.spiffeId) !== this.#trustDomain || trustDomainOf(entry.parentId) !== this.#trustDomain)
      return;
    this.#byId.set(entry.id, entry);
    const namesakes = this.#bySpiffeId.get(entry.spiffeId);
    this.#bySpiffeId.set(entry.spiffeId, namesakes === undefined ? entry : [...listed(namesakes), entry]);
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
    return held === undefined ? [] : listed(held);
  }

  #dropNamesake({ id, spiffeId }: Entry): void {
    const [first, ...rest] = this.#namesakes(spiffeId).filter((entry) => entry.id !== id);
    if (first === undefined) this.#bySpiffeId.delete(spiffeId);
    else this.#bySpiffeId.set(spiffeId, rest.length === 0 ? first : [first, ...rest]);
  }
}

function listed(held: Entry | readonly Entry[]): readonly Entry[] {
  return "id" in held ? [held] : held;
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
