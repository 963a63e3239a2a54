import { describe } from "vitest";
import type { SqlStore } from "../../server/store/database.ts";
import type { SteppedClock } from "../support/clock.ts";
import { authorityContract } from "./store-authorities.ts";
import { bundleLinkContract } from "./store-bundle-links.ts";
import { bundleContract } from "./store-bundles.ts";
import { changeContract } from "./store-changes.ts";
import { entryContract } from "./store-entries.ts";
import { federationContract } from "./store-federation.ts";
import { leaseContract } from "./store-leases.ts";
import { nodeContract } from "./store-nodes.ts";
import { tokenContract } from "./store-tokens.ts";
import { valueContract } from "./store-values.ts";

/** An open store for the tests of one file. The tests of the contract empty it before each test. */
export interface StoreUnderTest {
  readonly store: SqlStore;
  /** What the store takes for the time. */
  readonly clock: SteppedClock;
  /** Closes the store and opens it again, as a restart of the server does. */
  reopen(): Promise<void>;
}

/** What every store does, whichever database is below it. */
export function storeContract(engine: string, current: () => StoreUnderTest): void {
  describe(`the store on ${engine}`, () => {
    describe("entries", () => entryContract(current));
    describe("attested nodes", () => nodeContract(current));
    describe("join tokens", () => tokenContract(current));
    describe("bundles", () => bundleContract(current));
    describe("federation relationships", () => federationContract(current));
    describe("authorities", () => authorityContract(current));
    describe("bundle links", () => bundleLinkContract(current));
    describe("changes", () => changeContract(current));
    describe("leases", () => leaseContract(current));
    describe("values", () => valueContract(current));
  });
}
