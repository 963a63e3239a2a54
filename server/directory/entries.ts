import type { Entry } from "../../src/spiffe/entry.ts";
import { type SpiffeId, serverId, type TrustDomain, trustDomainOf } from "../../src/spiffe/id.ts";
import { formatSelector, matches, type Selector, selectorTexts } from "../../src/spiffe/selector.ts";
import { Column, Lists, Positions, Rows } from "./column.ts";
import { HashIndex, hashOf } from "./hash-index.ts";
import { hasField, hasId, PackedEntry, packed } from "./packed-entry.ts";
import type { Steps } from "./steps.ts";

/** What a slot holds: nothing, an entry, or one that is staged to come or to go. */
const [FREE, HELD, COMING, GOING] = [0, 1, 2, 3];
/** The parent of a node alias. */
const NO_NAME = -1;

/**
 * Entries of one trust domain by id, by parent, by SPIFFE ID, and node aliases by their first selector. Owned by the
 * directory. What is put and deleted is staged: nobody sees it before `commit`, and then everybody all of it.
 *
 * Each entry has a slot, and each SPIFFE ID that an entry has or hangs below has a name; both are numbers. What stands
 * in columns is neither moved nor visited by the garbage collector, which for a million entries would stop the event
 * loop.
 */
export class EntryIndex {
  readonly #trustDomain: TrustDomain;
  readonly #aliasParent: SpiffeId;
  readonly #slots = new Positions();
  /** Packed until somebody asks for them. */
  readonly #entries = new Rows<string | PackedEntry>();
  readonly #states = new Column();
  /** When the entry was last put: the number of the staging. */
  readonly #put = new Column();
  /** 1 when it has an end. */
  readonly #ends = new Column();
  readonly #byId = new HashIndex();
  readonly #names = new Positions();
  readonly #byName = new HashIndex();
  /** By slot: the name of its SPIFFE ID, and of its parent. */
  readonly #ownName = new Column();
  readonly #parentName = new Column();
  /** By name: slots that have it, and slots that hang below it. */
  readonly #holders = new Lists();
  readonly #children = new Lists();
  readonly #aliases = new Map<string, Map<number, readonly Selector[]>>();
  readonly #privileged = new Map<SpiffeId, Map<number, true>>();
  #coming: number[] = [];
  #going: number[] = [];
  #committed = false;
  #staging = 1;
  #size = 0;
  #nextSize = 0;

  constructor(trustDomain: TrustDomain) {
    this.#trustDomain = trustDomain;
    this.#aliasParent = serverId(trustDomain);
  }

  get size(): number {
    return this.#size;
  }

  get(id: string): Entry | undefined {
    return this.#entry(this.#byId.find(hashOf(id), (at) => hasId(this.#text(at), id) && this.#isSeen(at)));
  }

