import type { SpiffeId } from "../../src/spiffe/id.ts";
import { formatSelector, matches, type Selector, selectorTexts } from "../../src/spiffe/selector.ts";
import type { AttestedNode } from "../store/store.ts";

/** Attested nodes by id, and by each of their selectors. Owned by the directory. */
export class NodeIndex {
  readonly #byId = new Map<SpiffeId, AttestedNode>();
  readonly #bySelector = new Map<string, Set<SpiffeId>>();
  #quarantined = 0;

  get size(): number {
    return this.#byId.size;
  }

  get quarantined(): number {
    return this.#quarantined;
  }

  get(id: SpiffeId): AttestedNode | undefined {
    return this.#byId.get(id);
  }

  put(node: AttestedNode): void {
    this.delete(node.id);
    this.#byId.set(node.id, node);
    if (node.quarantine !== undefined) this.#quarantined += 1;
    for (const text of selectorTexts(node.selectors)) {
      const ids = this.#bySelector.get(text) ?? new Set();
      this.#bySelector.set(text, ids.add(node.id));
    }
  }

  delete(id: SpiffeId): void {
    const node = this.#byId.get(id);
    if (node === undefined) return;
    this.#byId.delete(id);
    if (node.quarantine !== undefined) this.#quarantined -= 1;
    for (const text of selectorTexts(node.selectors)) {
      const ids = this.#bySelector.get(text);
      if (ids?.delete(id) === true && ids.size === 0) this.#bySelector.delete(text);
    }
  }

  /** Nodes that have all of these selectors. */
  *withSelectors(selectors: readonly Selector[]): Generator<SpiffeId> {
    const first = selectors[0];
    if (first === undefined) return;
    for (const id of this.#bySelector.get(formatSelector(first)) ?? []) {
      const node = this.#byId.get(id);
      if (node !== undefined && matches(selectors, selectorTexts(node.selectors))) yield id;
    }
  }
}
