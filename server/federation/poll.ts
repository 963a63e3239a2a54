import { isDeepStrictEqual } from "node:util";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { type Bundle, sameAuthorities } from "../../src/spiffe/bundle.ts";
import type { FederationRelationship } from "../../src/spiffe/federation.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { Directory } from "../directory/authorized.ts";
import * as events from "../events.ts";
import type { BundleStore, FederationStore, HeldRelationship } from "../store/store.ts";
import { fetchBundle } from "./fetch.ts";

export interface BundlePollerOptions {
  readonly federation: Pick<FederationStore, "find" | "list" | "changeBundle">;
  readonly bundles: Pick<BundleStore, "changeForeign">;
  readonly directory: Pick<Directory, "bundle">;
  /** Of the configuration; they go before those of the store. */
  readonly relationships: readonly FederationRelationship[];
  readonly clock: Clock;
  readonly log: Log;
}

interface Polled {
  readonly relationship: FederationRelationship;
  readonly stop: AbortController;
  readonly done: Promise<void>;
}

/** How often the relationships are read, for those that other servers store. */
const RELOAD_MS = 10_000;
/** Without a hint. SPIFFE Federation, section 4.1. */
const DEFAULT_INTERVAL_MS = 300_000;
/** While no bundle is held: soon after an operator has set the first one, it is needed. */
const BOOTSTRAP_INTERVAL_MS = 60_000;
const SHORTEST_INTERVAL_MS = 10_000;

/** Keeps the bundles of foreign trust domains equal to what their endpoints publish. What is held stays while that fails. */
export class BundlePoller {
  readonly #options: BundlePollerOptions;
  readonly #polled = new Map<TrustDomain, Polled>();
  #wake: () => void = () => {};

  constructor(options: BundlePollerOptions) {
    this.#options = options;
  }

  /** Until the signal. */
  async run(signal: AbortSignal): Promise<void> {
    try {
      while (!signal.aborted) {
        const { promise: changed, resolve } = Promise.withResolvers<void>();
        this.#wake = resolve;
        await this.#reconcile(signal);
        await this.#pause(changed, signal);
      }
    } finally {
      await Promise.all([...this.#polled.keys()].map((name) => this.#end(name)));
    }
  }

  /** To be told that the relationships have changed. */
  reload(): void {
    this.#wake();
  }

  /** Fetches the bundle now. False when there is no relationship with the trust domain. */
  async refresh(trustDomain: TrustDomain, signal: AbortSignal): Promise<boolean> {
    const { relationships, federation } = this.#options;
    const configured = relationships.find((each) => each.trustDomain === trustDomain);
    const relationship = configured ?? (await stored(federation, trustDomain));
    if (relationship === undefined) return false;
    await this.#update(relationship, signal);
    return true;
  }

  async #pause(changed: Promise<void>, signal: AbortSignal): Promise<void> {
    const over = new AbortController();
    const slept = this.#options.clock.sleep(RELOAD_MS, AbortSignal.any([signal, over.signal])).catch(() => {});
    await Promise.race([slept, changed]);
    over.abort();
  }

  async #reconcile(signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    const wanted = await this.#wanted();
    if (wanted === undefined) return;
    const known = new Set(this.#polled.keys());
    for (const [name, { relationship }] of [...this.#polled]) {
      const next = wanted.get(name);
      if (isDeepStrictEqual(next, relationship)) continue;
      await this.#end(name);
      if (next === undefined) events.trustDomainNotManaged(log, name);
      else events.trustDomainUpdated(log, next);
    }
    for (const [name, relationship] of wanted) {
      if (!known.has(name)) events.trustDomainManaged(log, relationship);
      if (!this.#polled.has(name)) this.#begin(relationship, signal);
    }
  }

  /** Undefined while the store is away: what was wanted stays wanted. */
  async #wanted(): Promise<ReadonlyMap<TrustDomain, FederationRelationship> | undefined> {
    const { federation, relationships, log } = this.#options;
    try {
      const { items } = await federation.list();
      return new Map([...items.map(withoutBundle), ...relationships].map((each) => [each.trustDomain, each]));
    } catch (error) {
      events.relationshipsUnknown(log, Fault.from(error));
      return undefined;
    }
  }

  #begin(relationship: FederationRelationship, signal: AbortSignal): void {
    const stop = new AbortController();
    const done = this.#poll(relationship, AbortSignal.any([signal, stop.signal])).catch(() => {});
    this.#polled.set(relationship.trustDomain, { relationship, stop, done });
  }

  async #end(name: TrustDomain): Promise<void> {
    const polled = this.#polled.get(name);
    this.#polled.delete(name);
    polled?.stop.abort();
    await polled?.done;
  }

