import { Fault } from "../runtime/fault.ts";
import type { SpiffeId, TrustDomain } from "./id.ts";

/** Where and how the bundle of a foreign trust domain is fetched. SPIFFE Federation, section 5. */
export interface FederationRelationship {
  readonly trustDomain: TrustDomain;
  /** As it was given: https, with a host and without user information. */
  readonly bundleEndpointUrl: string;
  readonly profile: EndpointProfile;
}

/** How the endpoint proves who it is; never guessed, and none stands in for the other. */
export type EndpointProfile =
  | { readonly type: "https_web" }
  | { readonly type: "https_spiffe"; readonly endpointSpiffeId: SpiffeId };

const MAX_URL_BYTES = 2048;

/**
 * Returns its argument, with the scheme in lower case, when it can be the URL of a bundle endpoint. Its parts are read
 * without the leniency of browsers, which would take `https:host`. Throws `invalid`, in SPIRE's words. SPIFFE
 * Federation, sections 5.2.1.1 and 5.2.2.1.
 */
export function checkEndpointUrl(text: string): string {
  if (Buffer.byteLength(text) > MAX_URL_BYTES || /[^\u0021-\u007e]/.test(text))
    throw bad("failed to parse bundle endpoint URL: at most 2048 printable characters are allowed");
  const [, scheme = "", authority = ""] = /^(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?:\/\/([^/?#\\]*))?/.exec(text) ?? [];
  if (scheme.toLowerCase() !== "https") throw bad("bundle endpoint URL must use the https scheme");
  if (authority === "") throw bad("bundle endpoint URL must specify the host");
  if (authority.includes("@")) throw bad("bundle endpoint URL must not contain user info");
  if (!URL.canParse(text)) throw bad("failed to parse bundle endpoint URL: invalid host or port");
  return text.replace(/^https/i, "https");
}

function bad(message: string): Fault {
  return new Fault("invalid", message, {
    code: "bundle-endpoint-url",
    hint: "for example https://host:8443/bundle",
  });
}
