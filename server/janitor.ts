import { randomUUID } from "node:crypto";
import { parseCertificate } from "../src/crypto/certificate.ts";
import type { Clock } from "../src/runtime/clock.ts";
import { Fault } from "../src/runtime/fault.ts";
import type { Log } from "../src/runtime/log.ts";
import { every } from "../src/runtime/task.ts";
import type { Bundle, TokenAuthority } from "../src/spiffe/bundle.ts";
import type { TrustDomain } from "../src/spiffe/id.ts";
import * as events from "./events.ts";
import type { NodeFilter, Store } from "./store/store.ts";

export interface JanitorOptions {
  readonly store: Pick<
    Store,
    "entries" | "nodes" | "tokens" | "bundles" | "authorities" | "links" | "changes" | "leases"
  >;
  readonly trustDomain: TrustDomain;
  /** Which nodes are pruned; absent: none. */
  readonly nodes?: NodePruning | undefined;
  /** Between rounds, give or take a fifth. Default: SPIRE's five minutes. */
  readonly roundMs?: number;
  readonly clock: Clock;
  readonly log: Log;
}

export interface NodePruning {
  readonly expiredForMs: number;
  /** Most nodes in one round. */
  readonly batchSize: number;
  /** Those too that can attest only once. */
  readonly includeNonReattestable: boolean;
}

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const ROUND_MS = 5 * MINUTE_MS;
const LEASE = "janitor";
/** In rounds: the one that prunes keeps the lease from round to round, and may miss one before another takes over. */
const LEASE_ROUNDS = 3;
const ENTRIES_PER_ROUND = 1000;
const NODES_AT_ONCE = 1000;
/** How long an expired authority stays in the bundle. */
const AUTHORITY_GRACE_MS = 24 * HOUR_MS;
/** How long an expired authority stays in the journal. */
const JOURNAL_GRACE_MS = 14 * 24 * HOUR_MS;
/** A server that was cut off for longer loads everything again. */
const CHANGES_KEPT_MS = HOUR_MS;

/**
 * Removes what has ended: entries, join tokens, roots, journal rows, change log. Of the servers on one database the one
 * that has the lease does; when it ends or is lost, another takes over.
 */
export async function runJanitor(options: JanitorOptions, signal: AbortSignal): Promise<void> {
  const { clock, roundMs = ROUND_MS } = options;
  const lease = new JanitorLease(options);
  const pause = (): number => roundMs * (0.8 + 0.4 * clock.random());
  try {
    await clock.sleep(pause(), signal);
    await every(clock, pause, () => tidy(options, () => lease.held()), signal);
  } finally {
    await lease.release();
  }
}

class JanitorLease {
  readonly #options: JanitorOptions;
  readonly #holder = randomUUID();
  #isHeld = false;

  constructor(options: JanitorOptions) {
    this.#options = options;
  }

