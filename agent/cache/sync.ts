import { parseCertificate } from "../../src/crypto/certificate.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Backoff } from "../../src/runtime/task.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { sameAuthorities } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import { authoritiesTainted, federatedBundleMissing, malformedBundle, syncFailed, syncRecovered } from "../events.ts";
import type { IdentityCache } from "./entries.ts";
import type { CachedEntry } from "./entry.ts";
import { type EntryStream, syncEntries } from "./entry-sync.ts";
import type { TrustBundles } from "./update.ts";

const BACKOFF_INTERVALS = 48;
const LONGEST_BACKOFF_MS = 8 * 60_000;
/** With nothing to serve yet, the agent does not sit out a long interval. */
const EMPTY_INTERVAL_MS = 5_000;
const FEDERATED_AT_ONCE = 10;

interface SyncUpstream {
  syncEntries(
    work: (open: EntryStream) => Promise<ReadonlyMap<string, CachedEntry>>,
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, CachedEntry>>;
  bundle(signal: AbortSignal): Promise<Bundle>;
  /** Throws `not_found` for a domain the server has no bundle of. */
  federatedBundle(trustDomain: TrustDomain, signal: AbortSignal): Promise<Bundle>;
}

/** The node's own side of what a sync brings. */
interface TrustKeeper {
  /** Trusts the server by these authorities from now on, and keeps them for the next start. */
  acceptBundle(bundle: Bundle): Promise<void>;
  /** Renews the agent's own SVID at once if one of these authorities signed it. */
  taint(authorityKeyIds: ReadonlySet<string>): void;
  /** Returns when the agent may go on, re-attested if need be; throws when `error` ends it. */
  recover(error: Fault, signal: AbortSignal): Promise<void>;
}

interface TokenKeeper {
  /** Forgets the tokens that were signed with these keys, and keeps none of them from now on. */
  refuseKeys(keyIds: ReadonlySet<string>): void;
}

export interface SynchronizerOptions {
  readonly cache: IdentityCache;
  readonly tokens: TokenKeeper;
  readonly upstream: SyncUpstream;
  readonly trust: TrustKeeper;
  readonly intervalMs: number;
  readonly clock: Clock;
  readonly log: Log;
}

/** Keeps the cache equal to what the server authorizes this agent for. While that fails, what is held stays. */
export class Synchronizer {
  readonly #options: SynchronizerOptions;
  readonly #tainted = new Set<string>();
  #entries: ReadonlyMap<string, CachedEntry> = new Map();
  #lastSync: Date | undefined;

  constructor(options: SynchronizerOptions) {
    this.#options = options;
  }

  get lastSync(): Date | undefined {
    return this.#lastSync;
  }

