import { parseCertificate } from "../../src/crypto/certificate.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle, TokenAuthority, X509Authority } from "../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../src/spiffe/id.ts";
import type { BundleStore } from "../store/store.ts";

/** What a change of a bundle decides. */
export type BundleContent = Omit<Bundle, "trustDomain" | "sequenceNumber">;
export type TokenKind = "jwt" | "wit";
/** The bundle of one trust domain, as the authorities of this server change it. */
export type BundleAccess = Pick<BundleStore, "find" | "change">;

/** Where each kind of token authority stands in a bundle. */
export const TOKEN_FIELD = { jwt: "jwtAuthorities", wit: "witAuthorities" } as const satisfies Record<
  TokenKind,
  keyof Bundle
>;

/** How often others should ask for the bundle, as long as nobody says otherwise: seconds. TDB-10. */
const REFRESH_HINT = 300;
const EMPTY: BundleContent = { x509Authorities: [], jwtAuthorities: [], witAuthorities: [], refreshHint: REFRESH_HINT };

/** Adds what is not there yet. An authority that is there and tainted stays so. */
export function withRoots(current: BundleContent | undefined, roots: readonly X509Authority[]): BundleContent {
  const held = contentOf(current);
  const known = new Set(held.x509Authorities.map(({ asn1 }) => textOf(asn1)));
  const added = roots.filter(({ asn1 }) => !known.has(textOf(asn1)));
  return { ...held, x509Authorities: [...held.x509Authorities, ...added] };
}

/**
 * Adds what is not there yet. A key whose id stands for another key, of either kind, goes to `clash`: by default it throws
 * `invalid`; a key that it lets go is left out. WIT-39.
 */
export function withTokenAuthorities(
  current: BundleContent | undefined,
  kind: TokenKind,
  authorities: readonly TokenAuthority[],
  clash: (keyId: string) => void = refuseClash,
): BundleContent {
  const held = contentOf(current);
  const known = new Map<string, { readonly kind: TokenKind; readonly publicKey: Uint8Array }>();
  for (const other of ["jwt", "wit"] as const)
    for (const { keyId, publicKey } of held[TOKEN_FIELD[other]]) known.set(keyId, { kind: other, publicKey });
  const added = authorities.filter(({ keyId, publicKey }) => {
    const other = known.get(keyId);
    if (other === undefined) return true;
    if (other.kind !== kind || textOf(other.publicKey) !== textOf(publicKey)) clash(keyId);
    return false;
  });
  return { ...held, [TOKEN_FIELD[kind]]: [...held[TOKEN_FIELD[kind]], ...added] };
}

function refuseClash(keyId: string): never {
  throw new Fault("invalid", `key ID ${JSON.stringify(keyId)} belongs to another key of the bundle`, {
    code: "key-id-taken",
    hint: "publish the key under a key ID of its own",
  });
}

/** Names an authority of a bundle. */
export type NamedAuthority =
  | { readonly kind: "x509"; readonly subjectKeyId: string }
  | { readonly kind: TokenKind; readonly keyId: string };

export interface AuthorityChange {
  readonly trustDomain: TrustDomain;
  readonly authority: NamedAuthority;
}

/** SPIRE's words about the authorities of a kind. */
const WORDS = {
  x509: {
    absent: "no root CA found with provided subject key ID",
    tainted: "root CA is already tainted",
    untainted: "it is not possible to revoke an untainted root CA",
  },
  jwt: {
    absent: "no JWT Key found with provided key ID",
    tainted: "key is already tainted",
    untainted: "it is not possible to revoke an untainted key",
  },
  wit: {
    absent: "no WIT Key found with provided key ID",
    tainted: "key is already tainted",
    untainted: "it is not possible to revoke an untainted key",
  },
} as const;

/** Marks it as no longer to be trusted for long. Throws `not_found`, or `invalid` for one that is tainted already. */
export function taintAuthority(bundles: BundleAccess, change: AuthorityChange): Promise<Bundle> {
  const { trustDomain, authority } = change;
  return bundles.change(trustDomain, (current) => {
    const found = namedIn(current, authority);
    if (found.every(({ tainted }) => tainted)) throw invalid(WORDS[authority.kind].tainted);
    return mapped(current, (one) => (found.includes(one) ? { ...one, tainted: true } : one));
  });
}

/** `mayGo` throws when it has to stay. Throws `not_found`, or `invalid` for one that is not tainted. */
export function revokeAuthority(bundles: BundleAccess, change: AuthorityChange, mayGo: () => void): Promise<Bundle> {
  const { trustDomain, authority } = change;
  return bundles.change(trustDomain, (current) => {
    const found = namedIn(current, authority);
    if (found.some(({ tainted }) => !tainted)) throw invalid(WORDS[authority.kind].untainted);
    mayGo();
    return mapped(current, (one) => (found.includes(one) ? undefined : one));
  });
}

type AnyAuthority = X509Authority | TokenAuthority;

/** All roots with the subject key identifier, or the one key. Throws `not_found`. */
function namedIn(current: Bundle | undefined, authority: NamedAuthority): readonly AnyAuthority[] {
  const held = contentOf(current);
  const found: readonly AnyAuthority[] =
    authority.kind === "x509"
      ? held.x509Authorities.filter(({ asn1 }) => parseCertificate(asn1).subjectKeyId === authority.subjectKeyId)
      : held[TOKEN_FIELD[authority.kind]].filter(({ keyId }) => keyId === authority.keyId);
  if (found.length > 0) return found;
  throw new Fault("not_found", WORDS[authority.kind].absent, { code: "authority-not-found" });
}

function mapped(current: Bundle | undefined, change: <T extends AnyAuthority>(one: T) => T | undefined): BundleContent {
  const { x509Authorities, jwtAuthorities, witAuthorities, refreshHint } = contentOf(current);
  const each = <T extends AnyAuthority>(list: readonly T[]): readonly T[] =>
    list.map((one) => change(one)).filter((one) => one !== undefined);
  return {
    x509Authorities: each(x509Authorities),
    jwtAuthorities: each(jwtAuthorities),
    witAuthorities: each(witAuthorities),
    refreshHint,
  };
}

function contentOf(current: BundleContent | undefined): BundleContent {
  const { x509Authorities, jwtAuthorities, witAuthorities, refreshHint } = current ?? EMPTY;
  return { x509Authorities, jwtAuthorities, witAuthorities, refreshHint };
}

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
}

function invalid(message: string): Fault {
  return new Fault("invalid", message, { code: "authority-state" });
}
