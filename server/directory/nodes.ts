import type { SpiffeId } from "../../src/spiffe/id.ts";
import { formatSelector, matches, type Selector, selectorTexts } from "../../src/spiffe/selector.ts";
import type { AttestedNode } from "../store/store.ts";
import type { Steps } from "./steps.ts";

interface Held {
  readonly node: AttestedNode;
  readonly texts: ReadonlySet<string>;
}

/**
 * Attested nodes by id, and by each of their selectors. Owned by the directory. What is put and deleted is staged:
 * nobody sees it before `commit`, and then everybody all of it.
 */
export class NodeIndex {
  readonly #byId = new Map<SpiffeId, Held>();
  /** Those that are staged as well. */
  readonly #bySelector = new Map<string, Set<Held>>();
  /** Undefined is one that goes. */
  readonly #staged = new Map<SpiffeId, Held | undefined>();
  #committed = false;
  #size = 0;
  #quarantined = 0;

  get size(): number {
    return this.#size;
  }

  get quarantined(): number {
    return this.#quarantined;
  }

  get(id: SpiffeId): AttestedNode | undefined {
    const held = this.#committed && this.#staged.has(id) ? this.#staged.get(id) : this.#byId.get(id);
    return held?.node;
  }

  put(node: AttestedNode): void {
    const held = { node, texts: selectorTexts(node.selectors) };
    this.#stage(node.id, held);
    for (const text of held.texts) {
      const sharing = this.#bySelector.get(text);
      if (sharing === undefined) this.#bySelector.set(text, new Set([held]));
      else sharing.add(held);
    }
  }

  delete(id: SpiffeId): void {
    this.#stage(id, undefined);
  }

  /** All that were not put since the last `settle` go. */
  *deleteOthers(): Steps {
    for (const id of this.#byId.keys()) {
      if (!this.#staged.has(id)) this.#staged.set(id, undefined);
      yield;
    }
  }

  /** Of those that are held and of those that are staged. */
  *withSelectors(selectors: readonly Selector[]): Generator<SpiffeId> {
    const first = selectors[0];
    if (first === undefined) return;
    for (const { node, texts } of this.#bySelector.get(formatSelector(first)) ?? [])
      if (matches(selectors, texts)) yield node.id;
  }

  /** IDs of what is staged. */
  staged(): Iterable<SpiffeId> {
    return this.#staged.keys();
  }

  commit(): void {
    this.#committed = true;
    for (const [id, next] of this.#staged) {
      const last = this.#byId.get(id);
      this.#size += Number(next !== undefined) - Number(last !== undefined);
      this.#quarantined += Number(isQuarantined(next)) - Number(isQuarantined(last));
    }
  }

  /** After `commit`: forgets what was before. Who left off may begin again. */
  *settle(): Steps {
    for (const [id, next] of this.#staged) {
      this.#dropTexts(this.#byId.get(id));
      if (next === undefined) this.#byId.delete(id);
      else this.#byId.set(id, next);
      this.#staged.delete(id);
      yield;
    }
    this.#committed = false;
  }

  /** Instead of `commit`: forgets what is staged. */
  *undo(): Steps {
    for (const [id, held] of this.#staged) {
      this.#dropTexts(held);
      this.#staged.delete(id);
      yield;
    }
  }

  #stage(id: SpiffeId, held: Held | undefined): void {
    this.#dropTexts(this.#staged.get(id));
    this.#staged.set(id, held);
  }

  #dropTexts(held: Held | undefined): void {
    if (held === undefined) return;
    for (const text of held.texts) {
      const sharing = this.#bySelector.get(text);
      if (sharing?.delete(held) === true && sharing.size === 0) this.#bySelector.delete(text);
    }
  }
}

function isQuarantined(held: Held | undefined): boolean {
  return held?.node.quarantine !== undefined;
}
