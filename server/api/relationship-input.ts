import { bundleToProto } from "../../src/rpc/convert.ts";
import type {
  FederationRelationship__Output,
  FederationRelationship as RelationshipMessage,
} from "../../src/rpc/gen/spire/api/types/FederationRelationship.ts";
import type { FederationRelationshipMask__Output } from "../../src/rpc/gen/spire/api/types/FederationRelationshipMask.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { parseSpiffeId, parseTrustDomainOrId, type TrustDomain } from "../../src/spiffe/id.ts";
import type { FederationRelationship, HeldRelationship } from "../store/store.ts";
import { foreignBundle } from "./bundle-input.ts";

export type RelationshipMask = FederationRelationshipMask__Output | null;

/** What a caller wants stored; what the mask leaves out is not even looked at. */
export interface RelationshipInput {
  readonly trustDomain: TrustDomain;
  readonly change: Partial<Omit<FederationRelationship, "trustDomain">>;
  readonly bundle: Bundle | undefined;
}

const MAX_URL_BYTES = 2048;

/** Throws `invalid`, in SPIRE's words. */
export function relationshipInput(proto: FederationRelationship__Output, mask: RelationshipMask): RelationshipInput {
  const trustDomain = within("failed to parse trust domain", () => parseTrustDomainOrId(proto.trust_domain));
  return {
    trustDomain,
    change: {
      ...(wanted(mask, "bundle_endpoint_url") ? { bundleEndpointUrl: checkUrl(proto.bundle_endpoint_url) } : {}),
      ...(wanted(mask, "bundle_endpoint_profile") ? { profile: readProfile(proto) } : {}),
    },
    bundle: wanted(mask, "trust_domain_bundle") ? readBundle(proto, trustDomain) : undefined,
  };
}

/** A whole relationship. Throws `invalid`. */
export function newRelationship(proto: FederationRelationship__Output): {
  readonly relationship: FederationRelationship;
  readonly bundle: Bundle | undefined;
} {
  const { trustDomain, bundle } = relationshipInput(proto, null);
  const relationship = {
    trustDomain,
    bundleEndpointUrl: checkUrl(proto.bundle_endpoint_url),
    profile: readProfile(proto),
  };
  return { relationship, bundle };
}

/** Without a mask, everything; the trust domain always. */
export function relationshipToProto(held: HeldRelationship, mask: RelationshipMask): RelationshipMessage {
  const { profile, bundle } = held;
  const profileMessage: RelationshipMessage =
    profile.type === "https_web"
      ? { https_web: {} }
      : { https_spiffe: { endpoint_spiffe_id: profile.endpointSpiffeId } };
  return {
    trust_domain: held.trustDomain,
    ...(wanted(mask, "bundle_endpoint_url") ? { bundle_endpoint_url: held.bundleEndpointUrl } : {}),
    ...(wanted(mask, "bundle_endpoint_profile") ? profileMessage : {}),
    ...(wanted(mask, "trust_domain_bundle") && bundle !== undefined
      ? { trust_domain_bundle: bundleToProto(bundle) }
      : {}),
  };
}

function wanted(mask: RelationshipMask, field: keyof FederationRelationshipMask__Output): boolean {
  return mask === null || mask[field];
}

/** Kept as it is written, but for the case of its scheme. Its parts are read without the leniency of browsers, which would take \`https:host\`. */
function checkUrl(text: string): string {
  if (Buffer.byteLength(text) > MAX_URL_BYTES || /[^\u0021-\u007e]/.test(text))
    throw bad("failed to parse bundle endpoint URL: at most 2048 printable characters are allowed");
  const [, scheme = "", authority = ""] = /^(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?:\/\/([^/?#]*))?/.exec(text) ?? [];
  if (scheme.toLowerCase() !== "https") throw bad("bundle endpoint URL must use the https scheme");
  if (authority === "") throw bad("bundle endpoint URL must specify the host");
  if (authority.includes("@")) throw bad("bundle endpoint URL must not contain user info");
  if (!URL.canParse(text)) throw bad("failed to parse bundle endpoint URL: invalid host or port");
  return text.replace(/^https/i, "https");
}

function readProfile(proto: FederationRelationship__Output): FederationRelationship["profile"] {
  if (proto.bundle_endpoint_profile === "https_web") return { type: "https_web" };
  if (proto.bundle_endpoint_profile !== "https_spiffe") throw bad("unsupported bundle endpoint profile type: <nil>");
  const endpoint = proto.https_spiffe?.endpoint_spiffe_id ?? "";
  const endpointSpiffeId = within("failed to parse endpoint SPIFFE ID", () => parseSpiffeId(endpoint));
  return { type: "https_spiffe", endpointSpiffeId };
}

function readBundle(
  { trust_domain_bundle }: FederationRelationship__Output,
  trustDomain: TrustDomain,
): Bundle | undefined {
  if (trust_domain_bundle === null) return undefined;
  const bundle = within("failed to parse bundle", () => foreignBundle(trust_domain_bundle));
  if (bundle.trustDomain === trustDomain) return bundle;
  throw bad(
    `trust domain bundle ("${bundle.trustDomain}") must match the trust domain of the federation relationship ("${trustDomain}")`,
  );
}

function within<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw new Fault("invalid", `${what}: ${messageOf(error)}`, { code: Fault.from(error).code, cause: error });
  }
}

function bad(message: string): Fault {
  return new Fault("invalid", message, { code: "relationship-invalid" });
}
