import { bundleToProto } from "../../src/rpc/convert.ts";
import type {
  FederationRelationship__Output,
  FederationRelationship as RelationshipMessage,
} from "../../src/rpc/gen/spire/api/types/FederationRelationship.ts";
import type { FederationRelationshipMask__Output } from "../../src/rpc/gen/spire/api/types/FederationRelationshipMask.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { checkEndpointUrl, type EndpointProfile, type FederationRelationship } from "../../src/spiffe/federation.ts";
import { parseSpiffeId, parseTrustDomainOrId, type TrustDomain } from "../../src/spiffe/id.ts";
import type { HeldRelationship } from "../store/store.ts";
import { foreignBundle } from "./bundle-input.ts";

export type RelationshipMask = FederationRelationshipMask__Output | null;

/** What a caller wants stored; what the mask leaves out is not even looked at. */
export interface RelationshipInput {
  readonly trustDomain: TrustDomain;
  readonly change: Partial<Omit<FederationRelationship, "trustDomain">>;
  readonly bundle: Bundle | undefined;
}

/** Throws `invalid`, in SPIRE's words. */
export function relationshipInput(proto: FederationRelationship__Output, mask: RelationshipMask): RelationshipInput {
  const trustDomain = within("failed to parse trust domain", () => parseTrustDomainOrId(proto.trust_domain));
  return {
    trustDomain,
    change: {
      ...(wanted(mask, "bundle_endpoint_url")
        ? { bundleEndpointUrl: checkEndpointUrl(proto.bundle_endpoint_url) }
        : {}),
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
    bundleEndpointUrl: checkEndpointUrl(proto.bundle_endpoint_url),
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

function readProfile(proto: FederationRelationship__Output): EndpointProfile {
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