  /** Entries and bundles are taken together or not at all. */
  async sync(signal: AbortSignal): Promise<void> {
    const { cache, tokens, upstream, trust, clock, log } = this.#options;
    const entries = await upstream.syncEntries((open) => syncEntries(open, this.#entries, log), signal);
    const bundles = await this.#fetchBundles(entries, signal);
    this.#entries = entries;
    const before = cache.bundle.value.own;
    if (bundles.own !== before) await trust.acceptBundle(bundles.own);
    cache.replace(entries, bundles);
    this.#processTainted(bundles.own);
    if (bundles.own !== before) tokens.refuseKeys(refusedKeys(before, bundles.own));
    this.#lastSync = clock.now();
  }

  /** Until the signal ends it by throwing, or the server's answer ends the agent. */
  async run(signal: AbortSignal): Promise<never> {
    const { clock, log, intervalMs, trust } = this.#options;
    const longest = Math.min(LONGEST_BACKOFF_MS, BACKOFF_INTERVALS * intervalMs);
    const backoff = new Backoff(clock, { firstMs: intervalMs, maxMs: Math.max(longest, intervalMs) });
    let pause = this.#interval(backoff.next());
    let failures = 0;
    for (;;) {
      await clock.sleep(pause, signal);
      try {
        await this.sync(signal);
        if (failures > 0) syncRecovered(log, failures);
        failures = 0;
        backoff.reset();
        pause = this.#interval(backoff.next());
      } catch (error) {
        signal.throwIfAborted();
        failures += 1;
        syncFailed(log, error);
        await trust.recover(Fault.from(error), signal);
        pause = backoff.next();
      }
    }
  }

  #interval(ms: number): number {
    return this.#options.cache.svidCount === 0 ? Math.min(ms, EMPTY_INTERVAL_MS) : ms;
  }

  async #fetchBundles(entries: ReadonlyMap<string, CachedEntry>, signal: AbortSignal): Promise<TrustBundles> {
    const held = this.#options.cache.bundle.value;
    const own = await this.#fetchOwn(signal);
    const names = [...new Set([...entries.values()].flatMap(({ federatesWith }) => federatesWith))].sort();
    const federated = new Map<TrustDomain, Bundle>();
    for (let from = 0; from < names.length; from += FEDERATED_AT_ONCE) {
      const batch = names.slice(from, from + FEDERATED_AT_ONCE);
      const bundles = await Promise.all(batch.map((name) => this.#fetchFederated(name, signal)));
      for (const [at, name] of batch.entries()) {
        const bundle = bundles[at];
        if (bundle !== undefined) federated.set(name, unlessSame(bundle, held.federated.get(name)));
      }
    }
    return { own, federated };
  }

  async #fetchFederated(name: TrustDomain, signal: AbortSignal): Promise<Bundle | undefined> {
    const { upstream, log } = this.#options;
    try {
      const bundle = await upstream.federatedBundle(name, signal);
      if (bundle.trustDomain === name) return bundle;
      malformedBundle(log, `the bundle of ${name} names trust domain ${bundle.trustDomain}`);
    } catch (error) {
      if (isFault(error, "not_found")) federatedBundleMissing(log, name);
      else if (isFault(error, "invalid")) malformedBundle(log, error);
      else throw error;
    }
    return undefined;
  }

  /** An answer that is malformed, empty or for another trust domain would cut the agent off: the held one stays. */
  async #fetchOwn(signal: AbortSignal): Promise<Bundle> {
    const { cache, upstream, log } = this.#options;
    const held = cache.bundle.value.own;
    try {
      const bundle = await upstream.bundle(signal);
      const { trustDomain, x509Authorities } = bundle;
      if (trustDomain === held.trustDomain && x509Authorities.length > 0) return unlessSame(bundle, held);
      malformedBundle(
        log,
        `the bundle names trust domain ${trustDomain} and holds ${x509Authorities.length} authorities`,
      );
    } catch (error) {
      if (!isFault(error, "invalid")) throw error;
      malformedBundle(log, error);
    }
    return held;
  }

  /** Each tainted authority once: its successor may have signed everything since. */
  #processTainted(bundle: Bundle): void {
    const { cache, trust, log } = this.#options;
    const tainted = bundle.x509Authorities.filter((authority) => authority.tainted);
    const keyIds = new Set(
      tainted
        .map(({ asn1 }) => parseCertificate(asn1).subjectKeyId)
        .filter((id) => id !== "" && !this.#tainted.has(id)),
    );
    if (keyIds.size === 0) return;
    authoritiesTainted(log, keyIds, cache.taint(keyIds));
    trust.taint(keyIds);
    for (const id of keyIds) this.#tainted.add(id);
  }
}

/** Ids of the JWT authorities that are tainted, or were revoked since. */
function refusedKeys(before: Bundle, { jwtAuthorities }: Bundle): ReadonlySet<string> {
  const tainted = jwtAuthorities.filter((authority) => authority.tainted).map(({ keyId }) => keyId);
  const present = new Set(jwtAuthorities.map(({ keyId }) => keyId));
  const gone = before.jwtAuthorities.map(({ keyId }) => keyId).filter((keyId) => !present.has(keyId));
  return new Set([...tainted, ...gone]);
}

/** The held object when nothing changed, so that comparing by identity is enough everywhere else. */
function unlessSame(bundle: Bundle, held: Bundle | undefined): Bundle {
  return held !== undefined && sameAuthorities(bundle, held) && bundle.refreshHint === held.refreshHint ? held : bundle;
}
