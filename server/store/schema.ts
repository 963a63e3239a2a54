import type { ColumnType, Generated } from "kysely";

/** `bigint` and `numeric` arrive as text and are bound as text or numbers. */
type Big = ColumnType<string, string | number, string | number>;
/** Arrives parsed, is bound as JSON text. */
type Json = ColumnType<unknown, string, string>;

export interface EntryTable {
  /** Order of creation: the position that page tokens name. */
  seq: Generated<string>;
  id: string;
  spiffe_id: string;
  parent_id: string;
  /** `type:value`, sorted, each once. */
  selectors: string[];
  /** SHA-256 over parent, SPIFFE ID and selectors: unique, so that no two entries are similar. */
  similar_hash: Buffer;
  x509_svid_ttl: number;
  jwt_svid_ttl: number;
  federates_with: string[];
  admin: boolean;
  downstream: boolean;
  store_svid: boolean;
  expires_at: Big;
  dns_names: string[];
  hint: string;
  disable_x509_svid_prefetch: boolean;
  jwt_svid_include_jti: boolean;
  revision_number: Big;
  created_at: Big;
}

export interface NodeTable {
  seq: Generated<string>;
  spiffe_id: string;
  attestation_type: string;
  serial_number: string;
  expires_at: Date;
  new_serial_number: string;
  new_expires_at: Date | null;
  can_reattest: boolean;
  agent_version: string;
  selectors: string[];
  /** Of the key that attested, until the first renewal; empty when that does not matter. */
  key_hash: Generated<string>;
  /** Serials that renewals replaced, oldest first. */
  superseded: Generated<string[]>;
  /** Null for an agent that is not in quarantine. */
  quarantined_at: Date | null;
  quarantine_reason: Generated<string>;
}

export interface BundleTable {
  seq: Generated<string>;
  trust_domain: string;
  content: Json;
  sequence_number: Big;
}

interface JoinTokenTable {
  seq: Generated<string>;
  token: string;
  expires_at: Date;
  /** Of the key that used it; empty until then. */
  key_hash: Generated<string>;
}

export interface FederationRelationshipTable {
  seq: Generated<string>;
  trust_domain: string;
  bundle_endpoint_url: string;
  bundle_endpoint_profile: "https_web" | "https_spiffe";
  endpoint_spiffe_id: string;
}

export interface AuthorityTable {
  seq: Generated<string>;
  authority_id: string;
  kind: "x509" | "jwt" | "wit";
  status: "prepared" | "active" | "old";
  key_id: string;
  certificate_chain: Buffer[];
  public_key: Buffer;
  issued_at: Date;
  expires_at: Date;
  tainted: boolean;
  upstream_authority_id: string;
}

export interface BundleLinkTable {
  seq: Generated<string>;
  signer_id: string;
  statement: string;
  authority_ids: string[];
  x509_authorities: Buffer[];
  expires_at: Date;
}

/** Written by triggers, in the transaction of the change itself. */
interface ChangeLogTable {
  seq: Generated<string>;
  xid: Generated<string>;
  kind: Generated<string>;
  entity: Generated<string>;
  at: Generated<Date>;
}

/** One row. Another epoch or origin means another history: cursors of the old one are worthless. */
interface FeedStateTable {
  epoch: string;
  /** System identifier of the cluster that the transaction numbers belong to. */
  origin: string;
  /** Highest transaction number whose log rows were pruned. */
  horizon: string;
}

interface LeaseTable {
  name: string;
  holder: string;
  ends_at: Date;
}

/** One row. */
interface SchemaMetaTable {
  version: number;
  /** The oldest schema version whose programs can work on this schema. */
  readable_from: number;
}

export interface Schema {
  entries: EntryTable;
  attested_nodes: NodeTable;
  bundles: BundleTable;
  join_tokens: JoinTokenTable;
  federation_relationships: FederationRelationshipTable;
  authorities: AuthorityTable;
  bundle_links: BundleLinkTable;
  change_log: ChangeLogTable;
  feed_state: FeedStateTable;
  leases: LeaseTable;
  schema_meta: SchemaMetaTable;
}
