import { parseCertificate } from "../../src/crypto/certificate.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { type Bundle, MAX_BUNDLE_DOCUMENT_BYTES, parseBundleDocument } from "../../src/spiffe/bundle.ts";
import { checkEndpointUrl, type FederationRelationship } from "../../src/spiffe/federation.ts";
import { type TrustDomain, trustDomainOf } from "../../src/spiffe/id.ts";
import { type HttpsAnswer, httpsGet } from "./https.ts";

export interface FetchOptions {
  readonly relationship: FederationRelationship;
  /** The newest bundle that is held of a trust domain. */
  readonly bundle: (trustDomain: TrustDomain) => Bundle | undefined;
  /** Told of single keys that are of no use. */
  readonly notice: (reason: string) => void;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

const PATIENCE_MS = 30_000;
const MAX_REDIRECTS = 10;
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

/**
 * Fetches the bundle of a relationship from its endpoint, beginning at the configured URL each time. What comes holds
 * for the relationship's trust domain and no other, whatever it says itself. Throws when the endpoint is not who it has
 * to be, does not answer, or answers with anything but a bundle. SPIFFE Federation, section 5.2.
 */
export async function fetchBundle(options: FetchOptions): Promise<Bundle> {
  const { relationship, notice, clock, signal } = options;
  const late = new AbortController();
  const done = new AbortController();
  const expire = (): void => late.abort(new Fault("timeout", "the endpoint took too long to answer"));
  clock.sleep(PATIENCE_MS, done.signal).then(expire, () => {});
  try {
    const { body } = await followed(options, AbortSignal.any([signal, late.signal]));
    return parseBundleDocument(relationship.trustDomain, utf8(body), notice);
  } finally {
    done.abort();
  }
}

/** Every hop shows the same identity, or a certificate for its own name. Targets are forgotten afterwards. */
async function followed(options: FetchOptions, signal: AbortSignal): Promise<HttpsAnswer> {
  const authentication = {
    profile: options.relationship.profile,
    authorities: authoritiesFor(options),
    at: options.clock.now(),
  };
  let url = new URL(options.relationship.bundleEndpointUrl);
  for (let hops = 0; hops <= MAX_REDIRECTS; hops += 1) {
    const answer = await httpsGet(url, authentication, { maxBytes: MAX_BUNDLE_DOCUMENT_BYTES, signal });
    if (answer.status === 200) return answer;
    if (!REDIRECTS.has(answer.status)) throw failed(`unexpected status ${answer.status} fetching bundle`);
    url = target(answer, url);
  }
  throw failed(`more than ${MAX_REDIRECTS} redirects`);
}

function target({ headers: { location } }: HttpsAnswer, from: URL): URL {
  if (location === undefined || !URL.canParse(location, from)) throw failed("redirected to nowhere");
  try {
    const absolute = /^[A-Za-z][A-Za-z0-9+.-]*:/.test(location) ? location : new URL(location, from).href;
    return new URL(checkEndpointUrl(absolute));
  } catch (error) {
    throw failed(`redirected to a URL that is refused: ${Fault.from(error).message}`);
  }
}

function authoritiesFor({ relationship: { profile }, bundle }: FetchOptions) {
  if (profile.type === "https_web") return () => undefined;
  const held = bundle(trustDomainOf(profile.endpointSpiffeId));
  if (held === undefined) {
    throw new Fault("precondition", "can't perform SPIFFE Authentication: local copy of bundle not found", {
      code: "bundle-endpoint-bootstrap",
      hint: "set the bundle of the endpoint's trust domain once by hand, with bundle set",
    });
  }
  return () => held.x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
}

function utf8(bytes: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Fault("invalid", "bundle document is not UTF-8", { code: "bundle-malformed" });
  }
}

function failed(message: string): Fault {
  return new Fault("unavailable", message, { code: "bundle-endpoint-answer" });
}
