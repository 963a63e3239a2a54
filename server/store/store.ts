import type { Fault } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { BundleLink } from "../../src/spiffe/bundle-link.ts";
import type { Entry, EntryDraft } from "../../src/spiffe/entry.ts";
import type { FederationRelationship } from "../../src/spiffe/federation.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import type { Selector } from "../../src/spiffe/selector.ts";

/** `token` is empty for the first page. Sizes are capped by the store. */
export interface PageRequest {
  readonly size: number;
  readonly token: string;
}

/** `nextPageToken` is empty on the last page. Tokens are opaque keyset positions, stable under inserts and deletes. */
export interface Page<T> {
  readonly items: readonly T[];
  readonly nextPageToken: string;
}

export type SetMatch = "exact" | "subset" | "superset" | "any";

export interface EntryFilter {
  readonly spiffeId?: SpiffeId;
  readonly parentId?: SpiffeId;
  readonly selectors?: { readonly match: SetMatch; readonly selectors: readonly Selector[] };
  readonly federatesWith?: { readonly match: SetMatch; readonly trustDomains: readonly TrustDomain[] };
  readonly hint?: string;
  readonly downstream?: boolean;
}

/** `existed`: the entry is a similar one that was there. */
export interface CreatedEntry {
  readonly entry: Entry;
  readonly existed: boolean;
}

export interface EntryChange {
  readonly id: string;
  /** What the entry is to be. May be called more than once. */
  readonly change: (current: Entry) => EntryDraft;
}

export interface EntryStore {
  /**
   * Stores the entry, or returns the similar one (same SPIFFE ID, parent and selectors) with `existed`.
   * Throws `already_exists` for a taken id, `precondition` for a federated bundle that is not there.
   */
  create(draft: EntryDraft): Promise<CreatedEntry>;
  /**
   * As `create` for each, in order, in as few transactions as there is trouble: a fault stands where `create` would have
   * thrown it, and the others are stored.
   */
  createMany(drafts: readonly EntryDraft[]): Promise<readonly (CreatedEntry | Fault)[]>;
  find(id: string): Promise<Entry | undefined>;
  /** Without a page request, everything. Ordered by creation. */
  list(filter: EntryFilter, page?: PageRequest): Promise<Page<Entry>>;
  count(filter: EntryFilter): Promise<number>;
  /**
   * Reads the entry, applies `change` and stores the result with the next revision, in one transaction.
   * Throws `not_found`; what `change` throws; `already_exists` when the result is similar to another entry.
   */
  update(id: string, change: EntryChange["change"]): Promise<Entry>;
  /** As `update` for each, in order; what `update` would throw stands in the place of the entry. */
  updateMany(changes: readonly EntryChange[]): Promise<readonly (Entry | Fault)[]>;
  /** The deleted entry, or undefined. */
  delete(id: string): Promise<Entry | undefined>;
  /** The ids that there were, of those given; all are deleted, or none. */
  deleteMany(ids: readonly string[]): Promise<ReadonlySet<string>>;
  /** Deletes entries whose `expiresAt` is set and before `now`; at most `limit`. */
  prune(now: Date, limit: number): Promise<readonly Entry[]>;
}

/** The agent keeps its record and gets nothing until it is released. */
export interface Quarantine {
  readonly since: Date;
  readonly reason: string;
}

/** An attested node. */
export interface AttestedNode {
  readonly id: SpiffeId;
  /** Name of the attestor. */
  readonly attestationType: string;
  /** Decimal; empty when banned. */
  readonly serialNumber: string;
  readonly expiresAt: Date;
  /** Set by a renewal, until the agent first uses the new SVID. Decimal; empty when there is none. */
  readonly newSerialNumber: string;
  readonly newExpiresAt: Date | undefined;
  readonly canReattest: boolean;
  readonly agentVersion: string;
  /** Serials that renewals replaced, oldest first; the last few. Whoever shows one is not the agent that renewed. */
  readonly superseded: readonly string[];
  /** Sorted, each once. */
  readonly selectors: readonly Selector[];
  /** No attestation ends it. */
  readonly quarantine: Quarantine | undefined;
}

export type NodeDraft = Omit<
  AttestedNode,
  "newSerialNumber" | "newExpiresAt" | "agentVersion" | "superseded" | "quarantine"
>;

/** Evidence that makes a node once: only the key that did may attest by it again, until its first renewal. */
export interface OnceEvidence {
  /** SHA-256 of the agent's public key, hex. */
  readonly keyHash: string;
}

export interface NodeFilter {
  readonly attestationType?: string;
  readonly selectors?: { readonly match: SetMatch; readonly selectors: readonly Selector[] };
  readonly banned?: boolean;
  readonly canReattest?: boolean;
  readonly expiresBefore?: Date;
  readonly quarantined?: boolean;
}

