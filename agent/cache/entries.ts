import type { Clock } from "../../src/runtime/clock.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import { formatSelector, type Selector } from "../../src/spiffe/selector.ts";
import {
  duplicateHintIgnored,
  entryCreated,
  entryRemoved,
  entryUpdated,
  identitiesHeld,
  svidEvicted,
} from "../events.ts";
import { msUntilDue, OVERDUE } from "../node/rotation.ts";
import { byAge, type CachedEntry, withUniqueHints } from "./entry.ts";
import { SelectorIndex } from "./matching.ts";
import { RENAMING_MS, standInFor } from "./stand-in.ts";
import { type HeldSvid, isCurrent, isUsable, type SigningRequest, urgency } from "./svid.ts";
import {
  bundlesFor,
  sameBundles,
  sameUpdate,
  type TrustBundles,
  updateFor,
  type WorkloadUpdate,
  type X509Identity,
} from "./update.ts";

export interface IdentityCacheOptions {
  readonly clock: Clock;
  readonly log: Log;
  /** Held at most. Those that subscribers use stay, even beyond it; then they are the only ones. */
  readonly maxSvids: number;
  /** Bundles to start with; the first sync replaces them. */
  readonly bundles: TrustBundles;
}

/** What somebody with certain selectors may have, whether or not an X.509-SVID of it is here. */
export interface Entitlement {
  /** The default identity first; the same order every time. */
  readonly entries: readonly CachedEntry[];
  readonly bundle: Bundle;
  readonly federatedBundles: ReadonlyMap<TrustDomain, Bundle>;
}

/** Everything known of one entry. Owned by the cache. */
interface Holding {
  entry: CachedEntry;
  svid: HeldSvid | undefined;
  /** A signing attempt has failed, so others need not wait for it. */
  failed: boolean;
  /** How often in a row the server refused it by name. */
  refusals: number;
  /** Not asked for again before, by the monotonic clock, unless a sync comes first. */
  retryAt: number;
  /** Until then, by the monotonic clock, whoever has the SVID of the entry's former SPIFFE ID keeps it. */
  renamingUntil: number;
  /** Grows with use: the lowest is dropped first. */
  lastUsed: number;
}

/** After a refusal, one that is taken with patience first; doubled with each further one. */
const [FIRST_RETRY_MS, SOON_MS] = [500, 100] as const;
const LONGEST_RETRY_MS = 30_000;

interface Told {
  readonly update: WorkloadUpdate;
  /** Holds an identity whose entry names another SPIFFE ID by now: nobody new is given it. */
  readonly isInterim: boolean;
}

/** Callers with the same selectors, who always get the same answer. */
interface Audience {
  readonly texts: ReadonlySet<string>;
  readonly feed: Feed<Told | undefined>;
  matched: readonly CachedEntry[];
  ignored: readonly CachedEntry[];
  watchers: number;
}

/**
 * Which workload gets which identity, in memory. Filled by the sync and the signer; asked by the local APIs, which it
 * never keeps waiting for what it holds.
 */
export class IdentityCache {
  /** False until the first sync: nobody's entitlement is known before. */
  readonly ready = new Feed(false);
  readonly bundle: Feed<TrustBundles>;
  /** Ticks when there may be something new to sign: after a sync, and when a caller waits. */
  readonly work = new Feed(0);
  /** Ticks when a sync has changed entries or bundles. */
  readonly changes = new Feed(0);
  readonly #options: IdentityCacheOptions;
  readonly #holdings = new Map<string, Holding>();
  readonly #index = new SelectorIndex();
  readonly #audiences = new Map<string, Audience>();
  #uses = 0;

  constructor(options: IdentityCacheOptions) {
    this.#options = options;
    this.bundle = new Feed(options.bundles);
  }

  get svidCount(): number {
    return this.#withSvid().length;
  }

