import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { retry } from "../../src/runtime/task.ts";
import { jwtSvidNotRenewed, jwtSvidsDropped } from "../events.ts";
import { msUntilDue, type Rotation } from "../node/rotation.ts";
import type { CachedEntry } from "./entry.ts";
import { SharedFlights } from "./shared-flights.ts";

/** A token as the server signed it. Immutable. */
export interface HeldToken {
  readonly token: string;
  readonly keyId: string;
  readonly issuedAt: Date;
  readonly expiresAt: Date;
  readonly rotation: Rotation;
}

export interface WantedToken {
  readonly entry: CachedEntry;
  /** What is wanted under equal keys is the same. */
  readonly key: string;
}

export interface TokenCacheOptions {
  readonly clock: Clock;
  readonly log: Log;
  /** Hard: what was used longest ago makes room. */
  readonly maxSvids: number;
  /** How long a renewal may take while the token that it replaces is still valid. */
  readonly hitTimeoutMs: number;
  /** Ends what goes on in the background. */
  readonly signal: AbortSignal;
}

/** Until a first token is here, with all attempts. */
const DEADLINE_MS = 30_000;
const RETRY = { firstMs: 1_000, maxMs: 1_000, factor: 1 } as const;
/** A caller waits so long for a fresher token when it could have the one at hand. */
const PATIENCE_MS = 1_000;
/** After a renewal has failed, the next is not tried before. */
const RENEWAL_PAUSE_MS = 1_000;
/** Asking again doesn't change these. */
const FINAL: ReadonlySet<string> = new Set(["invalid", "unimplemented", "cancelled", "timeout"]);

interface Slot<H> {
  readonly svid: H;
  renewal: Renewal<H> | undefined;
  /** By the monotonic clock. */
  nextRenewal: number;
}

interface Renewal<H> {
  /** Undefined when it failed. */
  readonly done: Promise<H | undefined>;
  /** Somebody has given up waiting for it, so nobody else starts to. */
  slow: boolean;
}

/**
 * Tokens of one kind. One past the middle of its life is renewed, but while the server is away it is handed out at once
 * for as long as it is valid.
 */
export abstract class TokenCache<W extends WantedToken, H extends HeldToken> {
  readonly #options: TokenCacheOptions;
  /** In the order of their last use. */
  readonly #slots = new Map<string, Slot<H>>();
  readonly #flights = new SharedFlights<H>();
  #refusedKeys: ReadonlySet<string> = new Set();

  constructor(options: TokenCacheOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#slots.size;
  }

  /** One request to the server. */
  protected abstract attempt(wanted: W, deadlineMs: number, signal: AbortSignal): Promise<H>;

  /** One that is held, or a new one. Throws what the server answered, or `internal` when that was not what was asked for. */
  protected async held(wanted: W, signal: AbortSignal): Promise<H> {
    const slot = this.#use(wanted.key);
    const svid = slot === undefined ? undefined : await this.#fresh(slot, wanted);
    return svid ?? this.#flights.join(wanted.key, (stop) => this.#first(wanted, stop), signal);
  }

  /** A new one, which is not kept: attempts until the deadline. */
  protected request(wanted: W, signal: AbortSignal): Promise<H> {
    const { clock } = this.#options;
    const end = clock.monotonic() + DEADLINE_MS;
    const options = { ...RETRY, giveUpAfterMs: DEADLINE_MS, retryable: isTransient };
    return retry(clock, options, (stop) => this.attempt(wanted, Math.max(1, end - clock.monotonic()), stop), signal);
  }

  /** Forgets the tokens that were signed with these keys, and keeps none of them from now on. */
  refuseKeys(keyIds: ReadonlySet<string>): void {
    this.#refusedKeys = keyIds;
    const dropped = [...this.#slots].filter(([, { svid }]) => keyIds.has(svid.keyId));
    for (const [key] of dropped) this.#slots.delete(key);
    this.sized(this.#slots.size);
    const byKey = Map.groupBy(dropped, ([, { svid }]) => svid.keyId);
    for (const [keyId, { length }] of byKey) jwtSvidsDropped(this.#options.log, keyId, length);
  }

  clear(): void {
    this.#slots.clear();
    this.sized(0);
  }

  /** Undefined for one that has expired, too. */
  #use(key: string): Slot<H> | undefined {
    const slot = this.#slots.get(key);
    if (slot === undefined) return undefined;
    this.#slots.delete(key);
    if (slot.svid.expiresAt <= this.#options.clock.now()) return undefined;
    this.#slots.set(key, slot);
    return slot;
  }

  #keep(key: string, svid: H): void {
    this.#slots.delete(key);
    if (this.#refusedKeys.has(svid.keyId)) return;
    for (const oldest of this.#slots.keys()) {
      if (this.#slots.size < this.#options.maxSvids) break;
      this.#slots.delete(oldest);
    }
    this.#slots.set(key, { svid, renewal: undefined, nextRenewal: 0 });
    this.sized(this.#slots.size);
  }

  /** Told how many are held, after each change. */
  protected sized(_held: number): void {}

  /** Undefined when the token was dropped meanwhile. */
  async #fresh(slot: Slot<H>, wanted: W): Promise<H | undefined> {
    const { clock } = this.#options;
    if (msUntilDue(slot.svid.rotation, clock) > 0) return slot.svid;
    slot.renewal ??= this.#renew(slot, wanted);
    const renewed = slot.renewal === undefined ? undefined : await this.#patiently(slot.renewal);
    if (renewed !== undefined) return renewed;
    return this.#slots.get(wanted.key) === slot ? slot.svid : undefined;
  }

  #renew(slot: Slot<H>, wanted: W): Renewal<H> | undefined {
    const { clock, log, hitTimeoutMs, signal } = this.#options;
    if (clock.monotonic() < slot.nextRenewal) return undefined;
    const failed = (error: unknown): undefined => {
      slot.renewal = undefined;
      slot.nextRenewal = clock.monotonic() + RENEWAL_PAUSE_MS;
      if (!signal.aborted) jwtSvidNotRenewed(log, wanted.entry.spiffeId, error);
    };
    return {
      done: this.attempt(wanted, hitTimeoutMs, signal).then((svid) => this.#kept(wanted, svid), failed),
      slow: false,
    };
  }

  async #patiently(renewal: Renewal<H>): Promise<H | undefined> {
    if (renewal.slow) return undefined;
    const enough = new AbortController();
    const waited = this.#options.clock.sleep(PATIENCE_MS, enough.signal).then(
      () => {
        renewal.slow = true;
        return undefined;
      },
      () => undefined,
    );
    try {
      return await Promise.race([renewal.done, waited]);
    } finally {
      enough.abort();
    }
  }

  async #first(wanted: W, signal: AbortSignal): Promise<H> {
    return this.#kept(wanted, await this.request(wanted, signal));
  }

  #kept({ key }: W, svid: H): H {
    this.#keep(key, svid);
    return svid;
  }
}

const WRONG_TOKEN = "token-wrong";

function isTransient(error: unknown): boolean {
  const { kind, code } = Fault.from(error);
  return !FINAL.has(kind) && code !== WRONG_TOKEN;
}

/** The server signed something else than was asked for. */
export function wrongToken(message: string): Fault {
  return new Fault("internal", message, { code: WRONG_TOKEN });
}
