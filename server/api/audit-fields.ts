import { createHash } from "node:crypto";
import type { BatchNewX509SVIDRequest__Output } from "../../src/rpc/gen/spire/api/server/svid/v1/BatchNewX509SVIDRequest.ts";
import type { Bundle__Output } from "../../src/rpc/gen/spire/api/types/Bundle.ts";
import type { Entry__Output } from "../../src/rpc/gen/spire/api/types/Entry.ts";
import type { EntryMask__Output } from "../../src/rpc/gen/spire/api/types/EntryMask.ts";
import type { JWTKey } from "../../src/rpc/gen/spire/api/types/JWTKey.ts";
import type { SPIFFEID } from "../../src/rpc/gen/spire/api/types/SPIFFEID.ts";
import {
  AgentApi,
  BundleApi,
  EntryApi,
  LocalAuthorityApi,
  type MethodTypes,
  QuarantineApi,
  ServerLoggerApi,
  type Service,
  SvidApi,
  TrustDomainApi,
} from "../../src/rpc/protos.ts";
import type { LogFields } from "../../src/runtime/log.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";

/*
 * What an audit record says of a request and its answer, under SPIRE's names. Chosen field by field, so that a message
 * that grows never grows a record: no token, no key and no selector can get into one. A CSR and a key are named by their
 * SHA-256, and so is a set of selectors.
 */

type FactsOf<T> = T extends MethodTypes
  ? {
      readonly request?: (request: T["request"]) => LogFields;
      readonly response?: (response: T["sendResponse"]) => LogFields;
    }
  : never;

export interface Facts {
  readonly request?: (request: never) => LogFields;
  readonly response?: (response: never) => LogFields;
}

type ServiceFacts<S> = S extends Service<infer M> ? { readonly [K in keyof M]?: FactsOf<M[K]> } : never;

const entry: ServiceFacts<typeof EntryApi> = {
  CountEntries: { request: ({ filter }) => entryFilterFields(filter) },
  ListEntries: { request: ({ filter }) => entryFilterFields(filter) },
  GetEntry: { request: ({ id }) => ({ entry_id: short(id) }) },
};

const agent: ServiceFacts<typeof AgentApi> = {
  CountAgents: { request: ({ filter }) => agentFilterFields(filter) },
  ListAgents: { request: ({ filter }) => agentFilterFields(filter) },
  GetAgent: { request: ({ id }) => ({ spiffe_id: idText(id) }) },
  DeleteAgent: { request: ({ id }) => ({ spiffe_id: idText(id) }) },
  BanAgent: { request: ({ id }) => ({ spiffe_id: idText(id) }) },
  RenewAgent: {
    request: ({ params }) => ({ csr: sha256(params?.csr) }),
    response: ({ svid }) => ({ expires_at: seconds(svid?.expires_at) }),
  },
  PostStatus: { request: ({ agent_version }) => ({ agent_version: short(agent_version) }) },
  CreateJoinToken: { request: ({ ttl, agent_id }) => ({ ttl, spiffe_id: idText(agent_id) }) },
};

const quarantine: ServiceFacts<typeof QuarantineApi> = {
  QuarantineAgent: { request: ({ id, reason }) => ({ spiffe_id: idText(id), reason: short(reason) }) },
  ReleaseAgent: {
    request: ({ id, x509svid_serial_number }) => ({ spiffe_id: idText(id), serial_num: short(x509svid_serial_number) }),
  },
};

const svid: ServiceFacts<typeof SvidApi> = {
  MintX509SVID: {
    request: ({ csr, ttl }) => ({ csr: sha256(csr), ttl }),
    response: (answer) => ({ spiffe_id: idText(answer.svid?.id), expires_at: time(answer.svid?.expires_at) }),
  },
  MintJWTSVID: { request: ({ id, audience, ttl }) => ({ spiffe_id: idText(id), audience: joined(audience), ttl }) },
  MintWITSVID: { request: ({ id, ttl }) => ({ spiffe_id: idText(id), ttl }) },
  NewJWTSVID: {
    request: ({ entry_id, audience }) => ({ entry_id: short(entry_id), audience: joined(audience) }),
    response: (answer) => ({ spiffe_id: idText(answer.svid?.id), expires_at: seconds(answer.svid?.expires_at) }),
  },
  NewDownstreamX509CA: { request: ({ csr, preferred_ttl }) => ({ csr: sha256(csr), ttl: preferred_ttl }) },
};

