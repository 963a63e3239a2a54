import { counted } from "../src/rpc/counted.ts";
import { rpcNames } from "../src/rpc/names.ts";
import type { Outcome } from "../src/rpc/pipeline.ts";
import { codeNameOf } from "../src/rpc/status.ts";
import type { Clock } from "../src/runtime/clock.ts";
import type { Log, LogFields } from "../src/runtime/log.ts";
import { recordCall } from "../src/runtime/metrics.ts";
import type { SpiffeId, TrustDomain } from "../src/spiffe/id.ts";
import type { AuthorityKind } from "./store/store.ts";

/*
 * One function per event that people, scripts and dashboards wait for: its log line under SPIRE's words and field names,
 * its metric under SPIRE's keys, its audit record. Fields and labels never hold a key, a token or a selector.
 */

export function configured(
  log: Log,
  fields: {
    readonly adminIds: readonly SpiffeId[];
    readonly dataDir: string;
    readonly logLevel: string;
    readonly version: string;
  },
): void {
  log.info("Configured", {
    admin_ids: fields.adminIds,
    data_dir: fields.dataDir,
    launch_log_level: fields.logLevel,
    version: fields.version,
  });
}

/** Once for each listener, when it accepts connections. */
export function serverApisStarting(
  log: Log,
  listener: { readonly address: string; readonly network: "tcp" | "unix" },
): void {
  log.info("Starting Server APIs", { address: listener.address, network: listener.network });
}

export function proxiesTrusted(log: Log, networks: readonly string[]): void {
  log.info("PROXY protocol enabled on TCP listener", { trusted_cidrs: networks });
}

export function serverApisStopping(log: Log): void {
  log.info("Stopping Server APIs");
}

/** The kinds name the selectors that are meant, such as `k8s:container-image`. */
export function imageSelectedByTag(log: Log, entryId: string, kinds: readonly string[]): void {
  log.warn("Entry selects a container image by tag, which can come to mean another image; select it by digest", {
    entry_id: entryId,
    selector_kinds: kinds.join(","),
  });
}

/** After a failover or a restore: how many entries are gone, and how many are older than those that were served. */
export function datastoreReplaced(log: Log, entries: { readonly gone: number; readonly older: number }): void {
  log.warn("The datastore is not the one of before, as after a failover or a restore; everything was loaded again", {
    entries_gone: entries.gone,
    entries_older: entries.older,
  });
}

/** What the server does by itself, by SPIRE's key of its call counter. */
type Chore =
  | "ca.manager.x509_ca.prepare"
  | "ca.manager.jwt_key.prepare"
  | "ca.manager.wit_key.prepare"
  | "ca.manager.bundle.prune"
  | "entry.cache.reload"
  | "node.manager.prune"
  | "registration_entry.manager.prune"
  | "svid.rotate";

/** Runs the work, and counts and times it. */
export function chore<T>(
  { log, clock }: { readonly log: Log; readonly clock: Clock },
  key: Chore,
  work: () => Promise<T>,
): Promise<T> {
  return counted({ metrics: log.metrics, clock }, key, work);
}

const PREPARED = {
  x509: "ca.manager.x509_ca.prepare",
  jwt: "ca.manager.jwt_key.prepare",
  wit: "ca.manager.wit_key.prepare",
} as const satisfies Record<AuthorityKind, Chore>;

/** As `chore`, of making the next authority. */
export function preparingAuthority<T>(
  parts: { readonly log: Log; readonly clock: Clock },
  kind: AuthorityKind,
  work: () => Promise<T>,
): Promise<T> {
  return chore(parts, PREPARED[kind], work);
}

const ACTIVATED: Readonly<Record<AuthorityKind, string>> = {
  x509: "ca.manager.x509_ca.activate",
  jwt: "manager.jwt_key.activate",
  wit: "manager.wit_key.activate",
};

