import { randomInt } from "node:crypto";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import type { DistinguishedName } from "../../src/crypto/name.ts";
import type { ManagedKey } from "../../src/keys/keys.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { AuthorityKind, AuthorityRecord } from "../store/store.ts";
import { type BundleAccess, TOKEN_FIELD, type TokenKind, taintAuthority, withRoots } from "./bundle-edits.ts";
import type { BundleLinks } from "./continuity.ts";
import { issueSelfSigned } from "./issue.ts";
import type { TokenPublisher } from "./publish.ts";
import type { Authority, Standing, TokenSigningAuthority, X509SigningAuthority } from "./slots.ts";

/** What SPIRE's log lines and messages call the authorities of a kind. */
export interface KindWords {
  /** Such as "X509 CA". */
  readonly noun: string;
  /** Such as "X509CA", in messages about journal and slots. */
  readonly entry: string;
}

/** All that the slot machine does not know about its authorities. */
export interface AuthorityType<A extends Authority> {
  readonly kind: AuthorityKind;
  readonly words: KindWords;
  /** Makes the authority of a new key. */
  make(key: ManagedKey, now: Date): Promise<Draft<A>>;
  standing(authority: A, bundle: Bundle | undefined): Standing;
  /** Puts one that was published before into the bundle, unless it stands there. Absent where a new one does as well. */
  republish?(authority: A): Promise<Bundle>;
  /** Marks it in the bundle as no longer to be trusted for long. Absent where another server above does. */
  taint?(authority: A): Promise<Bundle>;
  /** Has the authority that goes say which bundle comes next. Without it, nothing is said. */
  vouch?(outgoing: A, next: Bundle): Promise<void>;
  /** From its row of the journal; undefined for a row that lacks what it needs. */
  restore(record: AuthorityRecord, key: ManagedKey): A | undefined;
}

/** An authority that is made and perhaps not published yet. */
export interface Draft<A extends Authority> {
  readonly authority: A;
  /** Resolves with the stored bundle, in which the authority then stands. Doing it twice does no harm. */
  publish(): Promise<Bundle>;
}

export interface KindOptions {
  readonly trustDomain: TrustDomain;
  readonly ttlSeconds: number;
  readonly bundles: BundleAccess;
}

export const WORDS = {
  x509: { noun: "X509 CA", entry: "X509CA" },
  jwt: { noun: "JWT key", entry: "JWTKey" },
  wit: { noun: "WIT key", entry: "WITKey" },
} as const satisfies Record<AuthorityKind, KindWords>;

/** X.509 authorities that sign themselves: their certificates are the roots of the trust domain. */
export function selfSignedKind(
  options: KindOptions & {
    readonly subject: DistinguishedName;
    readonly links?: Pick<BundleLinks, "vouch" | "withdraw">;
  },
): AuthorityType<X509SigningAuthority> {
  const { trustDomain, ttlSeconds, subject, bundles, links } = options;
  return {
    ...(links === undefined ? {} : { vouch: (outgoing, next) => links.vouch(outgoing, next) }),
    kind: "x509",
    words: WORDS.x509,
    async make(key, now) {
      const certificate = await issueSelfSigned({ trustDomain, key, ttlSeconds, subject, now });
      const root = { asn1: certificate.raw, tainted: false };
      return {
        authority: x509Authority({ key, chain: [certificate], issuedAt: now, upstreamAuthorityId: "" }),
        publish: () => bundles.change(trustDomain, (current) => withRoots(current, [root])),
      };
    },
    republish: ({ certificate: { raw } }) =>
      bundles.change(trustDomain, (current) => withRoots(current, [{ asn1: raw, tainted: false }])),
    async taint({ id: subjectKeyId }) {
      await links?.withdraw(subjectKeyId);
      return taintAuthority(bundles, { trustDomain, authority: { kind: "x509", subjectKeyId } });
    },
    standing(authority, bundle) {
      const { raw } = authority.certificate;
      return standingOf(bundle?.x509Authorities.find(({ asn1 }) => sameBytes(asn1, raw)));
    },
    restore: restoreX509,
  };
}

