import { parseCertificate } from "../../src/crypto/certificate.ts";
import { denialReason, retryAfterOf } from "../../src/rpc/status.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Log } from "../../src/runtime/log.ts";
import { Backoff } from "../../src/runtime/task.ts";
import type { Bundle, TokenAuthority } from "../../src/spiffe/bundle.ts";
import { sameAuthorities } from "../../src/spiffe/bundle.ts";
import { sameVersion } from "../../src/spiffe/entry-digest.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import {
  chore,
  federatedBundleMissing,
  malformedBundle,
  quarantineChanged,
  svidsTainted,
  synced,
  syncFailed,
  syncRecovered,
  taintedAuthoritiesFound,
} from "../events.ts";
import { wait } from "../node/wait.ts";
import type { IdentityCache } from "./entries.ts";
import type { CachedEntry } from "./entry.ts";
import { type EntryStream, syncEntries } from "./entry-sync.ts";
import type { TrustBundles } from "./update.ts";

const BACKOFF_INTERVALS = 48;
const LONGEST_BACKOFF_MS = 8 * 60_000;
/** With nothing to serve yet, the agent does not sit out a long interval. */
const EMPTY_INTERVAL_MS = 5_000;
const FEDERATED_AT_ONCE = 10;
const LEAST_REFRESH_MS = 1_000;
/** A caller that has nothing yet is not kept waiting longer for a server that does not answer. */
const LONGEST_REFRESH_MS = 2_000;

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

const TOKEN_KINDS = ["jwtAuthorities", "witAuthorities"] as const satisfies readonly (keyof Bundle)[];
type TokenKind = (typeof TOKEN_KINDS)[number];

interface TokenKeeper {
  /** Forgets the tokens that were signed with these keys, and keeps none of them from now on. */
  refuseKeys(keyIds: ReadonlySet<string>): void;
  /** Forgets all tokens. */
  clear(): void;
}

/** What the server refuses calls of an agent with that it has quarantined. No SPIRE agent acts on it. */
const QUARANTINED_CODE = "agent-quarantined";

export interface SynchronizerOptions {
  readonly cache: IdentityCache;
  /** Who keeps the tokens that these authorities sign. */
  readonly tokens: Readonly<Record<TokenKind, TokenKeeper | undefined>>;
  readonly upstream: SyncUpstream;
  readonly trust: TrustKeeper;
  readonly intervalMs: number;
  readonly clock: Clock;
  readonly log: Log;
}

interface Pace {
  /** Grows when somebody wants to know now. */
  readonly asked: number;
  /** Changes are told as they happen: there is no need to ask. */
  readonly pushed: boolean;
}

/** Keeps the cache equal to what the server authorizes this agent for. While that fails, what is held stays. */
export class Synchronizer {
  readonly #options: SynchronizerOptions;
  readonly #pace = new Feed<Pace>({ asked: 0, pushed: false });
  /** Grows with every sync, whatever came of it. */
  readonly #syncs = new Feed(0);
  /** Grows with what was pushed: a sync that began before has nothing to say. */
  #pushes = 0;
  #refreshedAt = Number.NEGATIVE_INFINITY;
  readonly #tainted = new Set<string>();
  #entries: ReadonlyMap<string, CachedEntry> = new Map();
  #lastSync: Date | undefined;
  #quarantined = false;

  constructor(options: SynchronizerOptions) {
    this.#options = options;
  }

  get lastSync(): Date | undefined {
    return this.#lastSync;
  }

  get entries(): ReadonlyMap<string, CachedEntry> {
    return this.#entries;
  }

  /** True while the server gives this agent nothing, until an administrator releases it. */
  get quarantined(): boolean {
    return this.#quarantined;
  }

