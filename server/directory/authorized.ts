import type { Clock } from "../../src/runtime/clock.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import type { AttestedNode, ChangeSet } from "../store/store.ts";
import { isBanned } from "./agents.ts";
import { EntryIndex, endOf } from "./entries.ts";
import { NodeIndex } from "./nodes.ts";
import { atOnce, type Steps } from "./steps.ts";
import { Watchers } from "./watchers.ts";

/**
 * The whole content anew, in portions. Nobody sees any of it before `finish` has got to the end of it, or ever after
 * `abandon`; one of the two follows.
 */
export interface Reload {
  entry(entry: Entry): void;
  node(node: AttestedNode): void;
  bundle(bundle: Bundle): void;
  /** What was given takes the place of all that was held. */
  finish(): Steps;
  abandon(): Steps;
}

interface Answer {
  readonly entries: readonly Entry[];
  /** Unix milliseconds at which something in the answer ends by itself. */
  readonly until: number;
  /** Made when it is first needed. */
  byId?: ReadonlyMap<string, Entry>;
}

/** Bounds the memory of remembered answers: entries referred to, over all agents. */
const REMEMBERED_ENTRIES = 200_000;
/** Watchers that are told of a change before the event loop gets a turn: each may look at thousands of entries. */
const TOLD_AT_ONCE = 8;

/**
 * Who is entitled to what, in memory: no question put to it reads the database. Follows the change feed through
 * `apply` and `reload`, one at a time; bundles are swapped whole.
 *
 * Large changes take many steps, and questions may come between any two of them. They are answered by what was held
 * before, until at one moment all of the change is held.
 */
export class Directory {
  readonly bundles = new Feed<ReadonlyMap<TrustDomain, Bundle>>(new Map());
  readonly ownBundle = new Feed<Bundle | undefined>(undefined);
  readonly #trustDomain: TrustDomain;
  readonly #clock: Clock;
  readonly #entries: EntryIndex;
  readonly #nodes = new NodeIndex();
  readonly #watchers = new Watchers();
  readonly #answers = new Map<SpiffeId, Answer>();
  #remembered = 0;
  /** Agents that were asked about since it was seen whom the staged change concerns. */
  #askedMeanwhile: Set<SpiffeId> | undefined;
  #committed = false;

  constructor(options: { readonly trustDomain: TrustDomain; readonly clock: Clock }) {
    this.#trustDomain = options.trustDomain;
    this.#clock = options.clock;
    this.#entries = new EntryIndex(options.trustDomain);
  }

