import { Fault } from "../runtime/fault.ts";
import type { TokenAuthority } from "../spiffe/bundle.ts";
import { parseTokenKeys } from "../spiffe/bundle.ts";
import type { KeyUse } from "../spiffe/bundle-keys.ts";
import { parseSpiffeId, pathOf, type TrustDomain, trustDomainOf } from "../spiffe/id.ts";

/** The keys that verify one kind of token of one trust domain, and nothing else. Immutable. */
export interface TokenBundle {
  readonly trustDomain: TrustDomain;
  readonly authorities: readonly TokenAuthority[];
}

/** The bundles by trust domain; a trust domain that is missing is not trusted. Immutable. */
export interface TokenBundles {
  readonly bundles: ReadonlyMap<TrustDomain, TokenBundle>;
}

/**
 * Reads JWK Sets by trust domain ID. Keys without `use` count, as SPIRE sends them; those for something else, or
 * without `kid`, do not. Throws `invalid` for a key of the map that is no trust domain ID, a set that is none, and for
 * no bundle at all.
 */
export function readTokenBundles(
  parts: Readonly<Record<string, Uint8Array | string>>,
  use: Exclude<KeyUse, "x509-svid">,
): TokenBundles {
  const bundles = new Map<TrustDomain, TokenBundle>();
  for (const [key, document] of Object.entries(parts)) {
    const id = parseSpiffeId(key);
    if (pathOf(id) !== "") throw unusable(`bundle key "${key}" is not the SPIFFE ID of a trust domain`);
    const text = typeof document === "string" ? document : Buffer.from(document).toString("utf8");
    const trustDomain = trustDomainOf(id);
    bundles.set(trustDomain, { trustDomain, authorities: parseTokenKeys(text, use) });
  }
  if (bundles.size === 0) throw unusable("no bundles in response");
  return { bundles };
}

/** Of several parts with one hint only the first counts. SPIFFE Workload API, sections 6.2.1 and 7.2.1. */
export function firstOfEachHint<P extends { readonly hint: string }>(parts: readonly P[]): readonly P[] {
  return parts.filter(({ hint }, at) => hint === "" || parts.findIndex((other) => other.hint === hint) === at);
}

/** The one fault of an answer that cannot be used. */
export function unusable(message: string): Fault {
  return new Fault("invalid", message, { code: "workload-api-response" });
}
