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

/** Callers differ in few ways by the domains they federate with; the answers of so many are kept. */
const MOST_SHARED = 64;

/**
 * Makes an answer of the bundles that somebody may have: foreign ones with an identity only. Callers with the same
 * bundles get one object, which is encoded once. SPIFFE Workload API, sections 6.2.2 and 7.2.2.
 */
export function sharedByBundles<T>(make: (bundles: readonly Bundle[]) => T): (entitlement: Entitlement) => T {
  const answers = new WeakMap<Bundle, readonly { readonly bundles: readonly Bundle[]; readonly answer: T }[]>();
  return ({ entries, bundle, federatedBundles }) => {
    const bundles = [bundle, ...(entries.length > 0 ? federatedBundles.values() : [])];
    const held = answers.get(bundle) ?? [];
    const isSame = (others: readonly Bundle[]): boolean =>
      others.length === bundles.length && others.every((other, at) => other === bundles[at]);
    const found = held.find((each) => isSame(each.bundles));
    if (found !== undefined) return found.answer;
    const answer = make(bundles);
    answers.set(bundle, [...held, { bundles, answer }].slice(-MOST_SHARED));
    return answer;
  };
}

/** The JWK Sets of one kind of token, by the trust domain's ID. */
export function jwkSetsOf(bundles: readonly Bundle[], kind: TokenKind): Record<string, string> {
  return Object.fromEntries(bundles.map((each) => [trustDomainId(each.trustDomain), documentOf(each, kind)]));
}

/** The JWK Sets of the keys of JWT-SVIDs, encoded, by the trust domain's ID. */
export function jwtBundleMap(bundles: readonly Bundle[]): Record<string, Buffer> {
  const sets = Object.entries(jwkSetsOf(bundles, "jwtAuthorities"));
  return Object.fromEntries(sets.map(([id, text]) => [id, Buffer.from(text)]));
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