  /**
   * The full state now, when all of it is held, and again after each change that the caller would notice. Waits for
   * what is being signed, and for the first sync. Ends when the signal is aborted.
   */
  async *subscribe(
    selectors: readonly Selector[],
    signal: AbortSignal,
  ): AsyncGenerator<WorkloadUpdate, void, undefined> {
    const texts = new Set(selectors.map(formatSelector));
    const key = JSON.stringify([...texts].sort());
    const audience = this.#audiences.get(key) ?? {
      texts,
      feed: new Feed(undefined),
      matched: [],
      ignored: [],
      watchers: 0,
    };
    this.#audiences.set(key, audience);
    audience.watchers += 1;
    try {
      this.#refresh(audience);
      this.#touch(audience);
      let last: WorkloadUpdate | undefined;
      for await (const told of audience.feed.watch(signal)) {
        if (told === undefined || told.update === last || (last === undefined && told.isInterim)) continue;
        last = told.update;
        yield last;
      }
    } finally {
      audience.watchers -= 1;
      if (audience.watchers === 0) this.#release(key, audience);
    }
  }

  /** True when an entry matches these selectors. */
  entitles(selectors: readonly Selector[]): boolean {
    return this.#index.match(new Set(selectors.map(formatSelector))).length > 0;
  }

  /** What is held for these selectors at this moment; SVIDs yet to be signed are missing. */
  current(selectors: readonly Selector[]): WorkloadUpdate {
    return this.#compose(this.#matching(new Set(selectors.map(formatSelector))).kept, undefined).update;
  }

  /** What these selectors entitle to at this moment. */
  entitlement(selectors: readonly Selector[]): Entitlement {
    const { kept } = this.#matching(new Set(selectors.map(formatSelector)));
    return { entries: kept, ...bundlesFor(kept, this.bundle.value) };
  }

  /** Takes a synced state whole. What is unchanged must be the same object: it costs nothing then. */
  replace(entries: ReadonlyMap<string, CachedEntry>, bundles: TrustBundles): void {
    const gone = [...this.#holdings.values()].filter(({ entry }) => !entries.has(entry.id));
    for (const { entry } of gone) this.#remove(entry);
    const put = [...entries.values()].filter((entry) => this.#put(entry));
    const isNew = !this.ready.value || !sameBundles(bundles, this.bundle.value);
    if (isNew) this.bundle.set(bundles);
    if (!this.ready.value) this.ready.set(true);
    if (isNew || gone.length + put.length > 0) {
      this.#evict();
      this.#tellSizes();
      this.#refreshAll();
      this.changes.set(this.changes.value + 1);
    }
    this.work.set(this.work.value + 1);
  }

  /** What wants signing, the most urgent first. Of what nobody waits for, no more than fits. */
  due(): readonly SigningRequest[] {
    const { clock } = this.#options;
    const inUse = this.#inUse();
    let room = this.#options.maxSvids - this.svidCount;
    const wanted: SigningRequest[] = [];
    const passed = clock.monotonic();
    for (const { entry, svid, retryAt } of this.#holdings.values()) {
      if (retryAt > passed || entry.storeSvid || (svid !== undefined && isCurrent(svid, entry, clock))) continue;
      const waitedFor = svid === undefined && inUse.has(entry.id);
      if (svid === undefined && !waitedFor && (entry.disableX509SvidPrefetch || room <= 0)) continue;
      if (svid === undefined) room -= 1;
      wanted.push({ entry, waitedFor, ...(svid === undefined ? {} : replaced(svid, entry)) });
    }
    return wanted.sort(urgency);
  }

  /** Until the next SVID that is held becomes due, or what was refused may be asked for again; infinite for neither. */
  msUntilDue(): number {
    const { clock } = this.#options;
    const passed = clock.monotonic();
    let least = Number.POSITIVE_INFINITY;
    for (const { svid, retryAt } of this.#holdings.values()) {
      const due = svid === undefined ? 0 : msUntilDue(svid.rotation, clock);
      if (svid !== undefined || retryAt > passed) least = Math.min(least, Math.max(due, retryAt - passed));
    }
    return least;
  }

  /** When the next SVID that is held and still valid expires. */
  nextExpiry(): Date | undefined {
    const now = this.#options.clock.now();
    const times = this.#withSvid().map(({ svid }) => svid.expiresAt);
    return times
      .filter((time) => time > now)
      .reduce<Date | undefined>((first, time) => (first === undefined || time < first ? time : first), undefined);
  }

  /** Takes what was signed. An SVID for an entry that has gone meanwhile, or that names another ID by now, is dropped. */
  accept(svids: ReadonlyMap<string, HeldSvid>): void {
    for (const [id, svid] of svids) {
      const holding = this.#holdings.get(id);
      if (holding?.entry.spiffeId === svid.spiffeId) Object.assign(holding, { svid, failed: false, refusals: 0 });
    }
    this.#evict();
    this.#tellSizes();
    this.#refreshAll();
  }

  /**
   * Signing failed for these: whoever waits for them gets the rest, after as many refusals as there is patience for.
   * `refused` are left alone until the next sync, or for a while that grows, as there may be no sync for long.
   */
  fail(ids: Iterable<string>, refused: boolean, patience = 0): void {
    const passed = this.#options.clock.monotonic();
    for (const id of ids) {
      const holding = this.#holdings.get(id);
      if (holding === undefined) continue;
      holding.failed ||= holding.refusals >= patience;
      if (!refused) continue;
      const first = patience > 0 ? SOON_MS : FIRST_RETRY_MS;
      holding.retryAt = passed + Math.min(first * 2 ** holding.refusals, LONGEST_RETRY_MS);
      holding.refusals += 1;
    }
    this.#refreshAll();
  }

  /** SVIDs under these authorities are due at once; they are served until their successors are here. */
  taint(authorityKeyIds: ReadonlySet<string>): number {
    const tainted = this.#withSvid().filter(({ svid }) => authorityKeyIds.has(svid.authorityKeyId));
    for (const holding of tainted) holding.svid = { ...holding.svid, rotation: OVERDUE };
    return tainted.length;
  }

  /** False when the entry is the one that is held. */
  #put(entry: CachedEntry): boolean {
    const holding = this.#holdings.get(entry.id);
    if (holding?.entry === entry) {
      holding.retryAt = 0;
      return false;
    }
    if (holding === undefined) {
      const none = { svid: undefined, failed: false, refusals: 0, retryAt: 0, renamingUntil: 0, lastUsed: 0 };
      this.#holdings.set(entry.id, { entry, ...none });
      entryCreated(this.#options.log, entry);
    } else {
      this.#index.delete(holding.entry);
      Object.assign(holding, { entry, failed: false, refusals: 0, retryAt: 0 });
      if (holding.svid !== undefined && holding.svid.spiffeId !== entry.spiffeId) this.#rename(holding);
      if (entry.storeSvid) holding.svid = undefined;
      entryUpdated(this.#options.log, entry);
    }
    if (!entry.storeSvid) this.#index.add(entry);
    return true;
  }

  #rename(holding: Holding): void {
    const { clock } = this.#options;
    holding.svid = undefined;
    holding.renamingUntil = clock.monotonic() + RENAMING_MS;
    void clock.sleep(RENAMING_MS).then(() => this.#refreshAll());
  }

  #tellSizes(): void {
    identitiesHeld(this.#options.log, { entries: this.#holdings.size, svids: this.svidCount });
  }

  #remove(entry: CachedEntry): void {
    this.#index.delete(entry);
    this.#holdings.delete(entry.id);
    entryRemoved(this.#options.log, entry);
  }

  #matching(texts: ReadonlySet<string>): ReturnType<typeof withUniqueHints> {
    return withUniqueHints(this.#index.match(texts).sort(byAge));
  }

  /** For whoever was told `last`. */
  #compose(matched: readonly CachedEntry[], last: WorkloadUpdate | undefined): Told {
    const succession = { matched, last, now: this.#options.clock.now() };
    let isInterim = false;
    const identities = matched.flatMap((entry): X509Identity[] => {
      const svid = this.#holdings.get(entry.id)?.svid;
      if (isUsable(svid, succession.now))
        return [{ entry, chain: svid.chain, privateKey: svid.privateKey, expiresAt: svid.expiresAt }];
      const standIn = standInFor(entry, succession);
      if (standIn === undefined || (standIn.isFormer && !this.#isRenaming(entry.id))) return [];
      isInterim ||= standIn.isFormer;
      return [standIn];
    });
    return { update: updateFor(identities, this.bundle.value, matched.length > 0), isInterim };
  }

  /** False as soon as the new SPIFFE ID cannot be signed, or is long in coming. */
  #isRenaming(id: string): boolean {
    const holding = this.#holdings.get(id);
    return holding?.failed === false && this.#options.clock.monotonic() < holding.renamingUntil;
  }

  #refreshAll(): void {
    for (const audience of this.#audiences.values()) this.#refresh(audience);
  }

  /** Publishes the audience's new state, unless it is the old one or a first answer that is still incomplete. */
  #refresh(audience: Audience): void {
    if (!this.ready.value) return;
    const { kept, ignored } = this.#matching(audience.texts);
    this.#warnOfDuplicates(audience, ignored);
    audience.matched = kept;
    const last = audience.feed.value;
    const next = this.#compose(kept, last?.update);
    const incomplete = kept.some(({ id }) => this.#isAwaited(id));
    if (next.update.entitled && next.update.identities.length === 0) {
      if (last !== undefined) audience.feed.set(undefined);
    } else if (last === undefined) {
      if (!incomplete) audience.feed.set(next);
    } else if (!sameUpdate(last.update, next.update)) {
      audience.feed.set(next);
    } else if (last.isInterim !== next.isInterim) {
      audience.feed.set({ ...last, isInterim: next.isInterim });
    }
  }

  #isAwaited(id: string): boolean {
    const holding = this.#holdings.get(id);
    return holding !== undefined && !holding.failed && !isUsable(holding.svid, this.#options.clock.now());
  }

  #warnOfDuplicates(audience: Audience, ignored: readonly CachedEntry[]): void {
    for (const entry of ignored) if (!audience.ignored.includes(entry)) duplicateHintIgnored(this.#options.log, entry);
    audience.ignored = ignored;
  }

  /** Marks the audience's entries as used, and asks for those that lack an SVID. */
  #touch(audience: Audience): void {
    this.#markUsed(audience);
    const now = this.#options.clock.now();
    const holdings = audience.matched.map(({ id }) => this.#holdings.get(id));
    if (holdings.some((holding) => holding !== undefined && !isUsable(holding.svid, now)))
      this.work.set(this.work.value + 1);
  }

  /** What was in use beyond the limit must go as soon as it is idle, the longest idle first. */
  #release(key: string, audience: Audience): void {
    this.#audiences.delete(key);
    this.#markUsed(audience);
    if (this.#evict()) this.#tellSizes();
  }

  #markUsed(audience: Audience): void {
    this.#uses += 1;
    for (const { id } of audience.matched) {
      const holding = this.#holdings.get(id);
      if (holding !== undefined) holding.lastUsed = this.#uses;
    }
  }

  #inUse(): ReadonlySet<string> {
    return new Set([...this.#audiences.values()].flatMap(({ matched }) => matched.map(({ id }) => id)));
  }

  #withSvid(): (Holding & { svid: HeldSvid })[] {
    return [...this.#holdings.values()].filter(
      (holding): holding is Holding & { svid: HeldSvid } => holding.svid !== undefined,
    );
  }

  /** True when something had to go. */
  #evict(): boolean {
    const held = this.#withSvid();
    const surplus = held.length - this.#options.maxSvids;
    if (surplus <= 0) return false;
    const inUse = this.#inUse();
    const idle = held.filter(({ entry }) => !inUse.has(entry.id)).sort((a, b) => a.lastUsed - b.lastUsed);
    for (const holding of idle.slice(0, surplus) as Holding[]) {
      holding.svid = undefined;
      svidEvicted(this.#options.log, holding.entry);
    }
    return idle.length > 0;
  }
}

function replaced(svid: HeldSvid, entry: CachedEntry): Pick<SigningRequest, "expiresAt" | "isOutdated"> {
  return { expiresAt: svid.expiresAt, isOutdated: svid.revisionNumber !== entry.revisionNumber };
}
