import { jwkFromPublicKey } from "../../src/crypto/jwk.ts";
import { isFault } from "../../src/runtime/fault.ts";
import type { Bundle, TokenAuthority } from "../../src/spiffe/bundle.ts";
import { trustDomainId } from "../../src/spiffe/id.ts";
import type { Entitlement } from "../cache/entries.ts";

export type TokenKind = "jwtAuthorities" | "witAuthorities";

const documents: Readonly<Record<TokenKind, WeakMap<Bundle, string>>> = {
  jwtAuthorities: new WeakMap(),
  witAuthorities: new WeakMap(),
};

/**
 * The JWK Sets of one kind of token, by the trust domain's ID. Foreign ones go to callers with an identity only. SPIFFE
 * Workload API, sections 6.2.2 and 7.2.2.
 */
export function jwkSets({ entries, bundle, federatedBundles }: Entitlement, kind: TokenKind): Record<string, string> {
  const foreign = entries.length > 0 ? federatedBundles.values() : [];
  return jwkSetsOf([bundle, ...foreign], kind);
}

/** The JWK Sets of one kind of token, by the trust domain's ID. */
export function jwkSetsOf(bundles: readonly Bundle[], kind: TokenKind): Record<string, string> {
  return Object.fromEntries(bundles.map((each) => [trustDomainId(each.trustDomain), documentOf(each, kind)]));
}

/** Made once for each bundle. */
function documentOf(bundle: Bundle, kind: TokenKind): string {
  const held = documents[kind].get(bundle) ?? jwkSet(bundle[kind]);
  documents[kind].set(bundle, held);
  return held;
}

/** A standard JWK Set, so without `use`, as SPIRE prints it. */
function jwkSet(authorities: readonly TokenAuthority[]): string {
  return JSON.stringify({ keys: authorities.flatMap(jwk) }, null, 4);
}

/** None for a key that is too weak: the others of its bundle still count. */
function jwk({ keyId, publicKey }: TokenAuthority): readonly object[] {
  try {
    const { kty, ...members } = jwkFromPublicKey(publicKey);
    return [{ kty, kid: keyId, ...members }];
  } catch (error) {
    if (isFault(error, "invalid")) return [];
    throw error;
  }
}
