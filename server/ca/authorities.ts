import type { KeyType } from "../../src/crypto/key.ts";
import type { KeyManager, ManagedKey } from "../../src/keys/keys.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { formatRoundDuration } from "../../src/runtime/duration.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Log, LogFields } from "../../src/runtime/log.ts";
import { every } from "../../src/runtime/task.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import { BUNDLE_SPREAD_MS } from "../../src/spiffe/lifetime.ts";
import * as events from "../events.ts";
import type { AuthorityRecord, AuthorityStore } from "../store/store.ts";
import type { BundleHistory } from "./bundle-history.ts";
import type { AuthorityType, Draft } from "./kinds.ts";
import {
  dueStep,
  emptySlots,
  keyIdOf,
  type RecoveredSlot,
  recordOf,
  recoverSlots,
  type Slot,
  type SlotName,
  type Slots,
  type TokenSigningAuthority,
  type Usability,
  usabilityOf,
  withActivated,
  withPrepared,
  withTainted,
  type X509SigningAuthority,
} from "./slots.ts";

export type AnyAuthority = X509SigningAuthority | TokenSigningAuthority;

export interface AuthoritiesOptions<A extends AnyAuthority> {
  readonly type: AuthorityType<A>;
  readonly trustDomain: TrustDomain;
  readonly history: BundleHistory;
  readonly keys: Pick<KeyManager, "find" | "generate">;
  readonly keyType: KeyType;
  readonly ttlSeconds: number;
  readonly journal: Pick<AuthorityStore, "list" | "save">;
  readonly clock: Clock;
  readonly log: Log;
}

/** SPIRE's rotation tick. */
const TICK_MS = 10_000;
/** A new authority is prepared and activated at most this often within one tick. */
const STEPS_PER_TICK = 4;
/** Of a short lifetime, in place of `BUNDLE_SPREAD_MS`. */
const SPREAD_SHARE = 0.01;
/** A draft that could not be published is given up after this share of its lifetime. */
const DRAFT_SHARE = 0.1;

/**
 * The authorities of one kind of this server: two slots that journal and key manager rebuild after a restart. The order
 * is key, bundle, journal, use: a crash between any two leaves at worst an unused key or an unused authority.
 */
export class Authorities<A extends AnyAuthority> {
  /** What signs now; undefined only when nothing may. Set anew when another authority takes over. */
  readonly active = new Feed<A | undefined>(undefined);
  readonly #options: AuthoritiesOptions<A>;
  #slots: Slots<A> = emptySlots();
  #bundle: Bundle | undefined;
  /** Of the history, when what this server signs with was in the bundle. */
  #rewinds = 0;
  #unsaved = false;
  /** Made for the next slot and not certified yet: kept, so that an outage does not make a key with every tick. */
  #spare: ManagedKey | undefined;
  #draft: Draft<A> | undefined;
  /** Who has been vouched for, and in which bundle. */
  #vouchedFor = "";
  #last: Promise<unknown> = Promise.resolve();

  private constructor(options: AuthoritiesOptions<A>) {
    this.#options = options;
  }

  /** Resolves when an authority may sign: the one of before the restart, or a new one. */
  static async open<A extends AnyAuthority>(options: AuthoritiesOptions<A>): Promise<Authorities<A>> {
    const authorities = new Authorities(options);
    await authorities.#recover();
    await authorities.#advance().catch((error: unknown) => authorities.#goOn(error));
    return authorities;
  }

  get slots(): Slots<A> {
    return this.#slots;
  }

  /** The authority that may sign at this moment. Throws `unavailable`, saying why there is none. */
  signing(): A {
    const { noun } = this.#options.type.words;
    const { current } = this.#slots;
    if (current.state !== "active") throw noAuthority(noun, `${noun} is not available for signing`, "missing");
    const usability = this.#usability(current.authority);
    if (usability === "usable") return current.authority;
    throw noAuthority(noun, `${noun} is ${usability}`, usability);
  }

  /** Takes the steps that are due, every 10 s or oftener for short lifetimes. Failures are logged and tried again. */
  run(signal: AbortSignal): Promise<void> {
    const { clock, ttlSeconds } = this.#options;
    const tick = (): Promise<void> => this.#alone(() => this.#tick()).catch((error: unknown) => this.#failed(error));
    return every(clock, () => Math.min(TICK_MS, ttlSeconds * 50), tick, signal);
  }

