import type { Clock } from "../../src/runtime/clock.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";

/** What an authority signed that is not known to be replaced yet. */
export interface InUse {
  readonly agents: number;
  readonly downstreamServers: number;
  readonly workloadSvids: number;
  /** Tokens can't be counted; they end at the latest then. */
  readonly until: Date;
}

interface Holding {
  readonly authorityId: string;
  /** Unix milliseconds. */
  readonly ends: number;
}

/** In place of an entry id, which never has a star. */
const AGENT = "*agent";
const DOWNSTREAM = "*downstream";
/**
 * What was just replaced may be under way to a workload still, or stand in a handshake that has begun; so long it counts
 * as in use.
 */
const SETTLE_MS = 5000;
/** A server below needs longer: it polls, and then its own agents follow. */
const SETTLE_BELOW_MS = 30_000;
/** Writes between two looks for what has ended. */
const WRITES_PER_SWEEP = 10_000;

/**
 * Who holds what under which authority, as far as this server has seen since it started: the latest SVID of each agent
 * and entry, and the certificate with which an agent calls. What replaces an SVID replaces it here too.
 */
export class AuthorityUsage {
  readonly #clock: Pick<Clock, "now">;
  readonly #holders = new Map<SpiffeId, Map<string, Holding>>();
  /** Until when what was replaced under an authority counts as in use still, by authority: Unix milliseconds. */
  readonly #left = new Map<string, number>();
  /** By key id: end of the last token. */
  readonly #tokens = new Map<string, number>();
  #writes = 0;

  constructor(clock: Pick<Clock, "now">) {
    this.#clock = clock;
  }

  workloadSvid(agent: SpiffeId, entryId: string, svid: Signed): void {
    this.#put(agent, entryId, svid);
  }

  /** When the SVID that the agent got last for the entry ends. */
  endOf(agent: SpiffeId, entryId: string): Date | undefined {
    const ends = this.#holders.get(agent)?.get(entryId)?.ends;
    return ends === undefined ? undefined : new Date(ends);
  }

  /** From the certificate of a call. */
  agentSvid(agent: SpiffeId, svid: Signed): void {
    this.#put(agent, AGENT, svid);
  }

  downstreamCa(server: SpiffeId, ca: Signed): void {
    this.#put(server, DOWNSTREAM, ca);
  }

  token({ authorityId, notAfter }: Signed): void {
    this.#tokens.set(authorityId, Math.max(this.#tokens.get(authorityId) ?? 0, notAfter.getTime()));
  }

  /** Undefined when nothing under it is in use. `counts` says whose holdings matter still. */
  of(authorityId: string, counts: (holder: SpiffeId, entryId: string | undefined) => boolean): InUse | undefined {
    this.#sweep();
    const found = { [AGENT]: 0, [DOWNSTREAM]: 0, svids: 0 };
    const settled = this.#left.get(authorityId) ?? 0;
    let until = Math.max(this.#tokens.get(authorityId) ?? 0, settled);
    for (const [holder, items] of this.#holders) {
      for (const [item, holding] of items) {
        const special = item === AGENT || item === DOWNSTREAM;
        if (holding.authorityId !== authorityId || !counts(holder, special ? undefined : item)) continue;
        found[special ? item : "svids"] += 1;
        until = Math.max(until, holding.ends);
      }
    }
    if (until === 0) return undefined;
    return {
      agents: found[AGENT],
      downstreamServers: found[DOWNSTREAM],
      workloadSvids: found.svids,
      until: new Date(until),
    };
  }

  #put(holder: SpiffeId, item: string, { authorityId, notAfter }: Signed): void {
    const items = this.#holders.get(holder) ?? new Map<string, Holding>();
    this.#holders.set(holder, items);
    const held = items.get(item);
    const ends = notAfter.getTime();
    if (held?.authorityId === authorityId && held.ends === ends) return;
    if (held !== undefined && held.authorityId !== authorityId)
      this.#leave(held.authorityId, item === DOWNSTREAM ? SETTLE_BELOW_MS : SETTLE_MS);
    items.set(item, { authorityId, ends });
    this.#writes += 1;
    if (this.#writes % WRITES_PER_SWEEP === 0) this.#sweep();
  }

  #leave(authorityId: string, settlesMs: number): void {
    const until = this.#clock.now().getTime() + settlesMs;
    this.#left.set(authorityId, Math.max(this.#left.get(authorityId) ?? 0, until));
  }

  #sweep(): void {
    const now = this.#clock.now().getTime();
    for (const [authorityId, left] of this.#left) if (left <= now) this.#left.delete(authorityId);
    for (const [keyId, ends] of this.#tokens) if (ends <= now) this.#tokens.delete(keyId);
    for (const [holder, items] of this.#holders) {
      for (const [item, { ends }] of items) if (ends <= now) items.delete(item);
      if (items.size === 0) this.#holders.delete(holder);
    }
  }
}

interface Signed {
  readonly authorityId: string;
  readonly notAfter: Date;
}
