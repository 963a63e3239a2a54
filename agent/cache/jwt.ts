import { createHash } from "node:crypto";
import { parseJws } from "../../src/crypto/jws.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import { retry } from "../../src/runtime/task.ts";
import { jwtSvidNotRenewed, jwtSvidsDropped } from "../events.ts";
import { msUntilDue, type Rotation, rotationOfNew } from "../node/rotation.ts";
import type { JwtRequest, SignedJwt } from "../node/upstream.ts";
import type { CachedEntry } from "./entry.ts";
import { SharedFlights } from "./shared-flights.ts";

/** A JWT-SVID as the server signed it. Immutable. */
export interface HeldJwt {
  readonly token: string;
  readonly keyId: string;
  readonly issuedAt: Date;
  readonly expiresAt: Date;
  readonly rotation: Rotation;
}

interface JwtUpstream {
  signJwt(request: JwtRequest, signal: AbortSignal): Promise<SignedJwt>;
}

export interface JwtCacheOptions {
  readonly upstream: JwtUpstream;
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

interface Wanted {
  readonly entry: CachedEntry;
  readonly audience: readonly string[];
  readonly key: string;
}

interface Slot {
  readonly svid: HeldJwt;
  renewal: Renewal | undefined;
  /** By the monotonic clock. */
  nextRenewal: number;
}

interface Renewal {
  /** Undefined when it failed. */
  readonly done: Promise<HeldJwt | undefined>;
  /** Somebody has given up waiting for it, so nobody else starts to. */
  slow: boolean;
}

/**
 * JWT-SVIDs by entry, its version, and the exact set of audiences (T-J6). A token past the middle of its life is
 * renewed, but while the server is away it is handed out at once for as long as it is valid.
 */
export class JwtCache {
  readonly #options: JwtCacheOptions;
  /** In the order of their last use. */
  readonly #slots = new Map<string, Slot>();
  readonly #flights = new SharedFlights<HeldJwt>();
  #refusedKeys: ReadonlySet<string> = new Set();

  constructor(options: JwtCacheOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#slots.size;
  }

  /**
   * The audience is without repeats. An entry whose tokens carry a `jti` gets a new one every time. Throws what the
   * server answered, or `internal` when that was not what was asked for.
   */
  async fetch(entry: CachedEntry, audience: readonly string[], signal: AbortSignal): Promise<HeldJwt> {
    const wanted = { entry, audience, key: keyOf(entry, audience) };
    if (entry.jwtSvidIncludeJti) return this.#request(wanted, signal);
    const slot = this.#use(wanted.key);
    const svid = slot === undefined ? undefined : await this.#fresh(slot, wanted);
    return svid ?? this.#flights.join(wanted.key, (stop) => this.#first(wanted, stop), signal);
  }