  /** Prepares a new authority now, in place of one that is prepared already. Throws what hinders it. */
  prepare(): Promise<A> {
    return this.#alone(async () => {
      this.#draft = undefined;
      return this.#prepare();
    });
  }

  /**
   * Makes the prepared authority the active one, as soon as agents have had the time to learn of it. Throws `invalid`
   * when this is not the authority in the next slot, `internal` when that is not prepared: as SPIRE has it.
   */
  activate(authorityId: string): Promise<A> {
    return this.#alone(async () => {
      const { next } = this.#slots;
      checkNext(next, authorityId);
      if (next.state !== "prepared") throw wrongState("internal", "only Prepared authorities can be activated", next);
      await this.#spread(next.authority);
      this.#activate();
      await this.#save();
      return next.authority;
    });
  }

  /**
   * Runs `work` while the old authority is the named one, and remembers that it is tainted. Throws `invalid` for any
   * other authority.
   */
  taint(authorityId: string, work: () => Promise<Bundle>): Promise<A> {
    return this.#alone(async () => {
      const { current, next } = this.#slots;
      if (authorityId !== "" && current.state !== "empty" && current.authority.id === authorityId)
        throw new Fault("invalid", "unable to taint current local authority", { code: "authority-in-use" });
      checkNext(next, authorityId);
      if (next.state !== "old" && next.state !== "tainted")
        throw wrongState("invalid", "only Old local authorities can be tainted", next);
      this.#bundle = await work();
      this.#slots = withTainted(this.#slots);
      await this.#save();
      return next.authority;
    });
  }

  /** Takes the steps that are due at once, such as after a root above this server was tainted. */
  catchUp(): Promise<void> {
    return this.#alone(() => this.#tick());
  }

  #alone<T>(work: () => Promise<T>): Promise<T> {
    const run = this.#last.then(work, work);
    this.#last = run.catch(() => undefined);
    return run;
  }

  async #tick(): Promise<void> {
    const { current } = this.#slots;
    if (current.state === "active") events.authorityTimeLeft(this.#options.log, this.#ending(current.authority));
    if (this.#unsaved) await this.#save();
    let away: unknown;
    try {
      const bundle = await this.#options.history.read();
      this.#bundle = this.#rewinds === this.#options.history.rewinds ? bundle : await this.#republish(bundle);
    } catch (error) {
      away = error;
    }
    if (away === undefined) await this.#vouch();
    await this.#advance(away);
  }

  /**
   * A database that was restored knows nothing of newer authorities, while agents and workloads go on using them; nor of
   * a taint, or of what was said of a successor.
   */
  async #republish(bundle: Bundle | undefined): Promise<Bundle | undefined> {
    const { type, history, log, clock } = this.#options;
    const { rewinds } = history;
    let last = bundle;
    for (const slot of [this.#slots.current, this.#slots.next]) {
      if (slot.state === "empty" || slot.authority.notAfter <= clock.now()) continue;
      const { noun } = type.words;
      const standing = type.standing(slot.authority, last);
      if (slot.state === "tainted" && standing === "published" && type.taint !== undefined) {
        last = await type.taint(slot.authority);
        log.warn(`The bundle in the datastore is older than before; ${noun} tainted again`, fieldsOf(slot));
      } else if (slot.state !== "tainted" && standing === "not published" && type.republish !== undefined) {
        last = await type.republish(slot.authority);
        log.warn(`The bundle in the datastore is older than before; ${noun} published again`, fieldsOf(slot));
      }
    }
    this.#rewinds = rewinds;
    this.#vouchedFor = "";
    this.#unsaved = true;
    return last;
  }

  /** Preparing needs the store; activating does not, so a prepared authority takes over even while it is away. */
  async #advance(away?: unknown): Promise<void> {
    for (let taken = 0; taken < STEPS_PER_TICK; taken += 1) {
      this.#withdraw();
      const now = this.#options.clock.now();
      const step = dueStep(this.#slots, (authority) => this.#usability(authority) === "usable", now);
      if (step === "rest") return this.#announce();
      if (step === "activate") {
        this.#activate();
        await this.#save();
      } else if (away === undefined) await this.#prepare();
      else throw away;
    }
  }

  #prepare(): Promise<A> {
    return events.preparingAuthority(this.#options, this.#options.type.kind, () => this.#prepareNext());
  }

  async #prepareNext(): Promise<A> {
    const { keys, keyType, log, type } = this.#options;
    const { name } = this.#slots.next;
    log.debug(`Preparing ${type.words.noun}`, { slot: name });
    const draft = this.#usableDraft() ?? (await this.#make(keyIdOf(type.kind, name), keys, keyType));
    this.#draft = draft;
    this.#bundle = this.#options.history.saw(await draft.publish());
    const { authority } = draft;
    this.#draft = undefined;
    this.#slots = withPrepared(this.#slots, authority);
    await this.#save();
    await this.#vouch();
    const selfSigned = authority.kind === "x509" ? { self_signed: authority.upstreamAuthorityId === "" } : {};
    log.info(`${type.words.noun} prepared`, { ...fieldsOf(this.#slots.next), ...selfSigned });
    return authority;
  }

  /** Tried again with every tick, for as long as the outgoing authority's key is here. */
  async #vouch(): Promise<void> {
    const { log, type } = this.#options;
    const { current, next } = this.#slots;
    if (type.vouch === undefined || this.#bundle === undefined) return;
    if (current.state !== "active" || (next.state !== "prepared" && next.state !== "old")) return;
    const [outgoing, successor] = next.state === "prepared" ? [current, next] : [next, current];
    // With each bundle anew: what names an authority that was tainted is gone, whichever server said it.
    const subject = `${successor.authority.id} in ${this.#bundle.sequenceNumber}`;
    if (subject === this.#vouchedFor) return;
    try {
      await type.vouch(outgoing.authority, this.#bundle);
      this.#vouchedFor = subject;
    } catch (error) {
      log.warn(`${type.words.noun} could not vouch for its successor`, { error: Fault.from(error) });
    }
  }

  async #make(keyId: string, keys: Pick<KeyManager, "generate">, keyType: KeyType): Promise<Draft<A>> {
    this.#spare = this.#spare?.id === keyId ? this.#spare : await keys.generate(keyId, keyType);
    const draft = await this.#options.type.make(this.#spare, this.#options.clock.now());
    this.#spare = undefined;
    return draft;
  }

  /** Made for the same slot, and not long ago. */
  #usableDraft(): Draft<A> | undefined {
    const { type, clock } = this.#options;
    const draft = this.#draft;
    if (draft === undefined || draft.authority.key.id !== keyIdOf(type.kind, this.#slots.next.name)) return undefined;
    const { issuedAt, notAfter } = draft.authority;
    const age = clock.now().getTime() - issuedAt.getTime();
    return age >= 0 && age < DRAFT_SHARE * (notAfter.getTime() - issuedAt.getTime()) ? draft : undefined;
  }

  #activate(): void {
    this.#slots = withActivated(this.#slots);
    this.#announce();
  }

  async #spread({ issuedAt }: A): Promise<void> {
    const { clock, ttlSeconds } = this.#options;
    const spreadMs = Math.min(BUNDLE_SPREAD_MS, ttlSeconds * 1000 * SPREAD_SHARE);
    const left = issuedAt.getTime() + spreadMs - clock.now().getTime();
    if (left > 0) await clock.sleep(Math.min(left, spreadMs));
  }

  /** Says who signs, when that is news: after a start, an activation, or a withdrawal that proved premature. */
  #announce(): void {
    const { current } = this.#slots;
    if (current.state !== "active" || current.authority === this.active.value) return;
    this.active.set(current.authority);
    const { log, type } = this.#options;
    events.authorityActivated(log, `${type.words.noun} activated`, this.#ending(current.authority), fieldsOf(current));
  }

  #ending({ notAfter }: A): events.ActiveAuthority {
    const { type, trustDomain, clock } = this.#options;
    return { kind: type.kind, trustDomain, notAfter, now: clock.now() };
  }

  /** An authority that may no longer sign is taken back at once, before its successor is made. */
  #withdraw(): void {
    const held = this.active.value;
    if (held === undefined || this.#usability(held) === "usable") return;
    this.#options.log.warn(`${this.#options.type.words.noun} withdrawn`, {
      ...fieldsOf(this.#slots.current),
      reason: this.#usability(held),
    });
    this.active.set(undefined);
  }

  /** The journal may lag behind while the store is away: what it lacks after a crash is activated, or made, again. */
  async #save(): Promise<void> {
    try {
      await this.#options.journal.save([...recordsOf(this.#slots.current), ...recordsOf(this.#slots.next)]);
      this.#unsaved = false;
    } catch (error) {
      this.#unsaved = true;
      const { entry } = this.#options.type.words;
      this.#options.log.error(`Failed to update status on ${entry} journal entry`, { error: Fault.from(error) });
    }
  }

  /** With an authority that may sign, a successor can wait. */
  #goOn(error: unknown): void {
    const { current } = this.#slots;
    if (current.state !== "active" || this.#usability(current.authority) !== "usable") throw error;
    this.#announce();
    this.#failed(error);
  }

  #failed(error: unknown): void {
    this.#options.log.error(`Unable to rotate ${this.#options.type.words.noun}`, { error: Fault.from(error) });
  }

  #usability(authority: A): Usability {
    return usabilityOf(authority, this.#options.type.standing(authority, this.#bundle), this.#options.clock.now());
  }

  async #recover(): Promise<void> {
    const { history, journal, type } = this.#options;
    this.#bundle = await history.read();
    this.#rewinds = history.rewinds;
    const found: RecoveredSlot<A>[] = [];
    const records = await journal.list(type.kind);
    for (const name of ["A", "B"] as const) found.push(...(await this.#recoverSlot(name, records)));
    this.#slots = recoverSlots(found);
  }

  /** The journal holds the rows of all servers: a row is ours when our key manager holds its key. */
  async #recoverSlot(name: SlotName, records: readonly AuthorityRecord[]): Promise<RecoveredSlot<A>[]> {
    const { type, keys, log } = this.#options;
    const keyId = keyIdOf(type.kind, name);
    const key = await keys.find(keyId);
    const record = records.findLast(
      (row) => row.keyId === keyId && key !== undefined && sameBytes(row.publicKey, key.publicKey),
    );
    if (key === undefined || record === undefined) return [];
    const authority = type.restore(record, key);
    if (authority === undefined) return [];
    const { status, tainted } = record;
    const reason = this.#usability(authority);
    if (reason !== "usable" && status !== "old")
      log.warn(`${type.words.entry} slot unusable`, {
        ...{ slot: name, local_authority_id: authority.id, reason },
        ...(reason === "not yet valid" ? skewFields(authority.notBefore, this.#options.clock.now()) : {}),
      });
    return [{ name, status, tainted, authority }];
  }
}

/** The clock is behind now, or was ahead when the authority was made. */
function skewFields(notBefore: Date, now: Date): LogFields {
  const behind = formatRoundDuration(notBefore.getTime() - now.getTime());
  return { not_before: notBefore, clock: now, clock_behind: behind };
}

function checkNext(
  next: Slot<AnyAuthority>,
  authorityId: string,
): asserts next is Exclude<Slot<AnyAuthority>, { state: "empty" }> {
  if (authorityId === "") throw new Fault("invalid", "no authority ID provided", { code: "authority-id-missing" });
  if (next.state === "empty" || next.authority.id !== authorityId)
    throw new Fault("invalid", "unexpected authority ID", { code: "authority-unexpected" });
}

/** SPIRE's names. */
const STATUS_NAME = { prepared: "PREPARED", active: "ACTIVE", old: "OLD", tainted: "OLD", empty: "UNKNOWN" } as const;

function wrongState(kind: "invalid" | "internal", message: string, { state }: Slot<AnyAuthority>): Fault {
  return new Fault(kind, `${message}: unsupported local authority status: ${STATUS_NAME[state]}`, {
    code: "authority-status",
  });
}

function recordsOf(slot: Slot<AnyAuthority>): readonly AuthorityRecord[] {
  const record = recordOf(slot);
  return record === undefined ? [] : [record];
}

function fieldsOf(slot: Slot<AnyAuthority>): LogFields {
  if (slot.state === "empty") return { slot: slot.name };
  const { authority } = slot;
  return {
    slot: slot.name,
    issued_at: authority.issuedAt,
    expiration: authority.notAfter,
    local_authority_id: authority.id,
    ...(authority.kind === "x509" ? { upstream_authority_id: authority.upstreamAuthorityId } : {}),
  };
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function noAuthority(noun: string, message: string, reason: string): Fault {
  return new Fault("unavailable", message, {
    code: `${noun} ${reason}`.toLowerCase().replaceAll(" ", "-"),
    hint: "a new one is made within seconds; compare this machine's clock and look for errors in the server's log",
  });
}