export interface ActiveAuthority {
  readonly kind: AuthorityKind;
  readonly trustDomain: TrustDomain;
  readonly notAfter: Date;
  readonly now: Date;
}

export function authorityActivated(log: Log, message: string, authority: ActiveAuthority, fields: LogFields): void {
  log.info(message, fields);
  log.metrics.increment(ACTIVATED[authority.kind]);
  authorityTimeLeft(log, authority);
  const { kind, trustDomain, notAfter, now } = authority;
  if (kind !== "x509") return;
  const ttl = (notAfter.getTime() - now.getTime()) / 1000;
  log.debug("Successfully rotated X.509 CA", { trust_domain_id: `spiffe://${trustDomain}`, ttl });
}

const TIME_LEFT: Readonly<Record<AuthorityKind, string>> = {
  x509: "manager.x509_ca.rotate",
  jwt: "manager.jwt_key.rotate",
  wit: "manager.wit_key.rotate",
};

/** With every tick, so that what is left shrinks while no next authority can be made. SPIRE has it for `x509` only. */
export function authorityTimeLeft({ metrics }: Log, { kind, trustDomain, notAfter, now }: ActiveAuthority): void {
  const labels = { trust_domain_id: trustDomain };
  metrics.set(`${TIME_LEFT[kind]}.expiration`, Math.floor(notAfter.getTime() / 1000), labels);
  metrics.set(`${TIME_LEFT[kind]}.ttl`, (notAfter.getTime() - now.getTime()) / 1000, labels);
}

/** Once for each signature of an authority. */
export function signed({ metrics }: Log, what: "x509_svid" | "x509_ca_svid" | "jwt_svid" | "wit_svid"): void {
  metrics.increment(`server_ca.sign.${what}`);
}

/** The directory is as the database is. No event is ever skipped, which SPIRE's gauges count. */
export function directoryFollowed(
  { metrics }: Log,
  held: { readonly entries: number; readonly nodes: number; readonly quarantined: number },
): void {
  metrics.set("entry.entries_by_entryid_cache.count", held.entries);
  metrics.set("entry.skipped_entry_event_ids.count", 0);
  metrics.set("node.agents_by_id_cache.count", held.nodes);
  metrics.set("node.skipped_node_event_ids.count", 0);
  metrics.set("node.quarantined_agents.count", held.quarantined);
}

/** Roots that had ended were taken out of the bundle. */
export function bundlePruned({ metrics }: Log): void {
  metrics.increment("ca.manager.bundle.pruned");
}

/** Once for each call, the refused ones too. */
export function callEnded({ metrics }: Log, method: string, { code, ms }: Outcome): void {
  recordCall(metrics, `rpc.${rpcNames(method).metricKey}`, { status: code, ms });
}

/** A call had its turn by the limit of its method, or never will. */
export function rateLimited({ metrics }: Log, method: string, { code, ms }: Outcome): void {
  recordCall(metrics, `rateLimit.${rpcNames(method).metricKey}`, { status: code, ms });
}

export function agentAttested(
  log: Log,
  agent: { readonly id: SpiffeId; readonly attestor: string; readonly address: string | undefined },
): void {
  log.info("Agent attestation request completed", {
    address: agent.address,
    agent_id: agent.id,
    node_attestor_type: agent.attestor,
  });
}

export function agentRenewing(log: Log): void {
  log.info("Renewing agent SVID");
}

/** A serial that a renewal replaced was shown again: two hold one agent's identity, or a machine was set back. */
export function agentSvidReused(
  log: Log,
  use: {
    readonly id: SpiffeId;
    readonly serialNumber: string;
    readonly current: string;
    readonly quarantined: boolean;
  },
): void {
  const message = "A replaced agent SVID was used again: it was copied, or restored from a backup";
  const fields = { agent_id: use.id, serial_num: use.serialNumber, current_serial_num: use.current };
  log.error(use.quarantined ? `${message}. The agent is quarantined` : message, fields);
  log.metrics.increment("node.replaced_svid_used");
}

