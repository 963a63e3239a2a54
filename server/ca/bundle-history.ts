import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { BundleAccess } from "./bundle-edits.ts";

export interface BundleHistoryOptions {
  readonly bundles: Pick<BundleAccess, "find">;
  readonly trustDomain: TrustDomain;
  /** How often the database was found to be another one than before, up to the moment of the question. */
  readonly replaced: () => Promise<number>;
}

/**
 * Notices that the server's own bundle has gone back: sequence numbers only grow, unless an older copy of the database
 * was put in its place. Another server may have published in that copy meanwhile, and its number is the highest then; so
 * whoever follows the database is asked too. All kinds of authorities of one server share it.
 */
export class BundleHistory {
  readonly #options: BundleHistoryOptions;
  #highest = -1n;
  /** Of the bundle that was read last, by whichever kind. */
  #read = -1n;
  #lower = 0;
  #replaced = 0;

  constructor(options: BundleHistoryOptions) {
    this.#options = options;
  }

  /** How often the bundle has gone back so far, or may have. */
  get rewinds(): number {
    return this.#lower + this.#replaced;
  }

  async read(): Promise<Bundle | undefined> {
    const before = this.#highest;
    const { bundles, trustDomain, replaced } = this.#options;
    const bundle = await bundles.find(trustDomain);
    const found = bundle?.sequenceNumber ?? -1n;
    // After the bundle: what it shows of a replacement has been noticed then. What was stored may have hidden one.
    if (found !== this.#read) this.#replaced = await replaced();
    this.#read = found;
    if (found < before) this.#lower += 1;
    if (found < before) this.#highest = found;
    return this.saw(bundle);
  }

  /** For one that was stored. */
  saw<B extends Bundle | undefined>(bundle: B): B {
    if (bundle !== undefined && bundle.sequenceNumber > this.#highest) this.#highest = bundle.sequenceNumber;
    return bundle;
  }
}
