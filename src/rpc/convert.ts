import { createPublicKey } from "node:crypto";
import { parseCertificates } from "../crypto/certificate.ts";
import { Fault, messageOf } from "../runtime/fault.ts";
import type { Bundle, TokenAuthority, X509Authority } from "../spiffe/bundle.ts";
import type { Entry } from "../spiffe/entry.ts";
import {
  parseTrustDomain,
  parseTrustDomainOrId,
  pathOf,
  type SpiffeId,
  spiffeId,
  trustDomainOf,
} from "../spiffe/id.ts";
import { checkSelector, type Selector } from "../spiffe/selector.ts";
import type { Bundle__Output, Bundle as BundleMessage } from "./gen/spire/api/types/Bundle.ts";
import type { BundleMask__Output } from "./gen/spire/api/types/BundleMask.ts";
import type { Entry as EntryMessage } from "./gen/spire/api/types/Entry.ts";
import type { EntryMask__Output } from "./gen/spire/api/types/EntryMask.ts";
import type { JWTKey, JWTKey__Output } from "./gen/spire/api/types/JWTKey.ts";
import type { Selector__Output } from "./gen/spire/api/types/Selector.ts";
import type { SPIFFEID, SPIFFEID__Output } from "./gen/spire/api/types/SPIFFEID.ts";
import type { X509Certificate__Output } from "./gen/spire/api/types/X509Certificate.ts";

/** Messages and the values they stand for. What comes from the wire is checked; malformed is `invalid`, in SPIRE's words. */

export function idToProto(id: SpiffeId): SPIFFEID {
  return { trust_domain: trustDomainOf(id), path: pathOf(id) };
}

export function idFromProto(message: SPIFFEID__Output | null | undefined): SpiffeId {
  if (!message) throw new Fault("invalid", "request must specify SPIFFE ID", { code: "spiffe-id-missing" });
  return spiffeId(parseTrustDomain(message.trust_domain), message.path);
}

export function selectorsFromProto(messages: readonly Selector__Output[]): readonly Selector[] {
  return messages.map(({ type, value }) => checkSelector({ type, value }));
}

/** Without a mask, everything; the id always. */
export function entryToProto(entry: Entry, mask?: EntryMask__Output | null): EntryMessage {
  const { disableX509SvidPrefetch, jwtSvidIncludeJti } = entry;
  const message = {
    id: entry.id,
    spiffe_id: idToProto(entry.spiffeId),
    parent_id: idToProto(entry.parentId),
    selectors: entry.selectors.map(({ type, value }) => ({ type, value })),
    x509_svid_ttl: entry.x509SvidTtl,
    federates_with: [...entry.federatesWith],
    admin: entry.admin,
    downstream: entry.downstream,
    expires_at: entry.expiresAt,
    dns_names: [...entry.dnsNames],
    revision_number: entry.revisionNumber,
    store_svid: entry.storeSvid,
    jwt_svid_ttl: entry.jwtSvidTtl,
    hint: entry.hint,
    created_at: entry.createdAt,
    additional_attributes:
      disableX509SvidPrefetch || jwtSvidIncludeJti
        ? { disable_x509_svid_prefetch: disableX509SvidPrefetch, jwt_svid_include_jti: jwtSvidIncludeJti }
        : null,
  } satisfies { readonly id: string } & Record<keyof EntryMask__Output, unknown>;
  return masked(message, "id", mask);
}

/** Without a mask, everything; the trust domain always. */
export function bundleToProto(bundle: Bundle, mask?: BundleMask__Output | null): BundleMessage {
  const message = {
    trust_domain: bundle.trustDomain,
    x509_authorities: bundle.x509Authorities.map(({ asn1, tainted }) => ({ asn1: bytes(asn1), tainted })),
    jwt_authorities: bundle.jwtAuthorities.map(tokenAuthorityToProto),
    refresh_hint: bundle.refreshHint,
    sequence_number: bundle.sequenceNumber.toString(),
    wit_authorities: bundle.witAuthorities.map(tokenAuthorityToProto),
  } satisfies { readonly trust_domain: string } & Record<keyof BundleMask__Output, unknown>;
  return masked(message, "trust_domain", mask);
}

export function bundleFromProto(message: Bundle__Output | null | undefined): Bundle {
  if (!message) throw new Fault("invalid", "no bundle provided", { code: "bundle-missing" });
  return {
    trustDomain: within("invalid trust domain", () => parseTrustDomainOrId(message.trust_domain)),
    x509Authorities: within("unable to parse X.509 authority", () =>
      x509AuthoritiesFromProto(message.x509_authorities),
    ),
    jwtAuthorities: within("unable to parse JWT authority", () => tokenAuthoritiesFromProto(message.jwt_authorities)),
    witAuthorities: within("unable to parse WIT authority", () => tokenAuthoritiesFromProto(message.wit_authorities)),
    refreshHint: secondsFromProto(message.refresh_hint, "refresh hint"),
    sequenceNumber: BigInt(message.sequence_number),
  };
}

/** 64-bit numbers arrive as text. Throws `invalid` outside 0 to 2^53. */
export function secondsFromProto(text: string, what: string): number {
  const seconds = Number(text);
  if (Number.isSafeInteger(seconds) && seconds >= 0) return seconds;
  throw new Fault("invalid", `${what} ${text} is out of range`, { code: "number-out-of-range" });
}

/** Keeps the fields that the mask names, and the key. */
function masked<T extends object>(message: T, key: keyof T & string, mask: object | null | undefined): Partial<T> {
  if (!mask) return message;
  const wanted = mask as Readonly<Record<string, unknown>>;
  return Object.fromEntries(
    Object.entries(message).filter(([field]) => field === key || wanted[field] === true),
  ) as Partial<T>;
}

/** One message may hold several certificates, end to end; here each is an authority of its own. */
export function x509AuthoritiesFromProto(messages: readonly X509Certificate__Output[]): readonly X509Authority[] {
  return messages.flatMap(({ asn1, tainted }) => parseCertificates(asn1).map(({ raw }) => ({ asn1: raw, tainted })));
}

/** Of JWT and WIT authorities alike. */
export function tokenAuthoritiesFromProto(messages: readonly JWTKey__Output[]): readonly TokenAuthority[] {
  return messages.map(tokenAuthorityFromProto);
}

function tokenAuthorityToProto({ publicKey, keyId, expiresAt, tainted }: TokenAuthority): JWTKey {
  return { public_key: bytes(publicKey), key_id: keyId, expires_at: expiresAt, tainted };
}

function tokenAuthorityFromProto(message: JWTKey__Output): TokenAuthority {
  checkPublicKey(message.public_key);
  if (message.key_id === "") throw new Fault("invalid", "missing key ID", { code: "key-id-missing" });
  return {
    publicKey: message.public_key,
    keyId: message.key_id,
    expiresAt: secondsFromProto(message.expires_at, "expiry"),
    tainted: message.tainted,
  };
}

function checkPublicKey(key: Buffer): void {
  try {
    createPublicKey({ key, format: "der", type: "spki" });
  } catch (cause) {
    throw new Fault("invalid", "public key is not a SubjectPublicKeyInfo", { code: "public-key-malformed", cause });
  }
}

function bytes(value: Uint8Array): Buffer {
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
}

function within<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    throw new Fault("invalid", `${what}: ${messageOf(cause)}`, {
      code: cause instanceof Fault ? cause.code : "malformed",
      cause,
    });
  }
}
