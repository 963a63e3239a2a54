import { parseCertificate } from "../crypto/certificate.ts";
import { jwkFromPublicKey } from "../crypto/jwk.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import { type BundleKeys, type KeyUse, readBundleKeys } from "./bundle-keys.ts";
import type { TrustDomain } from "./id.ts";

/** A certificate that anchors X.509-SVIDs of the trust domain. */
export interface X509Authority {
  /** DER of one certificate. */
  readonly asn1: Uint8Array;
  readonly tainted: boolean;
}

/** A public key that verifies JWT-SVIDs, or WIT-SVIDs, of the trust domain. */
export interface TokenAuthority {
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  readonly keyId: string;
  /** Unix seconds; 0 means none. */
  readonly expiresAt: number;
  readonly tainted: boolean;
}

/** The authorities of one trust domain. Immutable. SPIFFE Trust Domain and Bundle, section 4. */
export interface Bundle {
  readonly trustDomain: TrustDomain;
  readonly x509Authorities: readonly X509Authority[];
  readonly jwtAuthorities: readonly TokenAuthority[];
  readonly witAuthorities: readonly TokenAuthority[];
  /** Seconds; 0 means none. */
  readonly refreshHint: number;
  /** Grows with every change of content. */
  readonly sequenceNumber: bigint;
}

/** The same authorities in whatever order; sequence number and refresh hint don't count. */
export function sameAuthorities(a: Bundle, b: Bundle): boolean {
  return sameMembers(authorityTexts(a), authorityTexts(b));
}

function authorityTexts(bundle: Bundle): ReadonlySet<string> {
  const tokens = (kind: string, authorities: readonly TokenAuthority[]): readonly string[] =>
    authorities.map(({ keyId, publicKey, expiresAt, tainted }) =>
      [kind, tainted, expiresAt, base64(publicKey), keyId].join(" "),
    );
  return new Set([
    ...bundle.x509Authorities.map(({ asn1, tainted }) => `x509 ${tainted} ${base64(asn1)}`),
    ...tokens("jwt", bundle.jwtAuthorities),
    ...tokens("wit", bundle.witAuthorities),
  ]);
}

function sameMembers(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
  return a.size === b.size && a.isSubsetOf(b);
}

/** A larger document is refused before it is parsed. T-F1. */
export const MAX_BUNDLE_DOCUMENT_BYTES = 4 * 1024 * 1024;
const MAX_SEQUENCE = 2n ** 64n - 1n;
/** A hint beyond a week would hide a rotation; it is cut to this. Seconds. */
const MAX_REFRESH_HINT = 7 * 24 * 60 * 60;

/**
 * Reads a bundle document, which holds for the given trust domain whatever it says itself. Single keys that are of no
 * use are skipped, as the standard asks, and `notice` is told why. Throws `invalid` when the document is not one.
 */
export function parseBundleDocument(
  trustDomain: TrustDomain,
  text: string,
  notice: (reason: string) => void = () => {},
): Bundle {
  const document = parseDocument(text);
  return {
    trustDomain,
    ...readKeys(document["keys"], notice),
    refreshHint: readRefreshHint(document["spiffe_refresh_hint"], notice),
    sequenceNumber: readSequence(document["spiffe_sequence"], notice),
  };
}

/**
 * Reads a plain JWK Set with the keys of one kind of token, as the Workload API has them. A key without `use` counts as
 * one of that kind; other keys are skipped, and `notice` is told why. Throws `invalid` when it is no JWK Set. SPIFFE
 * Workload API, sections 6.2.2 and 7.1.
 */
export function parseTokenKeys(
  text: string,
  use: Exclude<KeyUse, "x509-svid">,
  notice: (reason: string) => void = () => {},
): readonly TokenAuthority[] {
  const { keys } = parseDocument(text);
  if (!Array.isArray(keys)) throw malformed('bundle document has no "keys" array');
  const elements = keys.map((key) => (isObject(key) && key["use"] === undefined ? { ...key, use } : key));
  const read = readBundleKeys(elements, notice);
  return use === "jwt-svid" ? read.jwtAuthorities : read.witAuthorities;
}