  /** Tokens go at once; entries, and the SVIDs with them, go and come back as the server says. */
  setQuarantined(quarantined: boolean): void {
    if (quarantined === this.#quarantined) return;
    this.#quarantined = quarantined;
    quarantineChanged(this.#options.log, quarantined);
    if (quarantined) for (const kind of TOKEN_KINDS) this.#options.tokens[kind]?.clear();
  }

  /** True while changes are told as they happen. */
  get pushed(): boolean {
    return this.#pace.value.pushed;
  }

  setPushed(pushed: boolean): void {
    if (pushed) this.#lastSync = this.#options.clock.now();
    if (pushed !== this.pushed) this.#pace.set({ ...this.#pace.value, pushed });
  }

  /** Entries and bundles are taken together or not at all. */
  async sync(signal: AbortSignal): Promise<void> {
    const { cache } = this.#options;
    const pushes = this.#pushes;
    const { entries, bundles } = await chore(this.#options, "manager.sync.fetch_entries_updates", () =>
      this.#fetch(signal).catch((error: unknown) => this.#nothingIn(error)),
    );
    if (cache.ready.value && pushes !== this.#pushes) return;
    await this.#accept(entries, bundles);
    if (entries.size > 0) this.setQuarantined(false);
  }

  /** To be refused for a quarantine is an answer: there is nothing for this agent. */
  #nothingIn(error: unknown): { readonly entries: Synchronizer["entries"]; readonly bundles: TrustBundles } {
    if (!isFault(error, "denied") || error.code !== QUARANTINED_CODE) throw error;
    this.setQuarantined(true);
    return { entries: new Map(), bundles: { own: this.#options.cache.bundle.value.own, federated: new Map() } };
  }

  async #fetch(signal: AbortSignal): Promise<{
    readonly entries: ReadonlyMap<string, CachedEntry>;
    readonly bundles: TrustBundles;
  }> {
    const { upstream, log } = this.#options;
    const entries = await upstream.syncEntries((open) => syncEntries(open, this.#entries, log), signal);
    return { entries, bundles: await this.#fetchBundles(entries, signal) };
  }

  /** What the server told: some entries are new or changed, some are gone. */
  takeEntries(changed: ReadonlyMap<string, CachedEntry>, removed: ReadonlySet<string>): void {
    this.#pushes += 1;
    this.#lastSync = this.#options.clock.now();
    if (changed.size + removed.size === 0) return;
    const entries = new Map(this.#entries);
    for (const id of removed) entries.delete(id);
    for (const [id, entry] of changed) if (!sameVersion(entry, entries.get(id))) entries.set(id, entry);
    this.#tellDifference(entries, this.#options.cache.bundle.value);
    this.#entries = entries;
    this.#options.cache.replace(entries, this.#options.cache.bundle.value);
  }

  /** The same of bundles. One that would cut the agent off is left out. */
  async takeBundles(changed: readonly Bundle[], removed: readonly string[]): Promise<void> {
    this.#pushes += 1;
    const held = this.#options.cache.bundle.value;
    const federated = new Map(held.federated);
    for (const name of removed) federated.delete(name as TrustDomain);
    let own = held.own;
    for (const bundle of changed) {
      const { trustDomain } = bundle;
      if (trustDomain !== held.own.trustDomain)
        federated.set(trustDomain, unlessSame(bundle, held.federated.get(trustDomain)));
      else if (bundle.x509Authorities.length > 0) own = unlessSame(bundle, held.own);
      else malformedBundle(this.#options.log, "the own bundle holds no authorities");
    }
    await this.#accept(this.#entries, { own, federated });
  }

  async #accept(entries: ReadonlyMap<string, CachedEntry>, bundles: TrustBundles): Promise<void> {
    const { cache, tokens, trust, clock } = this.#options;
    this.#tellDifference(entries, bundles);
    this.#entries = entries;
    const before = cache.bundle.value.own;
    if (bundles.own !== before) await trust.acceptBundle(bundles.own);
    cache.replace(this.#entries, bundles);
    await this.#processTainted(bundles.own);
    this.#lastSync = clock.now();
    if (bundles.own === before) return;
    for (const kind of TOKEN_KINDS) {
      const keyIds = refusedKeys(before[kind], bundles.own[kind]);
      const known = taintedKeys(before[kind]);
      const found = [...taintedKeys(bundles.own[kind])].filter((id) => !known.has(id));
      if (found.length > 0) taintedAuthoritiesFound(this.#options.log, kind, found);
      const refuse = async (): Promise<void> => tokens[kind]?.refuseKeys(keyIds);
      if (kind === "jwtAuthorities" && keyIds.size > 0)
        await chore(this.#options, "cache_manager.workload.process_tainted_jwt_svids", refuse);
      else await refuse();
    }
  }

  #tellDifference(entries: ReadonlyMap<string, CachedEntry>, { federated }: TrustBundles): void {
    const held = this.#entries;
    const missing = [...entries.keys()].filter((id) => !held.has(id)).length;
    const same = [...entries].filter(([id, entry]) => held.get(id) === entry).length;
    synced(this.#options.log, {
      ...{ bundles: federated.size + 1, entries: entries.size, missing },
      ...{ stale: entries.size - same - missing, dropped: held.size - (entries.size - missing) },
    });
  }

  /** The next sync begins now. */
  ask(): void {
    this.#pace.set({ ...this.#pace.value, asked: this.#pace.value.asked + 1 });
  }

  /**
   * Asks the server now, unless changes are told as they happen or somebody asked within the last second. Resolves when
   * the answer is in the cache, and also when there is none.
   */
  async refresh(signal: AbortSignal): Promise<void> {
    const { clock, cache } = this.#options;
    const now = clock.monotonic();
    if (this.pushed || !cache.ready.value || now - this.#refreshedAt < LEAST_REFRESH_MS) return;
    this.#refreshedAt = now;
    await this.#askAndWait(signal);
  }

  /**
   * When agent and server last agreed. While changes are pushed that may be long ago, as there was nothing to say; then
   * the server is asked first, no more often than it would be without the push.
   */
  async confirmed(signal: AbortSignal): Promise<Date | undefined> {
    const { clock, intervalMs } = this.#options;
    const age = clock.now().getTime() - (this.#lastSync?.getTime() ?? 0);
    if (this.pushed && age > intervalMs) await this.#askAndWait(signal);
    return this.#lastSync;
  }

  async #askAndWait(signal: AbortSignal): Promise<void> {
    const before = this.#syncs.value;
    this.ask();
    const until = (syncs: number): boolean => syncs !== before;
    await wait({ clock: this.#options.clock, feed: this.#syncs, until, ms: LONGEST_REFRESH_MS }, signal);
  }

  /** Until the signal ends it by throwing, or the server's answer ends the agent. */
  async run(signal: AbortSignal): Promise<never> {
    const { clock, log, intervalMs, trust } = this.#options;
    const longest = Math.min(LONGEST_BACKOFF_MS, BACKOFF_INTERVALS * intervalMs);
    const backoff = new Backoff(clock, { firstMs: intervalMs, maxMs: Math.max(longest, intervalMs) });
    let pause = this.#interval(backoff.next());
    let failures = 0;
    let recovered = false;
    for (;;) {
      await this.#pause(pause, signal);
      try {
        await this.sync(signal);
        if (failures > 0) syncRecovered(log, failures);
        failures = 0;
        recovered = false;
        backoff.reset();
        pause = this.#interval(backoff.next());
      } catch (error) {
        signal.throwIfAborted();
        failures += 1;
        syncFailed(log, error);
        await trust.recover(Fault.from(error), signal);
        const acted = denialReason(Fault.from(error)) !== undefined;
        pause = acted && !recovered ? 0 : Math.max(backoff.next(), retryAfterOf(error));
        recovered = acted;
      } finally {
        this.#syncs.set(this.#syncs.value + 1);
      }
    }
  }

  /** Over when `ms` have passed and nothing is pushed, or somebody asks. */
  async #pause(ms: number, signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    const { asked } = this.#pace.value;
    const isAsked = (pace: Pace): boolean => pace.asked !== asked;
    await wait({ clock, feed: this.#pace, until: isAsked, ms }, signal);
    while (this.pushed && !isAsked(this.#pace.value)) {
      await this.#pace.until((pace) => !pace.pushed || isAsked(pace), signal);
      // A stream that breaks is made again at once as a rule, and many agents may lose theirs together.
      await wait({ clock, feed: this.#pace, until: isAsked, ms: ms * clock.random() }, signal);
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
  async #processTainted(bundle: Bundle): Promise<void> {
    const { cache, trust, log } = this.#options;
    const tainted = bundle.x509Authorities.filter((authority) => authority.tainted);
    const keyIds = new Set(
      tainted
        .map(({ asn1 }) => parseCertificate(asn1).subjectKeyId)
        .filter((id) => id !== "" && !this.#tainted.has(id)),
    );
    if (keyIds.size === 0) return;
    taintedAuthoritiesFound(log, "x509Authorities", [...keyIds]);
    const work = async (): Promise<number> => cache.taint(keyIds);
    const svids = await chore(this.#options, "cache_manager.workload.process_tainted_x509_svids", work);
    svidsTainted(log, keyIds, svids);
    trust.taint(keyIds);
    for (const id of keyIds) this.#tainted.add(id);
  }
}

/** Ids of the authorities that are tainted, or were revoked since. */
function refusedKeys(before: readonly TokenAuthority[], after: readonly TokenAuthority[]): ReadonlySet<string> {
  const present = new Set(after.map(({ keyId }) => keyId));
  const gone = before.map(({ keyId }) => keyId).filter((keyId) => !present.has(keyId));
  return new Set([...taintedKeys(after), ...gone]);
}

function taintedKeys(authorities: readonly TokenAuthority[]): ReadonlySet<string> {
  return new Set(authorities.filter(({ tainted }) => tainted).map(({ keyId }) => keyId));
}

/** The held object when nothing changed, so that comparing by identity is enough everywhere else. */
function unlessSame(bundle: Bundle, held: Bundle | undefined): Bundle {
  return held !== undefined && sameAuthorities(bundle, held) && bundle.refreshHint === held.refreshHint ? held : bundle;
}