export function agentDeleted(log: Log, id: SpiffeId): void {
  log.info("Agent deleted", { spiffe_id: id });
}

export function agentBanned(log: Log, id: SpiffeId): void {
  log.info("Agent banned", { spiffe_id: id });
}

export function agentQuarantined(log: Log, { id, reason }: { readonly id: SpiffeId; readonly reason: string }): void {
  log.warn("Agent quarantined", { spiffe_id: id, reason });
}

export function agentReleased(log: Log, id: SpiffeId): void {
  log.info("Agent released from quarantine", { spiffe_id: id });
}

export function agentStatusPosted(log: Log, id: SpiffeId, version: string): void {
  log.debug("Agent status updated", { spiffe_id: id, agent_version: version });
}

const DENIALS = {
  expired: "Agent SVID is expired",
  not_attested: "Agent is not attested",
  banned: "Agent is banned",
  not_active: "Agent SVID is not active",
  quarantined: "Agent is quarantined",
} as const;

export function agentDenied(log: Log, reason: keyof typeof DENIALS): void {
  log.error(DENIALS[reason]);
}

export function callerDenied(log: Log, error: Error): void {
  log.error("Failed to authenticate caller", { error });
}

export interface SignedSvid {
  readonly id: SpiffeId;
  readonly serialNumber: string;
  readonly notAfter: Date;
  /** Why the life is shorter than asked for. */
  readonly ttlReason?: string;
}

export function entrySvidSigned(
  log: Log,
  svid: SignedSvid,
  entry: { readonly id: string; readonly revisionNumber: number },
): void {
  log.debug("Signed X509 SVID", { entry_id: entry.id, revision_number: entry.revisionNumber, ...svidFields(svid) });
}

export function svidMinted(log: Log, svid: SignedSvid, dnsNames: readonly string[]): void {
  log.debug("Signed X509 SVID", { ...svidFields(svid), dns_name: dnsNames.join(",") });
}

export interface SignedToken {
  readonly id: SpiffeId;
  readonly expiresAt: Date;
  /** Why the life is shorter than asked for. */
  readonly ttlReason?: string;
}

export function jwtSvidSigned(log: Log, svid: SignedToken, audience: readonly string[]): void {
  log.debug("Server CA successfully signed JWT SVID", { ...signedToken(svid), audience });
}

export function witSvidSigned(log: Log, svid: SignedToken): void {
  log.debug("Server CA successfully signed WIT-SVID", signedToken(svid));
}

export function downstreamSigned(log: Log, ca: SignedSvid): void {
  log.debug("Signed X509 CA SVID", svidFields(ca));
}

function signedToken({ id, expiresAt, ttlReason }: SignedToken): LogFields {
  return { spiffe_id: id, ...endFields(expiresAt, ttlReason) };
}

function svidFields({ id, serialNumber, notAfter, ttlReason }: SignedSvid): LogFields {
  return { spiffe_id: id, serial_num: serialNumber, ...endFields(notAfter, ttlReason) };
}

function endFields(end: Date, ttlReason: string | undefined): LogFields {
  const expiration = end.toISOString().replace(/\.\d+Z$/, "Z");
  return ttlReason === undefined ? { expiration } : { expiration, ttl_reason: ttlReason };
}

/** One record of what a caller did, for `audit_log_enabled`: of a call, or of each item of a batch. */
export function apiAccessed(
  log: Log,
  status: { readonly code: number; readonly message: string } | undefined,
  fields: LogFields = {},
): void {
  const outcome =
    status === undefined
      ? { status: "success" }
      : {
          status: "error",
          status_code: { number: status.code, name: codeNameOf(status.code) },
          status_message: status.message,
        };
  log.info("API accessed", { type: "audit", ...outcome, ...fields });
}

export function healthCheckFailed(log: Log, reason: string): void {
  log.warn("Health check failed", { reason });
}