function parseDocument(text: string): Readonly<Record<string, unknown>> {
  if (Buffer.byteLength(text) > MAX_BUNDLE_DOCUMENT_BYTES) throw malformed("bundle document is larger than 4 MiB");
  let document: unknown;
  try {
    document = JSON.parse(text, exactSequence);
  } catch (cause) {
    throw malformed("bundle document is not JSON", cause);
  }
  if (!isObject(document)) throw malformed("bundle document is not a JSON object");
  return document;
}

/** Keeps all digits of a sequence number, which may exceed what a number holds. */
function exactSequence(key: string, value: unknown, context?: { readonly source?: string }): unknown {
  const source = context?.source ?? "";
  return key === "spiffe_sequence" && typeof value === "number" && /^[0-9]{1,20}$/.test(source)
    ? BigInt(source)
    : value;
}

function readSequence(value: unknown, notice: (reason: string) => void): bigint {
  if (value === undefined) return 0n;
  if (typeof value === "bigint" && value <= MAX_SEQUENCE) return value;
  notice("spiffe_sequence is not a 64-bit unsigned integer and is ignored");
  return 0n;
}

function readRefreshHint(value: unknown, notice: (reason: string) => void): number {
  if (value === undefined) return 0;
  if (typeof value === "number" && Number.isInteger(value) && value >= 0) return Math.min(value, MAX_REFRESH_HINT);
  notice("spiffe_refresh_hint is not a whole number of seconds and is ignored");
  return 0;
}

function readKeys(keys: unknown, notice: (reason: string) => void): BundleKeys {
  if (!Array.isArray(keys)) throw malformed('bundle document has no "keys" array');
  return readBundleKeys(keys, notice);
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function malformed(message: string, cause?: unknown): Fault {
  return new Fault("invalid", message, {
    code: "bundle-malformed",
    hint: "expected a SPIFFE bundle document: a JSON object with a keys array",
    ...(cause === undefined ? {} : { cause }),
  });
}

/**
 * The SPIFFE bundle document: a JWK Set with SPIRE's indentation. Equal bundles give equal bytes. An authority whose key
 * is weak, or has no form as a JWK, is left out: it vouches for nobody here either, and the others count. SPIFFE Trust
 * Domain and Bundle, section 4; X509-SVID, section 6.1.
 */
export function encodeBundleDocument(bundle: Bundle): string {
  const keys = [
    ...bundle.x509Authorities.flatMap(({ asn1 }) =>
      encodable(() => ({ ...jwk("x509-svid", parseCertificate(asn1).publicKey), x5c: [base64(asn1)] })),
    ),
    ...tokenKeys("jwt-svid", bundle.jwtAuthorities),
    ...tokenKeys("wit-svid", bundle.witAuthorities),
  ];
  const hint = bundle.refreshHint > 0 ? { spiffe_refresh_hint: Math.ceil(bundle.refreshHint) } : {};
  return exactJson({ keys, spiffe_sequence: bundle.sequenceNumber, ...hint });
}

function tokenKeys(use: KeyUse, authorities: readonly TokenAuthority[]): readonly object[] {
  return authorities.flatMap(({ keyId, publicKey }) => encodable(() => jwk(use, publicKey, keyId)));
}

function encodable(encode: () => object): readonly object[] {
  try {
    return [encode()];
  } catch (error) {
    if (isFault(error, "invalid")) return [];
    throw error;
  }
}

/** In the order of members that SPIRE prints. */
function jwk(use: KeyUse, publicKey: Uint8Array, kid?: string): object {
  const { kty, ...members } = jwkFromPublicKey(publicKey);
  return { use, kty, ...(kid === undefined ? {} : { kid }), ...members };
}

function exactJson(document: object): string {
  const raw = JSON as typeof JSON & { rawJSON(text: string): unknown };
  const exact = (_: string, value: unknown): unknown =>
    typeof value === "bigint" ? raw.rawJSON(value.toString()) : value;
  return JSON.stringify(document, exact, 4);
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("base64");
}