  /** Takes or extends it. A database that is away grants none. */
  async held(): Promise<boolean> {
    const { store, log, roundMs = ROUND_MS } = this.#options;
    const was = this.#isHeld;
    try {
      this.#isHeld = await store.leases.take(LEASE, this.#holder, roundMs * LEASE_ROUNDS);
    } catch (error) {
      this.#isHeld = false;
      log.warn("Could not prune the datastore", { what: "lease", error: Fault.from(error) });
      return false;
    }
    if (this.#isHeld !== was)
      log.debug(this.#isHeld ? "This server prunes the datastore" : "Another server prunes the datastore");
    return this.#isHeld;
  }

  /** What cannot be released ends by itself. */
  async release(): Promise<void> {
    if (this.#isHeld) await this.#options.store.leases.release(LEASE, this.#holder).catch(() => undefined);
  }
}

/**
 * One round, for as long as the lease is held: it is asked before each step. A step that fails is logged; the others are
 * taken all the same. Each is one transaction that does no harm if two servers should ever take it at once.
 */
export async function tidy(options: JanitorOptions, isHeld: () => Promise<boolean>): Promise<void> {
  const { store, trustDomain, nodes, clock, log } = options;
  const now = clock.now();
  const ago = (ms: number): Date => new Date(now.getTime() - ms);
  const steps: Readonly<Record<string, () => Promise<number>>> = {
    "expired entries": () =>
      events.chore(options, "registration_entry.manager.prune", () => pruneEntries(store, now, log)),
    "expired agents": async () =>
      nodes === undefined
        ? 0
        : events.chore(options, "node.manager.prune", () => pruneNodes(store, nodes, { now, log })),
    "expired join tokens": () => store.tokens.prune(now),
    "expired authorities": () =>
      events.chore(options, "ca.manager.bundle.prune", () =>
        pruneAuthorities(store, { trustDomain, before: ago(AUTHORITY_GRACE_MS), log }),
      ),
    "old journal records": () => store.authorities.prune(ago(JOURNAL_GRACE_MS)),
    "old bundle links": () => store.links.prune(now),
    "old changes": () => store.changes.prune(ago(CHANGES_KEPT_MS)),
  };
  for (const [what, step] of Object.entries(steps)) {
    if (!(await isHeld())) return;
    try {
      const removed = await step();
      if (removed > 0) log.debug("Pruned the datastore", { what, removed });
    } catch (error) {
      log.warn("Could not prune the datastore", { what, error: Fault.from(error) });
    }
  }
}

async function pruneEntries(store: JanitorOptions["store"], now: Date, log: Log): Promise<number> {
  let removed = 0;
  for (;;) {
    const pruned = await store.entries.prune(now, ENTRIES_PER_ROUND);
    for (const { id, spiffeId, parentId } of pruned) {
      log.info("Pruned an expired registration", { entry_id: id, spiffe_id: spiffeId, parent_id: parentId });
    }
    removed += pruned.length;
    if (pruned.length < ENTRIES_PER_ROUND) return removed;
  }
}

/** Never a banned node, nor one in quarantine: its record is what keeps it from coming back as a new one. */
async function pruneNodes(
  store: JanitorOptions["store"],
  { expiredForMs, batchSize, includeNonReattestable }: NodePruning,
  { now, log }: { readonly now: Date; readonly log: Log },
): Promise<number> {
  const before = new Date(now.getTime() - expiredForMs);
  const filter: NodeFilter = {
    expiresBefore: before,
    banned: false,
    quarantined: false,
    ...(includeNonReattestable ? {} : { canReattest: true }),
  };
  let removed = 0;
  let token = "";
  do {
    const page = await store.nodes.list(filter, { size: Math.min(batchSize - removed, NODES_AT_ONCE), token });
    for (const { id } of page.items) if ((await store.nodes.delete(id, before)) !== undefined) removed += 1;
    token = page.nextPageToken;
  } while (token !== "" && removed < batchSize);
  if (removed > 0) log.info("Pruned expired agents", { count: removed });
  return removed;
}

/** Never takes the last authority of a kind, and writes only when one has ended. */
async function pruneAuthorities(
  store: JanitorOptions["store"],
  { trustDomain, before, log }: { readonly trustDomain: TrustDomain; readonly before: Date; readonly log: Log },
): Promise<number> {
  const bundle = await store.bundles.find(trustDomain);
  if (bundle === undefined || sizeOf(living(bundle, before)) === sizeOf(bundle)) return 0;
  let removed = 0;
  await store.bundles.change(trustDomain, (current) => {
    const held = current ?? bundle;
    const left = living(held, before);
    removed = sizeOf(held) - sizeOf(left);
    return { ...left, refreshHint: held.refreshHint };
  });
  if (removed > 0) events.bundlePruned(log);
  return removed;
}

type BundleAuthorities = Pick<Bundle, "x509Authorities" | "jwtAuthorities" | "witAuthorities">;

function living({ x509Authorities, jwtAuthorities, witAuthorities }: Bundle, before: Date): BundleAuthorities {
  const keeps = ({ expiresAt }: TokenAuthority): boolean => expiresAt === 0 || expiresAt * 1000 >= before.getTime();
  return {
    x509Authorities: someOf(x509Authorities, ({ asn1 }) => parseCertificate(asn1).notAfter >= before),
    jwtAuthorities: someOf(jwtAuthorities, keeps),
    witAuthorities: someOf(witAuthorities, keeps),
  };
}

function someOf<T>(authorities: readonly T[], keeps: (authority: T) => boolean): readonly T[] {
  const kept = authorities.filter(keeps);
  return kept.length === 0 ? authorities : kept;
}

function sizeOf({ x509Authorities, jwtAuthorities, witAuthorities }: BundleAuthorities): number {
  return x509Authorities.length + jwtAuthorities.length + witAuthorities.length;
}
