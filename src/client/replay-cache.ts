import { Fault } from "../runtime/fault.ts";

/** Proofs that were used, until they expire by themselves. For one process: several behind one address need a shared one. */
export class ReplayCache {
  readonly #max: number;
  /** When each may be forgotten, in the order in which they came. */
  readonly #used = new Map<string, number>();

  constructor(maxEntries = 100_000) {
    this.#max = maxEntries;
  }

  get size(): number {
    return this.#used.size;
  }

  /** False when it was used before. Throws `exhausted` when no more can be remembered: nothing is let in unseen. */
  isNew(name: string, { until, at }: { readonly until: Date; readonly at: Date }): boolean {
    const known = this.#used.get(name);
    if (known !== undefined && known > at.getTime()) return false;
    if (this.#used.size >= this.#max) this.#forget(at);
    if (this.#used.size >= this.#max)
      throw new Fault("exhausted", "too many proofs at a time", { code: "replay-cache-full" });
    this.#used.set(name, until.getTime());
    return true;
  }

  #forget(at: Date): void {
    for (const [name, until] of this.#used) if (until <= at.getTime()) this.#used.delete(name);
  }
}