  /** In place of the entry of the same id. One of another trust domain is never held. */
  put(entry: Entry): void {
    const slot = this.#newest(entry.id);
    const text = packed(entry);
    if (slot >= 0 && this.#text(slot) === text) {
      this.#put.set(slot, this.#staging);
      return;
    }
    if (slot >= 0) this.#drop(slot);
    const isOurs = [entry.spiffeId, entry.parentId].every((id) => trustDomainOf(id) === this.#trustDomain);
    if (isOurs) this.#coming.push(this.#insert(entry, text));
  }

  delete(id: string): void {
    const slot = this.#newest(id);
    if (slot >= 0) this.#drop(slot);
  }

  /** All that were not put since the last `settle` or `undo` go. */
  *deleteOthers(): Steps {
    for (let slot = 0; slot < this.#slots.end; slot += 1) {
      if (this.#states.get(slot) === HELD && this.#put.get(slot) !== this.#staging) this.#drop(slot);
      yield;
    }
  }

  /**
   * Entries that have not ended at `now`, below these IDs and below each of themselves, and when the first of them ends;
   * both are Unix milliseconds. Node aliases are nobody's children.
   */
  below(ids: Iterable<SpiffeId>, now: number): { readonly entries: Entry[]; readonly until: number } {
    const entries: Entry[] = [];
    const names = new Set<number>();
    let until = Number.POSITIVE_INFINITY;
    for (const id of ids) names.add(this.#nameOf(id));
    // A name that is added while the set is walked is walked too.
    for (const name of names) {
      if (name < 0) continue;
      for (let slot = this.#children.first(name); slot >= 0; slot = this.#children.next(slot)) {
        if (!this.#isSeen(slot)) continue;
        const entry = this.#entry(slot) as Entry;
        if (this.#ends.get(slot) !== 0) {
          const end = endOf(entry);
          if (end <= now) continue;
          until = Math.min(until, end);
        }
        entries.push(entry);
        const own = this.#ownName.get(slot);
        if (this.#children.first(own) >= 0) names.add(own);
      }
    }
    return { entries, until };
  }

  /**
   * Where a question about an agent may come from to what is staged, before or after it is committed: gives `parent` every
   * ID above it, and `alias` the selectors of every node alias on the way and of those that are staged themselves.
   */
  *above(parent: (id: SpiffeId) => void, alias: (selectors: readonly Selector[]) => void): Steps {
    const open = [...this.#coming, ...this.#going];
    const [names, aliases] = [new Set<number>(), new Set<number>()];
    for (let slot = open.pop(); slot !== undefined; slot = open.pop()) {
      yield;
      const name = this.#parentName.get(slot);
      if (names.has(name) || aliases.has(slot)) continue;
      const entry = this.#entry(slot);
      if (entry === undefined) continue;
      if (entry.parentId === this.#aliasParent) {
        aliases.add(slot);
        alias(entry.selectors);
        continue;
      }
      names.add(name);
      parent(entry.parentId);
      for (let above = this.#holders.first(name); above >= 0; above = this.#holders.next(above)) open.push(above);
    }
  }

  /** Node aliases whose selectors are all among those of the node. */
  *aliasesOf(selectors: readonly Selector[]): Generator<Entry> {
    const present = selectorTexts(selectors);
    for (const text of present) {
      for (const [slot, wanted] of this.#aliases.get(text) ?? []) {
        const alias = this.#entry(slot);
        if (alias !== undefined && this.#isSeen(slot) && matches(wanted, present)) yield alias;
      }
    }
  }

  /** Entries with a privilege bit that name this SPIFFE ID. */
  *privileged(id: SpiffeId): Generator<Entry> {
    for (const slot of this.#privileged.get(id)?.keys() ?? []) {
      const entry = this.#entry(slot);
      if (entry !== undefined && this.#isSeen(slot)) yield entry;
    }
  }

  commit(): void {
    this.#committed = true;
    this.#size = this.#nextSize;
  }

  /** After `commit`: forgets what was before. */
  *settle(): Steps {
    for (const slot of this.#coming) {
      if (this.#states.get(slot) === COMING) this.#states.set(slot, HELD);
      yield;
    }
    for (const slot of this.#going) {
      this.#remove(slot);
      yield;
    }
    this.#begin();
  }

  /** Instead of `commit`: forgets what is staged. */
  *undo(): Steps {
    for (const slot of this.#going) {
      this.#states.set(slot, HELD);
      yield;
    }
    for (const slot of this.#coming) {
      if (this.#states.get(slot) === COMING) this.#remove(slot);
      yield;
    }
    this.#nextSize = this.#size;
    this.#begin();
  }

  #begin(): void {
    this.#coming = [];
    this.#going = [];
    this.#committed = false;
    this.#staging = (this.#staging + 1) | 0;
  }

  #isSeen(slot: number): boolean {
    const state = this.#states.get(slot);
    return state === HELD || state === (this.#committed ? COMING : GOING);
  }

  /** The slot of this id once everything staged is committed. */
  #newest(id: string): number {
    return this.#byId.find(hashOf(id), (at) => hasId(this.#text(at), id) && this.#states.get(at) !== GOING);
  }

  /** Empty when the slot is. */
  #text(slot: number): string {
    const held = this.#entries.get(slot);
    return held instanceof PackedEntry ? held.text : (held ?? "");
  }

  /** All who ask get the same object. */
  #entry(slot: number): PackedEntry | undefined {
    const held = this.#entries.get(slot);
    if (typeof held !== "string") return held;
    const entry = new PackedEntry(held);
    this.#entries.set(slot, entry);
    return entry;
  }

  /** What is not seen yet goes at once. */
  #drop(slot: number): void {
    this.#nextSize -= 1;
    if (this.#states.get(slot) === COMING) this.#remove(slot);
    else {
      this.#states.set(slot, GOING);
      this.#going.push(slot);
    }
  }

  #insert(entry: Entry, text: string): number {
    const slot = this.#slots.take();
    this.#entries.set(slot, text);
    this.#states.set(slot, COMING);
    this.#put.set(slot, this.#staging);
    this.#ends.set(slot, Number(entry.expiresAt !== 0));
    this.#byId.add(hashOf(entry.id), slot);
    this.#nextSize += 1;
    const own = this.#takeName(entry.spiffeId);
    this.#ownName.set(slot, own);
    this.#holders.add(own, slot);
    if (entry.parentId === this.#aliasParent) {
      this.#parentName.set(slot, NO_NAME);
      addTo(this.#aliases, firstSelector(entry), [slot, entry.selectors]);
    } else {
      const parent = this.#takeName(entry.parentId);
      this.#parentName.set(slot, parent);
      this.#children.add(parent, slot);
    }
    if (entry.admin || entry.downstream) addTo(this.#privileged, entry.spiffeId, [slot, true]);
    return slot;
  }

  #remove(slot: number): void {
    const entry = this.#entry(slot);
    if (entry === undefined) return;
    this.#byId.remove(slot);
    const own = this.#ownName.get(slot);
    this.#holders.remove(own, slot);
    this.#releaseName(own);
    const parent = this.#parentName.get(slot);
    if (parent === NO_NAME) removeFrom(this.#aliases, firstSelector(entry), slot);
    else {
      this.#children.remove(parent, slot);
      this.#releaseName(parent);
    }
    if (entry.admin || entry.downstream) removeFrom(this.#privileged, entry.spiffeId, slot);
    this.#entries.set(slot, undefined);
    this.#states.set(slot, FREE);
    this.#slots.give(slot);
  }

  /** -1 when no entry has this ID, or hangs below it. */
  #nameOf(id: SpiffeId): number {
    return this.#byName.find(hashOf(id), (name) => this.#isNameOf(name, id));
  }

  #isNameOf(name: number, id: SpiffeId): boolean {
    const holder = this.#holders.first(name);
    if (holder >= 0) return hasField(this.#text(holder), "spiffeId", id);
    return hasField(this.#text(this.#children.first(name)), "parentId", id);
  }

  /** The caller lists a slot under it at once. */
  #takeName(id: SpiffeId): number {
    const held = this.#nameOf(id);
    if (held >= 0) return held;
    const name = this.#names.take();
    this.#byName.add(hashOf(id), name);
    return name;
  }

  #releaseName(name: number): void {
    if (this.#holders.first(name) >= 0 || this.#children.first(name) >= 0) return;
    this.#byName.remove(name);
    this.#names.give(name);
  }
}

/** Unix milliseconds; an entry counts until its `expiresAt` is past. */
export function endOf({ expiresAt }: Entry): number {
  return expiresAt === 0 ? Number.POSITIVE_INFINITY : expiresAt * 1000;
}

function firstSelector(entry: Entry): string {
  const first = entry.selectors[0];
  return first === undefined ? "" : formatSelector(first);
}

function addTo<K, V>(index: Map<K, Map<number, V>>, key: K, [slot, value]: readonly [number, V]): void {
  const held = index.get(key);
  if (held === undefined) index.set(key, new Map([[slot, value]]));
  else held.set(slot, value);
}

function removeFrom<K, V>(index: Map<K, Map<number, V>>, key: K, slot: number): void {
  const held = index.get(key);
  if (held?.delete(slot) === true && held.size === 0) index.delete(key);
}