  /** Forgets the tokens that were signed with these keys, and keeps none of them from now on. */
  refuseKeys(keyIds: ReadonlySet<string>): void {
    this.#refusedKeys = keyIds;
    const dropped = [...this.#slots].filter(([, { svid }]) => keyIds.has(svid.keyId));
    for (const [key] of dropped) this.#slots.delete(key);
    const byKey = Map.groupBy(dropped, ([, { svid }]) => svid.keyId);
    for (const [keyId, { length }] of byKey) jwtSvidsDropped(this.#options.log, keyId, length);
  }

  /** Undefined for one that has expired, too. */
  #use(key: string): Slot | undefined {
    const slot = this.#slots.get(key);
    if (slot === undefined) return undefined;
    this.#slots.delete(key);
    if (slot.svid.expiresAt <= this.#options.clock.now()) return undefined;
    this.#slots.set(key, slot);
    return slot;
  }

  #keep(key: string, svid: HeldJwt): void {
    this.#slots.delete(key);
    if (this.#refusedKeys.has(svid.keyId)) return;
    for (const oldest of this.#slots.keys()) {
      if (this.#slots.size < this.#options.maxSvids) break;
      this.#slots.delete(oldest);
    }
    this.#slots.set(key, { svid, renewal: undefined, nextRenewal: 0 });
  }

  /** Undefined when the token was dropped meanwhile. */
  async #fresh(slot: Slot, wanted: Wanted): Promise<HeldJwt | undefined> {
    const { clock } = this.#options;
    if (msUntilDue(slot.svid.rotation, clock) > 0) return slot.svid;
    slot.renewal ??= this.#renew(slot, wanted);
    const renewed = slot.renewal === undefined ? undefined : await this.#patiently(slot.renewal);
    if (renewed !== undefined) return renewed;
    return this.#slots.get(wanted.key) === slot ? slot.svid : undefined;
  }

  #renew(slot: Slot, wanted: Wanted): Renewal | undefined {
    const { clock, log, hitTimeoutMs, signal } = this.#options;
    if (clock.monotonic() < slot.nextRenewal) return undefined;
    const failed = (error: unknown): undefined => {
      slot.renewal = undefined;
      slot.nextRenewal = clock.monotonic() + RENEWAL_PAUSE_MS;
      if (!signal.aborted) jwtSvidNotRenewed(log, wanted.entry.spiffeId, error);
    };
    return {
      done: this.#attempt(wanted, hitTimeoutMs, signal).then((svid) => this.#kept(wanted, svid), failed),
      slow: false,
    };
  }

  async #patiently(renewal: Renewal): Promise<HeldJwt | undefined> {
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

  async #first(wanted: Wanted, signal: AbortSignal): Promise<HeldJwt> {
    return this.#kept(wanted, await this.#request(wanted, signal));
  }

  #kept({ key }: Wanted, svid: HeldJwt): HeldJwt {
    this.#keep(key, svid);
    return svid;
  }

  /** Attempts until the deadline. */
  #request(wanted: Wanted, signal: AbortSignal): Promise<HeldJwt> {
    const { clock } = this.#options;
    const end = clock.monotonic() + DEADLINE_MS;
    const options = { ...RETRY, giveUpAfterMs: DEADLINE_MS, retryable: isTransient };
    return retry(clock, options, (stop) => this.#attempt(wanted, Math.max(1, end - clock.monotonic()), stop), signal);
  }

  async #attempt(wanted: Wanted, deadlineMs: number, signal: AbortSignal): Promise<HeldJwt> {
    const { entry, audience } = wanted;
    const { clock, upstream } = this.#options;
    const answer = await upstream.signJwt({ entryId: entry.id, audience, deadlineMs }, signal);
    const validity = { notBefore: answer.issuedAt, notAfter: answer.expiresAt };
    return Object.freeze({
      token: answer.token,
      keyId: checkedKeyId(wanted, answer),
      issuedAt: answer.issuedAt,
      expiresAt: answer.expiresAt,
      rotation: rotationOfNew(validity, { clock }),
    });
  }
}

function isTransient(error: unknown): boolean {
  const { kind, code } = Fault.from(error);
  return !FINAL.has(kind) && code !== WRONG_TOKEN;
}

const WRONG_TOKEN = "jwt-svid-wrong";

/** The token is for this identity and these audiences, or it is nothing to serve. */
function checkedKeyId({ entry, audience }: Wanted, { token, id }: SignedJwt): string {
  const { header, payload } = parseJws(token);
  const { sub, aud } = payload;
  if (id !== entry.spiffeId || sub !== entry.spiffeId) throw wrong(`the server signed a JWT-SVID for another ID`);
  const values: readonly unknown[] = Array.isArray(aud) ? aud : [aud];
  if (values.length !== audience.length || !audience.every((value) => values.includes(value)))
    throw wrong("the server signed a JWT-SVID for another audience");
  if (typeof header["kid"] !== "string") throw wrong("the server signed a JWT-SVID without a key ID");
  return header["kid"];
}

function wrong(message: string): Fault {
  return new Fault("internal", message, { code: WRONG_TOKEN });
}

/** Audiences may be long, so only their digest is kept. */
function keyOf({ id, createdAt, revisionNumber, spiffeId }: CachedEntry, audience: readonly string[]): string {
  const parts = [id, createdAt, revisionNumber, spiffeId, [...audience].sort()];
  return createHash("sha256").update(JSON.stringify(parts)).digest("base64");
}