export function federatedBundleCreated(log: Log): void {
  log.debug("Federated bundle created");
}

export function federatedBundleUpdated(log: Log): void {
  log.debug("Federated bundle updated");
}

export function federatedBundleSet(log: Log): void {
  log.info("Bundle set successfully");
}

export function relationshipCreated(log: Log): void {
  log.debug("Federation relationship created");
}

export function relationshipUpdated(log: Log): void {
  log.debug("Federation relationship updated");
}

export function relationshipDeleted(log: Log): void {
  log.debug("Federation relationship deleted");
}

export function endpointBundleMissing(log: Log, endpoint: SpiffeId): void {
  log.warn("bundle not found for the endpoint SPIFFE ID trust domain", { endpoint_spiffe_id: endpoint });
}

export function bundleRefreshed(log: Log): void {
  log.debug("Bundle refreshed");
}

interface Endpoint {
  readonly trustDomain: TrustDomain;
  readonly bundleEndpointUrl: string;
  readonly profile: { readonly type: string; readonly endpointSpiffeId?: SpiffeId };
}

function endpointFields({ trustDomain, bundleEndpointUrl, profile }: Endpoint): LogFields {
  return {
    trust_domain: trustDomain,
    bundle_endpoint_url: bundleEndpointUrl,
    bundle_endpoint_profile: profile.type,
    endpoint_spiffe_id: profile.endpointSpiffeId,
  };
}

export function trustDomainManaged(log: Log, endpoint: Endpoint): void {
  log.info("Trust domain is now managed", endpointFields(endpoint));
}

export function trustDomainUpdated(log: Log, endpoint: Endpoint): void {
  log.info("Updated configuration for managed trust domain", endpointFields(endpoint));
}

export function trustDomainNotManaged(log: Log, trustDomain: TrustDomain): void {
  log.info("Trust domain no longer managed", { trust_domain: trustDomain });
}

export function relationshipsUnknown(log: Log, error: Error): void {
  log.error("Failed to reload configs", { error });
}

const FETCHED = {
  new: { level: "info", message: "Bundle refreshed" },
  same: { level: "debug", message: "Bundle is unchanged" },
  older: { level: "warn", message: "Bundle endpoint answers with an older bundle than the one held, which stays" },
  rewritten: { level: "warn", message: "Bundle endpoint changed a bundle without a new sequence number" },
} as const;

/** Runs the fetch, and counts and times it. */
export function fetchingBundle<T>(
  { log, clock }: { readonly log: Log; readonly clock: Clock },
  trustDomain: TrustDomain,
  work: () => Promise<T>,
): Promise<T> {
  const meter = { metrics: log.metrics, clock };
  return counted(meter, "bundle_manager.fetch.federated_bundle", work, { trust_domain_id: trustDomain });
}

/** Every fetch that succeeded. SPIFFE Federation, section 7.6. */
export function bundleFetched(
  log: Log,
  endpoint: Endpoint,
  fetched: { readonly outcome: keyof typeof FETCHED; readonly sequenceNumber: bigint },
): void {
  const { level, message } = FETCHED[fetched.outcome];
  log[level](message, { ...endpointFields(endpoint), sequence_number: fetched.sequenceNumber });
  if (fetched.outcome === "same" || fetched.outcome === "older") return;
  log.metrics.increment("bundle_manager.update.federated_bundle", { trust_domain_id: endpoint.trustDomain });
}

export function bundleUpdateFailed(log: Log, endpoint: Endpoint, error: Error): void {
  log.error("Error updating bundle", { ...endpointFields(endpoint), error });
}

export function bundleKeySkipped(log: Log, trustDomain: TrustDomain, reason: string): void {
  log.warn("Part of a fetched bundle is of no use", { trust_domain: trustDomain, reason });
}

/** Once the bundle endpoint accepts connections. */
export function bundleEndpointServing(log: Log, address: string): void {
  log.info("Serving bundle endpoint", { addr: address });
}