const bundle: ServiceFacts<typeof BundleApi> = {
  GetBundle: { response: ({ trust_domain }) => ({ trust_domain_id: trust_domain }) },
  GetFederatedBundle: { request: ({ trust_domain }) => ({ trust_domain_id: short(trust_domain) }) },
  AppendBundle: {
    request: ({ x509_authorities, jwt_authorities }) => ({
      ...x509Fields(x509_authorities),
      ...jwtFields(jwt_authorities),
    }),
  },
  PublishJWTAuthority: {
    request: ({ jwt_authority }) => ({
      jwt_authority_expires_at: seconds(jwt_authority?.expires_at),
      jwt_authority_key_id: short(jwt_authority?.key_id),
      jwt_authority_public_key_sha256: sha256(jwt_authority?.public_key),
    }),
  },
};

const trustDomain: ServiceFacts<typeof TrustDomainApi> = {
  GetFederationRelationship: { request: ({ trust_domain }) => ({ trust_domain_id: short(trust_domain) }) },
  RefreshBundle: { request: ({ trust_domain }) => ({ trust_domain_id: short(trust_domain) }) },
};

const logger: ServiceFacts<typeof ServerLoggerApi> = {
  SetLogLevel: { request: ({ new_level }) => ({ new_log_level: short(String(new_level)) }) },
};

const authority = {
  request: (request: { readonly authority_id: string }) => ({ local_authority_id: short(request.authority_id) }),
};
const upstreamAuthority = {
  request: (request: { readonly subject_key_id: string }) => ({ subject_key_id: short(request.subject_key_id) }),
};

const localAuthority: ServiceFacts<typeof LocalAuthorityApi> = {
  ActivateX509Authority: authority,
  TaintX509Authority: authority,
  RevokeX509Authority: authority,
  TaintX509UpstreamAuthority: upstreamAuthority,
  RevokeX509UpstreamAuthority: upstreamAuthority,
  ActivateJWTAuthority: authority,
  TaintJWTAuthority: authority,
  RevokeJWTAuthority: authority,
  ActivateWITAuthority: authority,
  TaintWITAuthority: authority,
  RevokeWITAuthority: authority,
};

const byPath: ReadonlyMap<string, Facts> = new Map([
  ...rows(AgentApi, agent),
  ...rows(BundleApi, bundle),
  ...rows(EntryApi, entry),
  ...rows(LocalAuthorityApi, localAuthority),
  ...rows(QuarantineApi, quarantine),
  ...rows(ServerLoggerApi, logger),
  ...rows(SvidApi, svid),
  ...rows(TrustDomainApi, trustDomain),
]);

function rows(api: { readonly name: string }, facts: Readonly<Record<string, Facts | undefined>>): [string, Facts][] {
  return Object.entries(facts).flatMap(([method, row]) => (row === undefined ? [] : [[`/${api.name}/${method}`, row]]));
}

/** Of a unary method by its path. Batches and streams say in their handlers what they did. */
export function factsOf(path: string): Facts | undefined {
  return byPath.get(path);
}

/** An entry as a caller sent it: the fields that its mask names. Parents that have not attested are shown without token. */
export function entryFacts(
  proto: Entry__Output,
  mask: EntryMask__Output | null,
  hasAttested: (id: SpiffeId) => boolean,
): LogFields {
  const parent = idText(proto.parent_id);
  const isKnown = parent !== undefined && hasAttested(parent as SpiffeId);
  const whole: Readonly<Record<Exclude<keyof EntryMask__Output, "additional_attributes">, LogFields>> = {
    spiffe_id: { spiffe_id: idText(proto.spiffe_id) },
    parent_id: { parent_id: isKnown ? parent : withoutToken(parent) },
    selectors: { selectors_sha256: selectorsHash(proto.selectors) },
    x509_svid_ttl: { x509_svid_ttl: proto.x509_svid_ttl },
    jwt_svid_ttl: { jwt_svid_ttl: proto.jwt_svid_ttl },
    federates_with: { federates_with: joined(proto.federates_with) },
    admin: { admin: proto.admin },
    downstream: { downstream: proto.downstream },
    expires_at: { expires_at: seconds(proto.expires_at) },
    dns_names: { dns_name: joined(proto.dns_names) },
    revision_number: { revision_number: seconds(proto.revision_number) },
    store_svid: { store_svid: proto.store_svid },
    hint: { hint: short(proto.hint) },
    created_at: { created_at: seconds(proto.created_at) },
  };
  const named = Object.entries(whole).filter(([field]) => mask === null || mask[field as keyof EntryMask__Output]);
  return Object.assign({ entry_id: short(proto.id) }, ...named.map(([, fields]) => fields));
}