export interface NodeStore {
  /**
   * Creates the node, or replaces its attestation data; clears pending and superseded serials, keeps the agent version
   * and a quarantine.
   * Throws `denied` when it is banned, and for evidence that counts once when another key has used it.
   */
  attest(node: NodeDraft, evidence?: OnceEvidence): Promise<AttestedNode>;
  find(id: SpiffeId): Promise<AttestedNode | undefined>;
  list(filter: NodeFilter, page?: PageRequest): Promise<Page<AttestedNode>>;
  count(filter: NodeFilter): Promise<number>;
  /** Records the serial that a renewal issued. Only while `currentSerial` is still an accepted serial of the node; else throws `denied`. Throws `not_found`. */
  renew(
    id: SpiffeId,
    renewal: { readonly currentSerial: string; readonly serialNumber: string; readonly expiresAt: Date },
  ): Promise<AttestedNode>;
  /** Makes the pending serial the current one; undefined when `serialNumber` is not the pending one any more. */
  activate(id: SpiffeId, serialNumber: string): Promise<AttestedNode | undefined>;
  /** Stores nothing when the version is unchanged. Throws `not_found`. */
  setAgentVersion(id: SpiffeId, version: string): Promise<AttestedNode>;
  /** Empties both serials. Throws `not_found`. */
  ban(id: SpiffeId): Promise<AttestedNode>;
  /** One that is in quarantine stays so since then, for the new reason. Throws `not_found`, `precondition` when it is banned. */
  quarantine(id: SpiffeId, quarantine: Quarantine): Promise<AttestedNode>;
  /**
   * Ends the quarantine. With `serialNumber`, that one becomes the current one and the others are superseded: it is one of
   * theirs. Throws `not_found`, and `precondition` for a serial that it has never had, or an agent that is in none.
   */
  release(id: SpiffeId, serialNumber?: string): Promise<AttestedNode>;
  /**
   * Deletes the node, and its join token with the alias entries that it made. With `expiredBefore` only while every SVID of it
   * had ended then and it is neither banned nor in quarantine, whatever it was when it was listed. Undefined when there is
   * none such.
   */
  delete(id: SpiffeId, expiredBefore?: Date): Promise<AttestedNode | undefined>;
}

export interface JoinToken {
  readonly token: string;
  readonly expiresAt: Date;
}

export interface TokenStore {
  /** Stores the token, and its alias entry when given, in one transaction. Throws `already_exists`. */
  create(token: JoinToken, alias?: EntryDraft): Promise<void>;
  /**
   * Binds the token to the key that uses it first and returns it; undefined for every other key: once means once, under
   * concurrency and across servers. `keyHash` is as in `OnceEvidence`.
   */
  consume(token: string, keyHash: string): Promise<JoinToken | undefined>;
  /** Deletes tokens that ended before `now`; returns how many. */
  prune(now: Date): Promise<number>;
}

export type BundleDeleteMode = "restrict" | "delete" | "dissociate";

export interface BundleFilter {
  /** Leaves this one out: the server's own, where only foreign ones are asked for. */
  readonly except?: TrustDomain;
}

export interface BundleStore {
  find(trustDomain: TrustDomain): Promise<Bundle | undefined>;
  /** Without a page request, everything. Ordered by creation. */
  list(filter: BundleFilter, page?: PageRequest): Promise<Page<Bundle>>;
  count(): Promise<number>;
  /**
   * Reads the bundle (undefined when there is none), applies `change` and stores the result, in one transaction that
   * excludes other changes of the same bundle. The sequence number grows whenever the content differs.
   */
  change(
    trustDomain: TrustDomain,
    change: (current: Bundle | undefined) => Omit<Bundle, "trustDomain" | "sequenceNumber">,
  ): Promise<Bundle>;
  /** As `change`, for a foreign trust domain: its sequence number is its publisher's, and is kept as it is given. */
  changeForeign(
    trustDomain: TrustDomain,
    change: (current: Bundle | undefined) => Omit<Bundle, "trustDomain">,
  ): Promise<Bundle>;
  /** Restrict throws `precondition` when entries federate with it. Throws `not_found`. */
  delete(trustDomain: TrustDomain, mode: BundleDeleteMode): Promise<void>;
}

/** A relationship with the bundle that is held of its trust domain. */
export interface HeldRelationship extends FederationRelationship {
  readonly bundle: Bundle | undefined;
}

export interface FederationStore {
  /** Stores the relationship, and the bundle when one is given, in one transaction. Throws `already_exists`. */
  create(relationship: FederationRelationship, bundle?: Bundle): Promise<HeldRelationship>;
  find(trustDomain: TrustDomain): Promise<HeldRelationship | undefined>;
  /** Without a page request, everything. Ordered by creation. */
  list(page?: PageRequest): Promise<Page<HeldRelationship>>;
  /** Stores what differs, and the bundle when one is given, in one transaction. Throws `not_found`. */
  update(
    trustDomain: TrustDomain,
    change: Partial<Omit<FederationRelationship, "trustDomain">>,
    bundle?: Bundle,
  ): Promise<HeldRelationship>;
  /**
   * As `BundleStore.changeForeign`, for what was fetched by a relationship. Throws `aborted` when that is not stored like
   * this any more: what its deletion took away does not come back.
   */
  changeBundle(
    relationship: FederationRelationship,
    change: (current: Bundle | undefined) => Omit<Bundle, "trustDomain">,
  ): Promise<Bundle>;
  /** The bundle stays. Throws `not_found`. */
  delete(trustDomain: TrustDomain): Promise<void>;
}

