import { parseCertificate } from "../../src/crypto/certificate.ts";
import type { KeyType } from "../../src/crypto/key.ts";
import type { DistinguishedName } from "../../src/crypto/name.ts";
import type { KeyManager, ManagedKey } from "../../src/keys/keys.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { Log, LogFields } from "../../src/runtime/log.ts";
import { every } from "../../src/runtime/task.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AuthorityRecord, AuthorityStore, BundleStore } from "../store/store.ts";
import { issueSelfSigned } from "./issue.ts";
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
  type Usability,
  usabilityOf,
  withActivated,
  withPrepared,
  type X509SigningAuthority,
} from "./slots.ts";

export interface AuthoritiesOptions {
  readonly trustDomain: TrustDomain;
  readonly keys: KeyManager;
  readonly keyType: KeyType;
  readonly ttlSeconds: number;
  readonly subject: DistinguishedName;
  readonly bundles: Pick<BundleStore, "find" | "change">;
  readonly journal: Pick<AuthorityStore, "list" | "save">;
  readonly clock: Clock;
  readonly log: Log;
}

/** SPIRE's rotation tick. */
const TICK_MS = 10_000;
/** A new authority is prepared and activated at most this often within one tick. */
const STEPS_PER_TICK = 4;

/**
 * The X.509 authorities of this server: two slots that journal and key manager rebuild after a restart. The order is
 * key, bundle, journal, use: a crash between any two leaves at worst an unused key or an unused root.
 */
export class Authorities {
  /** What signs now; undefined only when nothing may. Set anew when another authority takes over. */
  readonly active = new Feed<X509SigningAuthority | undefined>(undefined);
  readonly #options: AuthoritiesOptions;
  #slots: Slots<X509SigningAuthority> = emptySlots();
  #bundle: Bundle | undefined;
  #unsaved = false;

  private constructor(options: AuthoritiesOptions) {
    this.#options = options;
  }

  /** Resolves when an authority may sign: the one of before the restart, or a new one. */
  static async open(options: AuthoritiesOptions): Promise<Authorities> {
    const authorities = new Authorities(options);
    await authorities.#recover();
    await authorities.#advance();
    return authorities;
  }

  get slots(): Slots<X509SigningAuthority> {
    return this.#slots;
  }

  /** The authority that may sign at this moment. Throws `unavailable`, saying why there is none. */
  signing(): X509SigningAuthority {
    const { current } = this.#slots;
    if (current.state !== "active") throw noAuthority("X509 CA is not available for signing", "x509-ca-missing");
    const usability = this.#usability(current.authority);
    if (usability === "usable") return current.authority;
    throw noAuthority(`X509 CA is ${usability}`, `x509-ca-${usability.replaceAll(" ", "-")}`);
  }

  /** Takes the steps that are due, every 10 s or oftener for short lifetimes. Failures are logged and tried again. */
  run(signal: AbortSignal): Promise<void> {
    const { clock, ttlSeconds, log } = this.#options;
    const tick = async (): Promise<void> => {
      await this.#tick().catch((error: unknown) => log.error("Unable to rotate X509 CA", { error: Fault.from(error) }));
    };
    return every(clock, () => Math.min(TICK_MS, ttlSeconds * 50), tick, signal);
  }

  async #tick(): Promise<void> {
    if (this.#unsaved) await this.#save();
    let away: unknown;
    try {
      this.#bundle = await this.#options.bundles.find(this.#options.trustDomain);
    } catch (error) {
      away = error;
    }
    await this.#advance(away);
  }

