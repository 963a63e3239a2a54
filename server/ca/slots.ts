import type { Certificate } from "../../src/crypto/certificate.ts";
import type { ManagedKey } from "../../src/keys/keys.ts";
import { activateAt, prepareAt } from "../../src/spiffe/lifetime.ts";
import type { AuthorityKind, AuthorityRecord, AuthorityStatus } from "../store/store.ts";

/** What every kind of signing authority has. */
export interface Authority {
  readonly kind: AuthorityKind;
  /** Hex subject key identifier, or kid. */
  readonly id: string;
  readonly key: ManagedKey;
  readonly issuedAt: Date;
  readonly notBefore: Date;
  readonly notAfter: Date;
}

/** Signs X.509-SVIDs. */
export interface X509SigningAuthority extends Authority {
  readonly kind: "x509";
  readonly certificate: Certificate;
  /** Certificates between this one and the upstream root; none when self-signed. */
  readonly intermediates: readonly Uint8Array[];
  /** Hex subject key identifier of the upstream root; empty when self-signed. */
  readonly upstreamAuthorityId: string;
}

/** Signs JWT-SVIDs or WIT-SVIDs; its id is the `kid`. */
export interface TokenSigningAuthority extends Authority {
  readonly kind: "jwt" | "wit";
}

export type SlotName = "A" | "B";

export type Slot<A extends Authority> =
  | { readonly state: "empty"; readonly name: SlotName }
  | { readonly state: "prepared"; readonly name: SlotName; readonly authority: A }
  | { readonly state: "active"; readonly name: SlotName; readonly authority: A }
  | { readonly state: "old"; readonly name: SlotName; readonly authority: A }
  | { readonly state: "tainted"; readonly name: SlotName; readonly authority: A };

/** `current` signs, or is empty before the first activation; `next` takes what is prepared. */
export interface Slots<A extends Authority> {
  readonly current: Slot<A>;
  readonly next: Slot<A>;
}

export type Step = "prepare" | "activate" | "rest";
export type Usability = "usable" | "expired" | "not yet valid" | "not published" | "tainted";

const KEY_PREFIX: Readonly<Record<AuthorityKind, string>> = {
  x509: "x509-CA",
  jwt: "JWT-Signer",
  wit: "WIT-Signer",
};

/** Name in the key manager, as SPIRE writes it: `x509-CA-A`. */
export function keyIdOf(kind: AuthorityKind, name: SlotName): string {
  return `${KEY_PREFIX[kind]}-${name}`;
}

export function emptySlots<A extends Authority>(): Slots<A> {
  return { current: { state: "empty", name: "B" }, next: { state: "empty", name: "A" } };
}

/**
 * What is due now. Without a usable active authority it is at once a prepared one, else a new one; otherwise the
 * thresholds of the active one decide.
 */
export function dueStep<A extends Authority>(slots: Slots<A>, usable: (authority: A) => boolean, now: Date): Step {
  const { current, next } = slots;
  const ready = next.state === "prepared" && usable(next.authority);
  const due: Step = ready ? "activate" : "prepare";
  if (current.state !== "active" || !usable(current.authority)) return due;
  const { issuedAt, notAfter } = current.authority;
  const threshold = ready ? activateAt(issuedAt, notAfter) : prepareAt(issuedAt, notAfter);
  return now > threshold ? due : "rest";
}

export function withPrepared<A extends Authority>(slots: Slots<A>, authority: A): Slots<A> {
  return { current: slots.current, next: { state: "prepared", name: slots.next.name, authority } };
}

/** Swaps the slots: what was active is old. Unchanged when nothing is prepared. */
export function withActivated<A extends Authority>(slots: Slots<A>): Slots<A> {
  const { current, next } = slots;
  if (next.state !== "prepared") return slots;
  const left: Slot<A> = current.state === "active" ? { ...current, state: "old" } : current;
  return { current: { state: "active", name: next.name, authority: next.authority }, next: left };
}

/** The old authority is no longer to be trusted for long. Unchanged when there is none. */
export function withTainted<A extends Authority>(slots: Slots<A>): Slots<A> {
  const { current, next } = slots;
  return next.state === "old" ? { current, next: { ...next, state: "tainted" } } : slots;
}

/** One slot that the journal and the key manager agree on. */
export interface RecoveredSlot<A extends Authority> {
  readonly name: SlotName;
  readonly status: AuthorityStatus;
  readonly tainted: boolean;
  readonly authority: A;
}

/** Slots after a restart: the newest active authority is current, the other slot is next. */
export function recoverSlots<A extends Authority>(found: readonly RecoveredSlot<A>[]): Slots<A> {
  const newestFirst = [...found].sort((a, b) => b.authority.issuedAt.getTime() - a.authority.issuedAt.getTime());
  const active = newestFirst.find(({ status }) => status === "active");
  const rest = newestFirst.filter((slot) => slot !== active);
  const other = rest.find(({ status }) => status === "prepared") ?? rest[0];
  if (active !== undefined) {
    const name = otherName(active.name);
    return {
      current: { state: "active", name: active.name, authority: active.authority },
      next: other?.name === name ? waiting(other) : { state: "empty", name },
    };
  }
  if (other === undefined) return emptySlots();
  return { current: { state: "empty", name: otherName(other.name) }, next: waiting(other) };
}

function waiting<A extends Authority>({ name, status, authority, tainted }: RecoveredSlot<A>): Slot<A> {
  if (status === "prepared") return { state: "prepared", name, authority };
  return { state: tainted ? "tainted" : "old", name, authority };
}

function otherName(name: SlotName): SlotName {
  return name === "A" ? "B" : "A";
}

/** How an authority stands in the stored bundle. */
export type Standing = "published" | "tainted" | "not published";

/** An authority signs only while it is valid and stands in the stored bundle: publish, then use. */
export function usabilityOf(authority: Authority, standing: Standing, now: Date): Usability {
  if (now > authority.notAfter) return "expired";
  if (now < authority.notBefore) return "not yet valid";
  return standing === "published" ? "usable" : standing;
}

/** The journal's row of a slot; undefined for an empty one. */
export function recordOf(slot: Slot<X509SigningAuthority | TokenSigningAuthority>): AuthorityRecord | undefined {
  if (slot.state === "empty") return undefined;
  const { authority, state } = slot;
  const { kind, id, key, issuedAt, notAfter } = authority;
  const signed =
    authority.kind === "x509"
      ? {
          certificateChain: [authority.certificate.raw, ...authority.intermediates],
          upstreamAuthorityId: authority.upstreamAuthorityId,
        }
      : { certificateChain: [], upstreamAuthorityId: "" };
  return {
    authorityId: id,
    kind,
    status: state === "tainted" ? "old" : state,
    keyId: key.id,
    publicKey: key.publicKey,
    issuedAt,
    expiresAt: notAfter,
    tainted: state === "tainted",
    ...signed,
  };
}
