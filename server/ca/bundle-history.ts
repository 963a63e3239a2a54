import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { BundleAccess } from "./bundle-edits.ts";

/**
 * Notices that the server's own bundle has gone back: sequence numbers only grow, unless an older copy of the database
 * was put in its place. All kinds of authorities of one server share it.
 */
export class BundleHistory {
  readonly #bundles: Pick<BundleAccess, "find">;
  readonly #trustDomain: TrustDomain;
  #highest = -1n;
  #rewinds = 0;

  constructor({ bundles, trustDomain }: { bundles: Pick<BundleAccess, "find">; trustDomain: TrustDomain }) {
    this.#bundles = bundles;
    this.#trustDomain = trustDomain;
  }

  /** How often the bundle has gone back so far. */
  get rewinds(): number {
    return this.#rewinds;
  }

  async read(): Promise<Bundle | undefined> {
    const before = this.#highest;
    const bundle = await this.#bundles.find(this.#trustDomain);
    const found = bundle?.sequenceNumber ?? -1n;
    if (found < before) this.#rewinds += 1;
    if (found < before) this.#highest = found;
    return this.saw(bundle);
  }

  /** For one that was stored. */
  saw<B extends Bundle | undefined>(bundle: B): B {
    if (bundle !== undefined && bundle.sequenceNumber > this.#highest) this.#highest = bundle.sequenceNumber;
    return bundle;
  }
}