export type AuthorityKind = "x509" | "jwt" | "wit";
export type AuthorityStatus = "prepared" | "active" | "old";

/** One signing authority of one server: a row of the journal from which slots are rebuilt after a restart. */
export interface AuthorityRecord {
  /** Hex subject key identifier, or kid. */
  readonly authorityId: string;
  readonly kind: AuthorityKind;
  readonly status: AuthorityStatus;
  /** Name of the key in the key manager, such as `x509-CA-A`. */
  readonly keyId: string;
  /** DER, leaf first; empty for token authorities. */
  readonly certificateChain: readonly Uint8Array[];
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  readonly issuedAt: Date;
  readonly expiresAt: Date;
  readonly tainted: boolean;
  /** Hex subject key identifier of the upstream root; empty when self-signed. */
  readonly upstreamAuthorityId: string;
}

export interface AuthorityStore {
  list(kind: AuthorityKind): Promise<readonly AuthorityRecord[]>;
  /** Inserts or replaces the given records in one transaction. */
  save(records: readonly AuthorityRecord[]): Promise<void>;
  /** Deletes records that ended before `now`; returns how many. */
  prune(now: Date): Promise<number>;
}

/** What an X.509 authority said of the bundle that came after it. */
export interface BundleLinkRecord extends BundleLink {
  /** Hex subject key identifiers: of whose word it is, and of those whom it names. */
  readonly signerId: string;
  readonly authorityIds: readonly string[];
  readonly expiresAt: Date;
}

export interface BundleLinkStore {
  /** In place of what the same authority said before. */
  save(link: BundleLinkRecord): Promise<void>;
  list(): Promise<readonly BundleLinkRecord[]>;
  /** All that the authority said, and all that names it. */
  delete(authorityId: string): Promise<void>;
  /** Deletes what ended before `now`; returns how many. */
  prune(now: Date): Promise<number>;
}

/** Everything the directory holds, as of one snapshot of the database, in portions of a few thousand rows at most. */
export interface Snapshot {
  readonly cursor: string;
  /** Equal selectors and parents are the same objects as a rule: they are read once. */
  readonly entries: AsyncIterable<readonly Entry[]>;
  readonly nodes: AsyncIterable<readonly AttestedNode[]>;
  readonly bundles: AsyncIterable<readonly Bundle[]>;
}

/** `undefined` as value means deleted. Applying a change twice does no harm. */
export interface ChangeSet {
  readonly cursor: string;
  readonly entries: ReadonlyMap<string, Entry | undefined>;
  readonly nodes: ReadonlyMap<SpiffeId, AttestedNode | undefined>;
  readonly bundles: ReadonlyMap<TrustDomain, Bundle | undefined>;
}

/** Fault code of a schema that only newer programs may work on. */
export const SCHEMA_NEWER = "schema-newer";

/** The change feed: follows commits, never counters, so nothing is skipped. */
export interface ChangeStore {
  /**
   * Streams all rows of one repeatable-read snapshot to `receive`; its cursor starts the feed. Inside `receive` use
   * nothing else of the store: it may have a single connection, and this holds it.
   */
  load<T>(receive: (snapshot: Snapshot) => Promise<T>): Promise<T>;
  /**
   * What changed since the cursor; "reload" when the feed no longer reaches back; "other" when the database has another
   * history or is as it was before the cursor: it failed over, or was restored. Throws `unavailable` for a standby, and
   * `precondition` with `SCHEMA_NEWER` when a newer release has made the schema one that this program must not work on.
   */
  since(cursor: string): Promise<ChangeSet | "reload" | "other">;
  /** Yields when there may be changes: at a notification, and at least once a second. Never throws; ends with the signal. */
  wake(signal: AbortSignal): AsyncIterable<void>;
  /** Deletes log rows older than `before`; returns how many. */
  prune(before: Date): Promise<number>;
}

/** What one server of those on a database does at a time. */
export interface LeaseStore {
  /**
   * Takes the lease, or extends it, for `ms` from now on by the database's clock; false while another holder has it.
   * `holder` is unique to the one who asks.
   */
  take(name: string, holder: string, ms: number): Promise<boolean>;
  /** Free for the next at once, when this holder has it. */
  release(name: string, holder: string): Promise<void>;
}

/** The whole store; parts receive only the aggregate they need. */
export interface Store extends AsyncDisposable {
  readonly entries: EntryStore;
  readonly nodes: NodeStore;
  readonly tokens: TokenStore;
  readonly bundles: BundleStore;
  readonly federation: FederationStore;
  readonly authorities: AuthorityStore;
  readonly links: BundleLinkStore;
  readonly changes: ChangeStore;
  readonly leases: LeaseStore;
  /** For logs and health: `embedded` or `postgres`. */
  readonly kind: "embedded" | "postgres";
  /** Throws `unavailable` when the database does not answer. */
  ping(): Promise<void>;
}
