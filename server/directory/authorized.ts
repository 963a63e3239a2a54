import type { Clock } from "../../src/runtime/clock.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { Entry } from "../../src/spiffe/entry.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import type { AttestedNode, ChangeSet } from "../store/store.ts";
import { isBanned } from "./agents.ts";
import { EntryIndex } from "./entries.ts";
import { NodeIndex } from "./nodes.ts";
import { Watchers } from "./watchers.ts";

/** What a snapshot of the database is loaded into before it becomes the directory's content, all at once. */
export interface DirectoryContent {
  readonly entries: EntryIndex;
  readonly nodes: NodeIndex;
  readonly bundles: ReadonlyMap<TrustDomain, Bundle>;
}

interface Answer {
  readonly entries: ReadonlyMap<string, Entry>;
  /** Unix milliseconds at which something in the answer ends by itself. */
  readonly until: number;
}

/** Bounds the memory of remembered answers: entries referred to, over all agents. */
const REMEMBERED_ENTRIES = 200_000;

/**
 * Who is entitled to what, in memory: no question put to it reads the database. Follows the change feed through
 * `apply` and `replace`; bundles are swapped whole.
 */
export class Directory {
  readonly bundles = new Feed<ReadonlyMap<TrustDomain, Bundle>>(new Map());
  readonly ownBundle = new Feed<Bundle | undefined>(undefined);
  readonly #trustDomain: TrustDomain;
  readonly #clock: Clock;
  #entries: EntryIndex;
  #nodes = new NodeIndex();
  readonly #watchers = new Watchers();
  readonly #answers = new Map<SpiffeId, Answer>();
  #remembered = 0;

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
    return [...this.#answer(agent).entries.values()];
  }

  /** The entry, when this agent is entitled to it. Many questions about one agent cost one descent. */
  authorizedEntry(agent: SpiffeId, entryId: string): Entry | undefined {
    return this.#answer(agent).entries.get(entryId);
  }

  /**
   * Yields what `authorizedEntries` answers: now, and again whenever that may be another answer, by a change or because
   * something in it ended. Unchanged entries are the same objects. Ends with the signal.
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
        const { entries, until } = this.#answer(agent);
        if (until < Number.POSITIVE_INFINITY) void this.#touchAt(agent, until, replaced.signal);
        yield entries;
      }
    } finally {
      replaced.abort();
    }
  }

  /** Yields now, and whenever the node or what it is authorized for may have changed. Ends with the signal. */
  watchNode(agent: SpiffeId, signal: AbortSignal): AsyncGenerator<void, void, undefined> {
    return this.#watchers.watch(agent, signal);
  }

  apply(changes: ChangeSet): void {
    // Who is above a changed entry is asked before and after: the change may have moved it, or those above it.
    const touched = new Set<SpiffeId>(changes.nodes.keys());
    const collect = (): void => {
      for (const id of changes.entries.keys()) this.#collectAffected(this.#entries.get(id), touched);
    };
    collect();
    for (const [id, entry] of changes.entries)
      entry === undefined ? this.#entries.delete(id) : this.#entries.put(entry);
    for (const [id, node] of changes.nodes) node === undefined ? this.#nodes.delete(id) : this.#nodes.put(node);
    collect();
    for (const agent of touched) {
      this.#forget(agent);
      this.#watchers.touch(agent);
    }
    if (changes.bundles.size > 0) this.#setBundles(changed(this.bundles.value, changes.bundles));
  }

  replace(content: DirectoryContent): void {
    this.#entries = content.entries;
    this.#nodes = content.nodes;
    this.#forgetAll();
    this.#watchers.touchAll();
    this.#setBundles(content.bundles);
  }

  /** Adds the agents whose answer may contain this entry, or depend on it. IDs that are no agent's do no harm. */
  #collectAffected(entry: Entry | undefined, touched: Set<SpiffeId>): void {
    if (entry === undefined) return;
    const { parents, aliases } = this.#entries.above(entry);
    for (const id of parents) touched.add(id);
    for (const { selectors } of aliases) for (const id of this.#nodes.withSelectors(selectors)) touched.add(id);
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
    const answer = this.#descend(agent, now);
    if (this.#remembered + answer.entries.size > REMEMBERED_ENTRIES) this.#forgetAll();
    this.#answers.set(agent, answer);
    this.#remembered += answer.entries.size;
    return answer;
  }

  #descend(agent: SpiffeId, now: number): Answer {
    const found = new Map<string, Entry>();
    const { parents, until } = this.#startOf(agent, now);
    const seen = new Set(parents);
    let ends = until;
    for (let parent = parents.pop(); parent !== undefined; parent = parents.pop()) {
      for (const entry of this.#entries.children(parent)) {
        const end = endOf(entry);
        if (end <= now) continue;
        ends = Math.min(ends, end);
        found.set(entry.id, entry);
        if (seen.has(entry.spiffeId)) continue;
        seen.add(entry.spiffeId);
        parents.push(entry.spiffeId);
      }
    }
    return { entries: found, until: ends };
  }

  #startOf(agent: SpiffeId, now: number): { readonly parents: SpiffeId[]; readonly until: number } {
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
    return { parents: [...parents], until };
  }

  #forget(agent: SpiffeId): void {
    this.#remembered -= this.#answers.get(agent)?.entries.size ?? 0;
    this.#answers.delete(agent);
  }

  #forgetAll(): void {
    this.#answers.clear();
    this.#remembered = 0;
  }
}

/** Unix milliseconds; an entry counts until its `expiresAt` is past. */
function endOf(entry: Entry): number {
  return entry.expiresAt === 0 ? Number.POSITIVE_INFINITY : entry.expiresAt * 1000;
}

function changed<K, V>(current: ReadonlyMap<K, V>, changes: ReadonlyMap<K, V | undefined>): ReadonlyMap<K, V> {
  const next = new Map(current);
  for (const [key, value] of changes) value === undefined ? next.delete(key) : next.set(key, value);
  return next;
}