/** JWT or WIT keys: the kind is data. */
export function tokenKind(
  kind: TokenKind,
  options: KindOptions & { readonly publisher: Pick<TokenPublisher, "publish"> },
): AuthorityType<TokenSigningAuthority> {
  const { trustDomain, ttlSeconds, bundles, publisher } = options;
  const publish = ({ id: keyId, key: { publicKey }, notAfter }: TokenSigningAuthority): Promise<Bundle> =>
    publisher.publish(kind, { keyId, publicKey, expiresAt: notAfter.getTime() / 1000, tainted: false });
  return {
    kind,
    words: WORDS[kind],
    async make(key, now) {
      const notAfter = wholeSeconds(now.getTime() + ttlSeconds * 1000);
      const authority = tokenAuthority(kind, { id: newKeyId(), key, issuedAt: now, notAfter });
      return { authority, publish: () => publish(authority) };
    },
    republish: publish,
    taint: ({ id: keyId }) => taintAuthority(bundles, { trustDomain, authority: { kind, keyId } }),
    standing(authority, bundle) {
      const keys = bundle?.[TOKEN_FIELD[kind]] ?? [];
      return standingOf(
        keys.find(({ keyId, publicKey }) => keyId === authority.id && sameBytes(publicKey, authority.key.publicKey)),
      );
    },
    restore: ({ authorityId, issuedAt, expiresAt }, key) =>
      tokenAuthority(kind, { id: authorityId, key, issuedAt, notAfter: expiresAt }),
  };
}

/** Tolerates clocks that are a little behind, as the start of a certificate does. */
const BACKDATE_MS = 10_000;

function tokenAuthority(
  kind: TokenKind,
  fields: Pick<TokenSigningAuthority, "id" | "key" | "issuedAt" | "notAfter">,
): TokenSigningAuthority {
  return { kind, ...fields, notBefore: new Date(fields.issuedAt.getTime() - BACKDATE_MS) };
}

const KEY_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const KEY_ID_CHARACTERS = 32;

/** 190 random bits in letters and digits, as long as SPIRE's. WIT-03. */
function newKeyId(): string {
  return Array.from({ length: KEY_ID_CHARACTERS }, () => KEY_ID_ALPHABET[randomInt(KEY_ID_ALPHABET.length)]).join("");
}

export interface X509AuthorityFields {
  readonly key: ManagedKey;
  /** The authority's own certificate, then those between it and the root. */
  readonly chain: readonly [Certificate, ...Certificate[]];
  readonly issuedAt: Date;
  readonly upstreamAuthorityId: string;
}

export function x509Authority({
  key,
  chain,
  issuedAt,
  upstreamAuthorityId,
}: X509AuthorityFields): X509SigningAuthority {
  const [certificate, ...above] = chain;
  const { subjectKeyId, notBefore } = certificate;
  const end = Math.min(...chain.map(({ notAfter }) => notAfter.getTime()));
  return {
    kind: "x509",
    id: subjectKeyId,
    key,
    certificate,
    issuedAt,
    notBefore,
    notAfter: new Date(end),
    intermediates: above.map(({ raw }) => raw),
    upstreamAuthorityId,
  };
}

export function restoreX509(record: AuthorityRecord, key: ManagedKey): X509SigningAuthority | undefined {
  const { issuedAt, upstreamAuthorityId } = record;
  const [certificate, ...above] = record.certificateChain.map(parseCertificate);
  if (certificate === undefined) return undefined;
  return x509Authority({ key, chain: [certificate, ...above], issuedAt, upstreamAuthorityId });
}

export function standingOf(found: { readonly tainted: boolean } | undefined): Standing {
  if (found === undefined) return "not published";
  return found.tainted ? "tainted" : "published";
}

function wholeSeconds(unixMs: number): Date {
  return new Date(Math.floor(unixMs / 1000) * 1000);
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}
