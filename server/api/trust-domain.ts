import type { FederationRelationship__Output } from "../../src/rpc/gen/spire/api/types/FederationRelationship.ts";
import type { TrustDomainApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import type { Log } from "../../src/runtime/log.ts";
import { parseTrustDomainOrId, type TrustDomain, trustDomainOf } from "../../src/spiffe/id.ts";
import type { Directory } from "../directory/authorized.ts";
import * as events from "../events.ts";
import type { FederationStore, HeldRelationship, PageRequest } from "../store/store.ts";
import { batch } from "./batch.ts";
import { attempt, checked, failure, type Words } from "./fail.ts";
import { messageBytes, readPage } from "./pages.ts";
import {
  newRelationship,
  type RelationshipMask,
  relationshipInput,
  relationshipToProto,
} from "./relationship-input.ts";
import { itemFailure, OK } from "./results.ts";
import type { HandlersOf } from "./shapes.ts";

export interface TrustDomainServiceParts {
  readonly trustDomain: TrustDomain;
  readonly federation: FederationStore;
  readonly directory: Pick<Directory, "bundle">;
  /** Fetches the bundle of the trust domain now, and stores it. False when there is no relationship with it. */
  readonly refreshBundle: (trustDomain: TrustDomain, signal: AbortSignal) => Promise<boolean>;
  /** Told after relationships were stored or deleted. */
  readonly relationshipsChanged: () => void;
  /** Resolves once what was committed before is in the directory. */
  readonly caughtUp: (log: Log) => Promise<void>;
}

/** Relationships carry bundles, which can be large: fewer of them are read at once. */
const RELATIONSHIPS_AT_ONCE = 100;

const UNKNOWN = "federation relationship not found";
const UPDATE_WORDS: Words = { not_found: UNKNOWN, otherwise: "failed to update federation relationship" };
const DELETE_WORDS: Words = { not_found: UNKNOWN, otherwise: "failed to delete federation relationship" };

/** Where the bundles of foreign trust domains are fetched. */
export function trustDomainService(parts: TrustDomainServiceParts): HandlersOf<typeof TrustDomainApi> {
  const { federation, refreshBundle } = parts;
  const caughtUp = async (log: Log): Promise<void> => {
    parts.relationshipsChanged();
    await parts.caughtUp(log);
  };
  return {
    ListFederationRelationships: unary(async ({ output_mask, page_size, page_token }, { auth: { log } }) => {
      const read = async (page: PageRequest) => {
        const { items, nextPageToken } = await federation.list(page);
        return { items: items.map((held) => relationshipToProto(held, output_mask)), nextPageToken };
      };
      const { items, nextPageToken } = await attempt(log, "failed to list federation relationships", () =>
        readPage(page_size, page_token, { read, sizeOf: messageBytes, maxItems: RELATIONSHIPS_AT_ONCE }),
      );
      return { federation_relationships: [...items], next_page_token: nextPageToken };
    }),
    GetFederationRelationship: unary(async ({ trust_domain, output_mask }, { auth: { log } }) => {
      const name = checked(log, "failed to parse trust domain", () => parseTrustDomainOrId(trust_domain));
      const held = await attempt(log, "failed to fetch federation relationship", () => federation.find(name));
      if (held === undefined) throw failure(log, "not_found", "federation relationship does not exist");
      return relationshipToProto(held, output_mask);
    }),
    BatchCreateFederationRelationship: unary(async ({ federation_relationships, output_mask }, call) => {
      const work = (proto: FederationRelationship__Output) => create(parts, proto, output_mask, call.auth.log);
      return { results: await batch(call, federation_relationships, { work, audit, caughtUp }) };
    }),
    BatchUpdateFederationRelationship: unary(async ({ federation_relationships, input_mask, output_mask }, call) => {
      const masks = { input: input_mask, output: output_mask };
      const work = (proto: FederationRelationship__Output) => update(parts, proto, masks, call.auth.log);
      return { results: await batch(call, federation_relationships, { work, audit, caughtUp }) };
    }),
    BatchDeleteFederationRelationship: unary(async ({ trust_domains }, call) => {
      const work = (name: string) => remove(parts, name, call.auth.log);
      const fields = (name: string) => ({ trust_domain_id: shown(name) });
      return { results: await batch(call, trust_domains, { work, audit: fields, caughtUp }) };
    }),
    RefreshBundle: unary(async ({ trust_domain }, call) => {
      const name = checked(call.auth.log, "failed to parse trust domain", () => parseTrustDomainOrId(trust_domain));
      const log = call.auth.log.child({ trust_domain_id: name });
      const known = await attempt(log, "failed to refresh bundle", () => refreshBundle(name, call.signal));
      if (!known) throw failure(log, "not_found", `no relationship with trust domain "${name}"`);
      await parts.caughtUp(log);
      events.bundleRefreshed(log);
      return {};
    }),
  };
}

/** A name as it arrived, as long as one can be. */
function shown(name: string): string {
  return name.slice(0, 255);
}

function audit(proto: FederationRelationship__Output) {
  const { trust_domain, bundle_endpoint_url, bundle_endpoint_profile, https_spiffe } = proto;
  return {
    trust_domain_id: shown(trust_domain),
    bundle_endpoint_url: bundle_endpoint_url.slice(0, 2048),
    bundle_endpoint_profile,
    endpoint_spiffe_id: https_spiffe?.endpoint_spiffe_id.slice(0, 2048),
  };
}

async function create(
  parts: TrustDomainServiceParts,
  proto: FederationRelationship__Output,
  mask: RelationshipMask,
  outer: Log,
) {
  const log = outer.child({ trust_domain_id: shown(proto.trust_domain) });
  try {
    const { relationship, bundle } = checked(log, "failed to convert federation relationship", () =>
      newRelationship(proto),
    );
    refuseOwn(parts, log, relationship.trustDomain, "create");
    const held = await attempt(log, "failed to create federation relationship", () =>
      parts.federation.create(relationship, bundle),
    );
    warnOfMissingBundle(parts, log, held);
    events.relationshipCreated(log);
    return { status: OK, federation_relationship: relationshipToProto(held, mask) };
  } catch (error) {
    return { status: itemFailure(log, error) };
  }
}

async function update(
  parts: TrustDomainServiceParts,
  proto: FederationRelationship__Output,
  masks: { readonly input: RelationshipMask; readonly output: RelationshipMask },
  outer: Log,
) {
  const log = outer.child({ trust_domain_id: shown(proto.trust_domain) });
  try {
    const { trustDomain, change, bundle } = checked(log, "failed to convert federation relationship", () =>
      relationshipInput(proto, masks.input),
    );
    refuseOwn(parts, log, trustDomain, "update");
    const held = await attempt(log, UPDATE_WORDS, () => parts.federation.update(trustDomain, change, bundle));
    warnOfMissingBundle(parts, log, held);
    events.relationshipUpdated(log);
    return { status: OK, federation_relationship: relationshipToProto(held, masks.output) };
  } catch (error) {
    return { status: itemFailure(log, error) };
  }
}

async function remove({ federation }: TrustDomainServiceParts, name: string, outer: Log) {
  const log = outer.child({ trust_domain_id: shown(name) });
  try {
    if (name === "") throw failure(log, "invalid", "missing trust domain");
    const trustDomain = checked(log, "failed to parse trust domain", () => parseTrustDomainOrId(name));
    await attempt(log, DELETE_WORDS, () => federation.delete(trustDomain));
    events.relationshipDeleted(log);
    return { status: OK, trust_domain: trustDomain };
  } catch (error) {
    return { status: itemFailure(log, error), trust_domain: name };
  }
}

/** The own trust domain's bundle is never fetched from anywhere (T-F1). */
function refuseOwn({ trustDomain }: TrustDomainServiceParts, log: Log, name: TrustDomain, verb: string): void {
  if (name === trustDomain)
    throw failure(log, "invalid", `unable to ${verb} federation relationship for server trust domain`);
}

/** Without it, the endpoint cannot be authenticated, and the bundle never be fetched. */
function warnOfMissingBundle({ directory }: TrustDomainServiceParts, log: Log, held: HeldRelationship): void {
  if (held.bundle !== undefined || held.profile.type !== "https_spiffe") return;
  const { endpointSpiffeId } = held.profile;
  if (directory.bundle(trustDomainOf(endpointSpiffeId)) === undefined)
    events.endpointBundleMissing(log, endpointSpiffeId);
}