  /** Preparing needs the store; activating does not, so a prepared authority takes over even while it is away. */
  async #advance(away?: unknown): Promise<void> {
    for (let taken = 0; taken < STEPS_PER_TICK; taken += 1) {
      this.#withdraw();
      const step = dueStep(
        this.#slots,
        (authority) => this.#usability(authority) === "usable",
        this.#options.clock.now(),
      );
      if (step === "rest") return this.#announce();
      if (step === "activate") await this.#activate();
      else if (away === undefined) await this.#prepare();
      else throw away;
    }
  }

  async #prepare(): Promise<void> {
    const { trustDomain, keys, keyType, ttlSeconds, subject, bundles, clock, log } = this.#options;
    const { name } = this.#slots.next;
    log.debug("Preparing X509 CA", { slot: name });
    const key = await keys.generate(keyIdOf("x509", name), keyType);
    const now = clock.now();
    const certificate = await issueSelfSigned({ trustDomain, key, ttlSeconds, subject, now });
    this.#bundle = await bundles.change(trustDomain, (current) => withRoot(current, certificate.raw));
    this.#slots = withPrepared(this.#slots, authorityOf(key, certificate, now));
    await this.#save();
    log.info("X509 CA prepared", { ...fieldsOf(this.#slots.next), self_signed: true });
  }

  async #activate(): Promise<void> {
    this.#slots = withActivated(this.#slots);
    this.#announce();
    await this.#save();
  }

  /** Says who signs, when that is news: after a start, an activation, or a withdrawal that proved premature. */
  #announce(): void {
    const { current } = this.#slots;
    if (current.state !== "active" || current.authority === this.active.value) return;
    this.active.set(current.authority);
    this.#options.log.info("X509 CA activated", fieldsOf(current));
  }

  /** An authority that may no longer sign is taken back at once, before its successor is made. */
  #withdraw(): void {
    const held = this.active.value;
    if (held === undefined || this.#usability(held) === "usable") return;
    this.#options.log.warn("X509 CA withdrawn", {
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
      this.#options.log.error("Failed to update status on X509CA journal entry", { error: Fault.from(error) });
    }
  }

  #usability(authority: X509SigningAuthority): Usability {
    return usabilityOf(authority, this.#bundle, this.#options.clock.now());
  }

  async #recover(): Promise<void> {
    const { trustDomain, bundles, journal } = this.#options;
    this.#bundle = await bundles.find(trustDomain);
    const found: RecoveredSlot<X509SigningAuthority>[] = [];
    const records = await journal.list("x509");
    for (const name of ["A", "B"] as const) found.push(...(await this.#recoverSlot(name, records)));
    this.#slots = recoverSlots(found);
  }

  /** The journal holds the rows of all servers: a row is ours when our key manager holds its key. */
  async #recoverSlot(
    name: SlotName,
    records: readonly AuthorityRecord[],
  ): Promise<RecoveredSlot<X509SigningAuthority>[]> {
    const keyId = keyIdOf("x509", name);
    const key = await this.#options.keys.find(keyId);
    const record = records.find(
      (row) => row.keyId === keyId && key !== undefined && sameBytes(row.publicKey, key.publicKey),
    );
    const [der, ...intermediates] = record?.certificateChain ?? [];
    if (key === undefined || record === undefined || der === undefined) return [];
    const { issuedAt, upstreamAuthorityId, status, tainted } = record;
    const authority = { ...authorityOf(key, parseCertificate(der), issuedAt), intermediates, upstreamAuthorityId };
    const usability = this.#usability(authority);
    if (usability !== "usable" && status !== "old") {
      this.#options.log.warn("X509CA slot unusable", {
        slot: name,
        local_authority_id: authority.id,
        reason: usability,
      });
    }
    return [{ name, status, tainted, authority }];
  }
}

function authorityOf(
  key: ManagedKey,
  certificate: X509SigningAuthority["certificate"],
  issuedAt: Date,
): X509SigningAuthority {
  const { subjectKeyId, notBefore, notAfter } = certificate;
  return {
    kind: "x509",
    id: subjectKeyId,
    key,
    certificate,
    issuedAt,
    notBefore,
    notAfter,
    intermediates: [],
    upstreamAuthorityId: "",
  };
}

function withRoot(current: Bundle | undefined, root: Uint8Array): Omit<Bundle, "trustDomain" | "sequenceNumber"> {
  const held = current ?? { x509Authorities: [], jwtAuthorities: [], witAuthorities: [], refreshHint: 0 };
  const { x509Authorities, jwtAuthorities, witAuthorities, refreshHint } = held;
  return {
    x509Authorities: [...x509Authorities, { asn1: root, tainted: false }],
    jwtAuthorities,
    witAuthorities,
    refreshHint,
  };
}

function recordsOf(slot: Slot<X509SigningAuthority>): readonly AuthorityRecord[] {
  const record = recordOf(slot);
  return record === undefined ? [] : [record];
}

function fieldsOf(slot: Slot<X509SigningAuthority>): LogFields {
  if (slot.state === "empty") return { slot: slot.name };
  const { id, issuedAt, notAfter, upstreamAuthorityId } = slot.authority;
  return {
    slot: slot.name,
    issued_at: issuedAt,
    expiration: notAfter,
    local_authority_id: id,
    upstream_authority_id: upstreamAuthorityId,
  };
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function noAuthority(message: string, code: string): Fault {
  return new Fault("unavailable", message, {
    code,
    hint: "a new X.509 authority is made within seconds; compare this machine's clock and look for errors in the server's log",
  });
}