  get counts(): {
    readonly entries: number;
    readonly nodes: number;
    readonly quarantined: number;
    readonly bundles: number;
  } {
    const { size: nodes, quarantined } = this.#nodes;
    return { entries: this.#entries.size, nodes, quarantined, bundles: this.bundles.value.size };
  }

  entry(id: string): Entry | undefined {
    return this.#entries.get(id);
  }

  node(id: SpiffeId): AttestedNode | undefined {
    return this.#nodes.get(id);
  }

  bundle(trustDomain: TrustDomain): Bundle | undefined {
    return this.bundles.value.get(trustDomain);
  }

  /** An entry with the admin bit names this ID. IDs of the configuration are the caller's matter. */
  isAdmin(id: SpiffeId): boolean {
    return this.#hasPrivilege(id, (entry) => entry.admin);
  }

  isDownstream(id: SpiffeId): boolean {
    return this.#hasPrivilege(id, (entry) => entry.downstream);
  }

  /**
   * Direct children, those of matching node aliases, and their descendants. An agent that is not known yet, or whose
   * attestation ended, has no aliases; one that is banned or quarantined gets nothing.
   */
  authorizedEntries(agent: SpiffeId): readonly Entry[] {
    return this.#answer(agent).entries;
  }

  /** The entry, when this agent is entitled to it. Many questions about one agent cost one descent. */
  authorizedEntry(agent: SpiffeId, entryId: string): Entry | undefined {
    return entriesById(this.#answer(agent)).get(entryId);
  }

  /**
   * Yields what `authorizedEntries` answers: now, and again whenever that may be another answer, by a change or because
   * something in it ended, or a bundle changed. Unchanged entries are the same objects. Ends with the signal.
   */
  async *watchAuthorized(
    agent: SpiffeId,
    signal: AbortSignal,
  ): AsyncGenerator<ReadonlyMap<string, Entry>, void, undefined> {
    let replaced = new AbortController();
    try {
      for await (const _ of this.#watchers.watch(agent, signal)) {
        replaced.abort();
        replaced = new AbortController();
        const answer = this.#answer(agent);
        if (answer.until < Number.POSITIVE_INFINITY) void this.#touchAt(agent, answer.until, replaced.signal);
        yield entriesById(answer);
      }
    } finally {
      replaced.abort();
    }
  }

  /** Yields now, and whenever the node or what it is authorized for may have changed. Ends with the signal. */
  watchNode(agent: SpiffeId, signal: AbortSignal): AsyncGenerator<void, void, undefined> {
    return this.#watchers.watch(agent, signal);
  }

  /** All of it is held, and whoever watches has been told, when the last step is done. */
  *apply({ entries, nodes, bundles }: ChangeSet): Steps {
    try {
      for (const [id, entry] of entries) {
        entry === undefined ? this.#entries.delete(id) : this.#entries.put(entry);
        yield;
      }
      for (const [id, node] of nodes) {
        node === undefined ? this.#nodes.delete(id) : this.#nodes.put(node);
        yield;
      }
      yield* this.#take(bundles.size > 0 ? changed(this.bundles.value, bundles) : this.bundles.value);
    } finally {
      atOnce(this.#end());
    }
  }

  reload(): Reload {
    const bundles = new Map<TrustDomain, Bundle>();
    const [end, take] = [() => this.#end(), () => this.#take(bundles)];
    const [entries, nodes] = [this.#entries, this.#nodes];
    return {
      entry: (entry) => entries.put(entry),
      node: (node) => nodes.put(node),
      bundle: (bundle) => bundles.set(bundle.trustDomain, bundle),
      *finish() {
        try {
          yield* entries.deleteOthers();
          yield* nodes.deleteOthers();
          yield* take();
        } finally {
          atOnce(end());
        }
      },
      abandon: end,
    };
  }

  /** What is staged becomes what is held. */
  *#take(bundles: ReadonlyMap<TrustDomain, Bundle>): Steps {
    this.#askedMeanwhile = new Set();
    const touched = new Set<SpiffeId>(this.#nodes.staged());
    const touch = (id: SpiffeId): void => {
      if (this.#answers.has(id) || this.#watchers.has(id)) touched.add(id);
    };
    yield* this.#entries.above(touch, (selectors) => {
      for (const id of this.#nodes.withSelectors(selectors)) touch(id);
    });
    const others = this.bundles.value === bundles ? [] : this.#watchers.watched();
    this.#committed = true;
    this.#entries.commit();
    this.#nodes.commit();
    this.#setBundles(bundles);
    for (const agent of this.#askedMeanwhile) touched.add(agent);
    for (const agent of touched) this.#forget(agent);
    for (const agent of others) touched.add(agent);
    yield* this.#tell(touched);
    yield* this.#end();
  }

  *#tell(agents: Iterable<SpiffeId>): Steps {
    let told = 0;
    for (const agent of agents) {
      told += Number(this.#watchers.touch(agent));
      yield told > 0 && told % TOLD_AT_ONCE === 0 ? "turn" : undefined;
    }
  }

  /** Nothing is staged any more. */
  *#end(): Steps {
    this.#askedMeanwhile = undefined;
    if (this.#committed) {
      yield* this.#entries.settle();
      yield* this.#nodes.settle();
    } else {
      yield* this.#entries.undo();
      yield* this.#nodes.undo();
    }
    this.#committed = false;
  }

  async #touchAt(agent: SpiffeId, until: number, signal: AbortSignal): Promise<void> {
    try {
      await this.#clock.sleep(until - this.#clock.now().getTime() + 1, signal);
      this.#watchers.touch(agent);
    } catch {
      // Another answer has replaced it, or nobody waits any more.
    }
  }

  #setBundles(bundles: ReadonlyMap<TrustDomain, Bundle>): void {
    this.bundles.set(bundles);
    const own = bundles.get(this.#trustDomain);
    if (own !== this.ownBundle.value) this.ownBundle.set(own);
  }

  #hasPrivilege(id: SpiffeId, has: (entry: Entry) => boolean): boolean {
    const now = this.#clock.now().getTime();
    for (const entry of this.#entries.privileged(id)) if (has(entry) && endOf(entry) > now) return true;
    return false;
  }

  #answer(agent: SpiffeId): Answer {
    const now = this.#clock.now().getTime();
    const held = this.#answers.get(agent);
    if (held !== undefined && held.until > now) return held;
    this.#forget(agent);
    this.#askedMeanwhile?.add(agent);
    const answer = this.#descend(agent, now);
    if (this.#remembered + answer.entries.length > REMEMBERED_ENTRIES) this.#forgetAll();
    this.#answers.set(agent, answer);
    this.#remembered += answer.entries.length;
    return answer;
  }

  #descend(agent: SpiffeId, now: number): Answer {
    const { parents, until } = this.#startOf(agent, now);
    const below = this.#entries.below(parents, now);
    return { entries: below.entries, until: Math.min(until, below.until) };
  }

  #startOf(agent: SpiffeId, now: number): { readonly parents: Iterable<SpiffeId>; readonly until: number } {
    const node = this.#nodes.get(agent);
    if (node !== undefined && (isBanned(node) || node.quarantine !== undefined))
      return { parents: [], until: Number.POSITIVE_INFINITY };
    if (node === undefined || node.expiresAt.getTime() <= now)
      return { parents: [agent], until: Number.POSITIVE_INFINITY };
    const parents = new Set([agent]);
    let until = node.expiresAt.getTime();
    for (const alias of this.#entries.aliasesOf(node.selectors)) {
      if (endOf(alias) <= now) continue;
      until = Math.min(until, endOf(alias));
      parents.add(alias.spiffeId);
    }
    return { parents, until };
  }

  #forget(agent: SpiffeId): void {
    this.#remembered -= this.#answers.get(agent)?.entries.length ?? 0;
    this.#answers.delete(agent);
  }

  #forgetAll(): void {
    this.#answers.clear();
    this.#remembered = 0;
  }
}

function entriesById(answer: Answer): ReadonlyMap<string, Entry> {
  answer.byId ??= new Map(answer.entries.map((entry) => [entry.id, entry]));
  return answer.byId;
}

function changed<K, V>(current: ReadonlyMap<K, V>, changes: ReadonlyMap<K, V | undefined>): ReadonlyMap<K, V> {
  const next = new Map(current);
  for (const [key, value] of changes) value === undefined ? next.delete(key) : next.set(key, value);
  return next;
}