/** An SVID of a batch: who asked with which key, and what was issued. */
export function newSvidFields(
  param: Partial<BatchNewX509SVIDRequest__Output["params"][number]> | undefined,
  issued: { readonly id?: SPIFFEID | null; readonly expires_at?: unknown } | null | undefined,
): LogFields {
  return {
    entry_id: short(param?.entry_id),
    csr: sha256(param?.csr),
    spiffe_id: idText(issued?.id),
    expires_at: seconds(issued?.expires_at),
  };
}

/** A foreign bundle as a caller sent it. */
export function bundleFields(proto: Bundle__Output): LogFields {
  return {
    trust_domain_id: short(proto.trust_domain),
    refresh_hint: seconds(proto.refresh_hint),
    sequence_number: seconds(proto.sequence_number),
    ...x509Fields(proto.x509_authorities),
    ...jwtFields(proto.jwt_authorities),
  };
}

type EntryFilter = Parameters<NonNullable<NonNullable<(typeof entry)["ListEntries"]>["request"]>>[0]["filter"];
type AgentFilter = Parameters<NonNullable<NonNullable<(typeof agent)["ListAgents"]>["request"]>>[0]["filter"];

function entryFilterFields(filter: EntryFilter): LogFields {
  return {
    hint: short(filter?.by_hint?.value),
    parent_id: withoutToken(idText(filter?.by_parent_id)),
    spiffe_id: idText(filter?.by_spiffe_id),
    by_selector_match: filter?.by_selectors?.match,
    federates_with_match: filter?.by_federates_with?.match,
    federates_with: joined(filter?.by_federates_with?.trust_domains),
    downstream: filter?.by_downstream?.value,
  };
}

function agentFilterFields(filter: AgentFilter): LogFields {
  return {
    node_attestor_type: short(filter?.by_attestation_type),
    by_banned: filter?.by_banned?.value,
    by_can_reattest: filter?.by_can_reattest?.value,
    by_selector_match: filter?.by_selector_match?.match,
  };
}

/** Of the first few: a record is one line. */
const MOST_LISTED = 20;

function x509Fields(authorities: readonly { readonly asn1?: Uint8Array | string }[]): LogFields {
  const rows = authorities
    .slice(0, MOST_LISTED)
    .map(({ asn1 }, index) => [`x509_authorities_asn1_sha256.${index}`, sha256(asn1)]);
  return Object.fromEntries(rows);
}

function jwtFields(authorities: readonly JWTKey[]): LogFields {
  return Object.assign(
    {},
    ...authorities.slice(0, MOST_LISTED).map(({ expires_at, key_id, public_key }, index) => ({
      [`jwt_authority_expires_at.${index}`]: seconds(expires_at),
      [`jwt_authority_key_id.${index}`]: short(key_id),
      [`jwt_authority_public_key_sha256.${index}`]: sha256(public_key),
    })),
  );
}

const LONGEST = 2048;

/** Undefined for what is not there. */
function short(text: string | undefined): string | undefined {
  return text === undefined || text === "" ? undefined : text.slice(0, LONGEST);
}

function joined(texts: readonly string[] | undefined): string | undefined {
  return short(texts?.join(","));
}

function idText(id: SPIFFEID | null | undefined): string | undefined {
  return id == null ? undefined : `spiffe://${id.trust_domain ?? ""}${id.path ?? ""}`.slice(0, LONGEST);
}

/** A token is a secret until it is used. */
function withoutToken(id: string | undefined): string | undefined {
  return id?.replace(/(\/spire\/agent\/join_token\/).+/, "$1…");
}

/** Unix seconds, as numbers where they fit. */
function seconds(value: unknown): number | undefined {
  return value === undefined || value === null ? undefined : Number(value);
}

function time(unixSeconds: unknown): string | undefined {
  const whole = seconds(unixSeconds);
  return whole === undefined ? undefined : new Date(whole * 1000).toISOString().replace(".000Z", "Z");
}

function sha256(bytes: Uint8Array | string | undefined): string | undefined {
  return bytes === undefined || bytes.length === 0 ? undefined : createHash("sha256").update(bytes).digest("hex");
}

function selectorsHash(selectors: Entry__Output["selectors"]): string | undefined {
  const texts = selectors.map(({ type, value }) => `${type}:${value}`).sort();
  return texts.length === 0 ? undefined : sha256(texts.join("\n"));
}
