import { type Certificate, parseCertificate } from "../crypto/certificate.ts";
import { jwkFromPublicKey, PRIVATE_JWK_MEMBERS, publicKeyFromJwk } from "../crypto/jwk.ts";
import { Fault } from "../runtime/fault.ts";
import type { Bundle, TokenAuthority } from "./bundle.ts";

/** Values of `use` that the SPIFFE documents define. */
export type KeyUse = "x509-svid" | "jwt-svid" | "wit-svid";

export type BundleKeys = Pick<Bundle, "x509Authorities" | "jwtAuthorities" | "witAuthorities">;

/** Far more than a trust domain has, and few enough to check each one. */
const MAX_KEYS = 1000;
/** A thumbprint has 43 characters, a URL a hundred or two; what is longer fills messages and no purpose. */
export const MAX_KEY_ID_CHARACTERS = 1024;
const BASE64 = /^[A-Za-z0-9+/]+={0,2}$/;

type Jwk = Readonly<Record<string, unknown>>;

interface ReadKey {
  readonly use: KeyUse;
  /** Empty for an X.509 authority. */
  readonly keyId: string;
  /** A certificate, or SubjectPublicKeyInfo. */
  readonly der: Uint8Array;
}

/**
 * Sorts the elements of a bundle document's `keys`. One that is of an unknown kind or does not decode is skipped, and
 * `notice` is told why; the others count. Trust Domain and Bundle, section 4.2; X509-SVID, section 6.2.
 */
export function readBundleKeys(elements: readonly unknown[], notice: (reason: string) => void): BundleKeys {
  if (elements.length > MAX_KEYS) throw skip(`bundle document has more than ${MAX_KEYS} keys`);
  const keys = elements.flatMap((element, index) => {
    try {
      return [readKey(element)];
    } catch (error) {
      notice(`key ${index} of the bundle is skipped: ${Fault.from(error).message}`);
      return [];
    }
  });
  const tokens = withoutClashes(keys, notice);
  return {
    x509Authorities: distinct(keys.filter(({ use }) => use === "x509-svid")).map(({ der }) => ({
      asn1: der,
      tainted: false,
    })),
    jwtAuthorities: tokens.filter(({ use }) => use === "jwt-svid").map(tokenAuthority),
    witAuthorities: tokens.filter(({ use }) => use === "wit-svid").map(tokenAuthority),
  };
}

function readKey(element: unknown): ReadKey {
  if (typeof element !== "object" || element === null) throw skip("it is not an object");
  const jwk = element as Jwk;
  if (PRIVATE_JWK_MEMBERS.some((name) => name in jwk)) throw skip("it holds private key material");
  const { kty, use, kid } = jwk;
  if (typeof kty !== "string") throw skip("it has no key type");
  if (use === "x509-svid") return { use, keyId: "", der: readCertificate(jwk).raw };
  if (use !== "jwt-svid" && use !== "wit-svid") throw skip("its use is missing or unknown");
  if (typeof kid !== "string" || kid === "") throw skip("it has no key ID");
  if (kid.length > MAX_KEY_ID_CHARACTERS) throw skip("its key ID is too long");
  return { use, keyId: kid, der: publicKeyFromJwk(jwk) };
}

/** Of several certificates only the first counts. */
function readCertificate(jwk: Jwk): Certificate {
  const first: unknown = Array.isArray(jwk["x5c"]) ? jwk["x5c"][0] : undefined;
  if (typeof first !== "string" || !BASE64.test(first)) throw skip("it has no certificate in base64");
  const certificate = parseCertificate(Buffer.from(first, "base64"));
  if (!certificate.isCa) throw skip("its certificate is not a certificate authority");
  const members = Object.entries(jwkFromPublicKey(certificate.publicKey));
  if (members.some(([name, value]) => jwk[name] !== undefined && jwk[name] !== value))
    throw skip("its key is not that of its certificate");
  return certificate;
}

/** A key ID names one key in the whole bundle. All that share one are dropped: none of them is the right one. WIT-SVID, section 6.1. */
function withoutClashes(keys: readonly ReadKey[], notice: (reason: string) => void): readonly ReadKey[] {
  const tokens = keys.filter(({ use }) => use !== "x509-svid");
  const counts = Map.groupBy(tokens, ({ keyId }) => keyId);
  const clashing = [...counts].filter(([, { length }]) => length > 1).map(([keyId]) => keyId);
  for (const keyId of clashing)
    notice(`key ID ${JSON.stringify(keyId.slice(0, 64))} occurs more than once in the bundle; its keys are skipped`);
  return tokens.filter(({ keyId }) => !clashing.includes(keyId));
}

function distinct(keys: readonly ReadKey[]): readonly ReadKey[] {
  return [...new Map(keys.map((key) => [Buffer.from(key.der).toString("latin1"), key])).values()];
}

function tokenAuthority({ keyId, der }: ReadKey): TokenAuthority {
  return { publicKey: der, keyId, expiresAt: 0, tainted: false };
}

function skip(reason: string): Fault {
  return new Fault("invalid", reason, { code: "bundle-key" });
}