  async #poll(relationship: FederationRelationship, signal: AbortSignal): Promise<never> {
    const { clock, log } = this.#options;
    for (;;) {
      const held = await this.#update(relationship, signal).catch((error: unknown) => {
        signal.throwIfAborted();
        events.bundleUpdateFailed(log, relationship, Fault.from(error));
        return this.#options.directory.bundle(relationship.trustDomain);
      });
      await clock.sleep(intervalMs(held), signal);
    }
  }

  /** The bundle that is held afterwards. */
  async #update(relationship: FederationRelationship, signal: AbortSignal): Promise<Bundle> {
    const { directory, clock, log } = this.#options;
    const { trustDomain } = relationship;
    const notice = (reason: string): void => events.bundleKeySkipped(log, trustDomain, reason);
    const bundle = (name: TrustDomain): Bundle | undefined => directory.bundle(name);
    const fetched = await events.fetchingBundle({ log, clock }, trustDomain, () =>
      fetchBundle({ relationship, bundle, notice, clock, signal }),
    );
    let outcome: Outcome = "new";
    const held = await this.#change(relationship, (current) => {
      outcome = judge(current, fetched);
      return outcome === "older" && current !== undefined ? current : fetched;
    });
    events.bundleFetched(log, relationship, { outcome, sequenceNumber: fetched.sequenceNumber });
    return held;
  }

  #change(relationship: FederationRelationship, change: (current: Bundle | undefined) => Bundle): Promise<Bundle> {
    const { federation, bundles, relationships } = this.#options;
    if (relationships.includes(relationship)) return bundles.changeForeign(relationship.trustDomain, change);
    return federation.changeBundle(relationship, change);
  }
}

async function stored(
  federation: Pick<FederationStore, "find">,
  trustDomain: TrustDomain,
): Promise<FederationRelationship | undefined> {
  const held = await federation.find(trustDomain);
  return held && withoutBundle(held);
}

function withoutBundle({ bundle: _, ...relationship }: HeldRelationship): FederationRelationship {
  return relationship;
}

/** What a fetched bundle is, compared with the held one. */
export type Outcome = "new" | "same" | "older" | "rewritten";

/**
 * Sequence numbers decide which is newer, where both have one; of two with the same number the fetched one counts.
 * SPIFFE Federation, section 4.2.
 */
function judge(held: Bundle | undefined, fetched: Bundle): Outcome {
  if (held === undefined) return "new";
  const same = sameAuthorities(held, fetched) && held.refreshHint === fetched.refreshHint;
  if (held.sequenceNumber === 0n || fetched.sequenceNumber === 0n) return same ? "same" : "new";
  if (fetched.sequenceNumber < held.sequenceNumber) return "older";
  if (fetched.sequenceNumber > held.sequenceNumber) return "new";
  return same ? "same" : "rewritten";
}

function intervalMs(held: Bundle | undefined): number {
  if (held === undefined) return BOOTSTRAP_INTERVAL_MS;
  if (held.refreshHint === 0) return DEFAULT_INTERVAL_MS;
  return Math.max(SHORTEST_INTERVAL_MS, held.refreshHint * 1000);
}
