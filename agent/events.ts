import { counted } from "../src/rpc/counted.ts";
import type { Clock } from "../src/runtime/clock.ts";
import { Fault, messageOf } from "../src/runtime/fault.ts";
import type { Log, LogFields } from "../src/runtime/log.ts";
import type { SpiffeId, TrustDomain } from "../src/spiffe/id.ts";

// One function per event of the agent's life: its log line in SPIRE's words and under SPIRE's field names, its metric
// under SPIRE's key, so that scripts, runbooks and dashboards find what they wait for. None of them throws.

interface EntryName {
  readonly id: string;
  readonly spiffeId: SpiffeId;
}

export function agentStarting(log: Log, fields: { readonly data_dir: string; readonly version: string }): void {
  log.info("Starting agent", fields);
}

interface PublicApis {
  readonly socketPath: string;
  readonly disableWorkloadApi: boolean;
  readonly disableSdsApi: boolean;
}

/** What the agent does, by SPIRE's key of its call counter. */
type Chore =
  | "agent_svid.rotate"
  | "cache_manager.workload.process_tainted_jwt_svids"
  | "cache_manager.workload.process_tainted_x509_svids"
  | "manager.sync.fetch_entries_updates"
  | "manager.sync.fetch_svids_updates"
  | "node.attest"
  | "node.attestor.new_svid"
  | "workload_api.workload_attestation"
  | "workload_api.workload_attestor";

/** Runs the work, and counts and times it. */
export function chore<T>(
  { log, clock, attestor }: { readonly log: Log; readonly clock: Clock; readonly attestor?: string },
  key: Chore,
  work: () => Promise<T>,
): Promise<T> {
  return counted({ metrics: log.metrics, clock }, key, work, attestor === undefined ? undefined : { attestor });
}

export function apisStarted(log: Log, apis: PublicApis): void {
  const names = publicApis(apis);
  if (names !== undefined) log.info(`Starting ${names}`, { address: apis.socketPath, network: "unix" });
}

export function apisStopping(log: Log, apis: PublicApis): void {
  const names = publicApis(apis);
  if (names !== undefined) log.info(`Stopping ${names}`);
}

export function rateLimited(log: Log, method: string, limit: number): void {
  log.info("Workload API/SDS rate limiting enabled", { method, limit });
}

export function adminApisStarted(log: Log, address: string): void {
  log.info("Starting Admin APIs", { address, network: "unix" });
}

export function brokerStarted(log: Log, network: "unix" | "tcp", address: string): void {
  log.info("Starting SPIFFE Broker Endpoint", { address, network });
}

function publicApis({ disableWorkloadApi, disableSdsApi }: PublicApis): string | undefined {
  if (disableWorkloadApi) return disableSdsApi ? undefined : "SDS API";
  return disableSdsApi ? "Workload API" : "Workload and SDS APIs";
}

export function programsHidden(log: Log): void {
  log.warn("Agent has no CAP_SYS_PTRACE; callers of other users that become another program will not be noticed");
}

// Node

export function watchFailed(log: Log, path: string, error: string): void {
  log.warn("Unable to watch Kubernetes objects; they are asked for one by one until it works again", { path, error });
}

export function watchRecovered(log: Log, path: string): void {
  log.info("Watching Kubernetes objects again", { path });
}

export function bundleLoaded(log: Log, trustDomain: SpiffeId | undefined): void {
  if (trustDomain === undefined) log.info("Bundle is not found");
  else log.info("Bundle loaded", { trust_domain_id: trustDomain });
}

export function svidLoaded(log: Log, id: SpiffeId): void {
  log.info("SVID loaded", { spiffe_id: id });
}

export function svidUnusable(log: Log, reason: string, fields?: LogFields): void {
  log.warn(`${reason}. Generating new keypair`, fields);
}

export function attestationStarting(log: Log): void {
  log.info("SVID is not found. Starting node attestation");
}

export function attested(log: Log, id: SpiffeId, reattestable: boolean): void {
  log.info("Node attestation was successful", { spiffe_id: id, reattestable });
}

export function insecureBootstrap(log: Log): void {
  log.warn("Insecure bootstrap enabled; skipping server certificate verification");
}

export function startRetried(
  log: Log,
  what: string,
  { error, delayMs, failures }: { readonly error: unknown; readonly delayMs: number; readonly failures: number },
): void {
  const count = failures === 1 ? {} : { failures };
  log.warn(what, { error: messageOf(error), retry_interval: `${Math.round(delayMs / 100) / 10}s`, ...count });
}

export function keysWillBeLost(log: Log): void {
  log.warn(
    "Node attestation is not reattestable and the 'memory' key manager is in use; if the agent process is restarted, it will be unable to obtain a new SVID and will need to be manually evicted to be able to re-attest.",
  );
}

export function rotated(log: Log, id: SpiffeId, how: "renewed" | "reattested"): void {
  log.info(how === "renewed" ? "Successfully rotated agent SVID" : "Successfully reattested node", { spiffe_id: id });
}

export function rotationFailed(log: Log, reattestable: boolean, error: unknown): void {
  log.error(reattestable ? "Could not reattest agent" : "Could not rotate agent SVID", { error: messageOf(error) });
}

export function agentTainted(log: Log): void {
  log.info("Agent SVID is tainted by a root authority, forcing rotation");
}

export function agentBanned(log: Log, error: Fault): void {
  log.error("Agent is banned: removing SVID and shutting down", { error: error.message });
}

export function agentRefusedAtStart(log: Log, error: Fault): void {
  log.error("Agent needs to re-attest: removing SVID and shutting down", { error: error.message });
}

export function reattesting(log: Log, error: Fault): void {
  log.warn("Agent needs to re-attest; will attempt to re-attest", { error: error.message });
}

export function agentContested(log: Log, error: Fault): void {
  log.warn("The server takes this agent's SVID for replaced, and the agent cannot re-attest; trying to renew it", {
    error: error.message,
  });
}

export function reattestationFailed(log: Log, error: unknown): void {
  log.error("Agent failed re-attestation; removing SVID and shutting down", { error: messageOf(error) });
}

export function stateNotStored(log: Log, what: "SVID" | "bundle", error: unknown): void {
  log.error(`Could not store ${what}`, { error: messageOf(error) });
}

export function statusNotPosted(log: Log, version: string, error: unknown): void {
  log.error("Failed to post agent status", { agent_version: version, error: messageOf(error) });
}

export function clockTooEarly(log: Log, what: string, notBefore: Date): void {
  log.warn(`The clock of this machine is earlier than the start of ${what}`, { not_before: rfc3339(notBefore) });
}

export interface BootstrapProgress {
  readonly mode: "bootstrap" | "rebootstrap";
  /** Since the last success. */
  readonly attempts: number;
  /** Of the attempts that have not succeeded yet. */
  readonly since: Date | undefined;
}

export function bootstrapWent({ metrics }: Log, { mode, attempts, since }: BootstrapProgress): void {
  metrics.set("bootstrapped", since === undefined ? 1 : 0);
  metrics.set("bootstrap_attempts", attempts, { mode });
  metrics.set("bootstrap_seconds", since === undefined ? 0 : Math.floor(since.getTime() / 1000), { mode });
}

// Sync

export interface Synced {
  readonly bundles: number;
  readonly entries: number;
  /** Of the entries: new ones, changed ones; and those that are gone. */
  readonly missing: number;
  readonly stale: number;
  readonly dropped: number;
}

export function synced({ metrics }: Log, { bundles, entries, missing, stale, dropped }: Synced): void {
  metrics.set("sync_bundles_total", bundles);
  metrics.set("sync_entries_total", entries);
  metrics.set("sync_entries_missing", missing);
  metrics.set("sync_entries_stale", stale);
  metrics.set("sync_entries_dropped", dropped);
}

export function syncFailed(log: Log, error: unknown): void {
  log.error("Synchronize failed", { error: messageOf(error) });
}

export function syncRecovered(log: Log, failures: number): void {
  log.info("Synchronize recovered", { failures });
}

export function quarantineChanged(log: Log, quarantined: boolean): void {
  if (quarantined) log.warn("Agent is quarantined by the server: nothing is served until an administrator releases it");
  else log.info("Agent was released from quarantine");
  log.metrics.set("quarantined", quarantined ? 1 : 0);
}

export function pushStarted(log: Log): void {
  log.info("Changes are pushed by the server");
}

export function pushEnded(log: Log, error: unknown): void {
  log.warn("Changes are not pushed by the server any more; asking for them", { error: messageOf(error) });
}

export function pushNotOffered(log: Log): void {
  log.info("The server does not push changes; asking for them");
}

export function federatedBundleMissing(log: Log, trustDomain: TrustDomain): void {
  log.warn("Federated bundle not found", { federated_bundle: trustDomain });
}

export function malformedBundle(log: Log, error: unknown): void {
  log.warn("Received malformed bundle from SPIRE server; are the server and agent versions compatible?", {
    error: messageOf(error),
  });
}

export function malformedEntry(
  log: Log,
  entry: { readonly id: string; readonly revision: string; readonly problem: string },
): void {
  log.warn("Received malformed entry from SPIRE server; are the server and agent versions compatible?", {
    entry_id: entry.id,
    revision_number: entry.revision,
    error: entry.problem,
  });
}

const TAINTED = {
  x509Authorities: { name: "X.509", field: "subject_key_ids" },
  jwtAuthorities: { name: "JWT", field: "jwt_authority_key_ids" },
  witAuthorities: { name: "WIT", field: "wit_authority_key_ids" },
} as const;

export function taintedAuthoritiesFound(log: Log, kind: keyof typeof TAINTED, keyIds: readonly string[]): void {
  const { name, field } = TAINTED[kind];
  log.debug(`New tainted ${name} authorities found`, { [field]: keyIds.join(",") });
}

export function svidsTainted(log: Log, keyIds: ReadonlySet<string>, svids: number): void {
  if (svids === 0) log.debug("No SVID entries to process for tainted X.509 authorities");
  else log.debug("Scheduled rotation for SVID entries due to tainted X.509 authorities", { count: svids });
  log.info("Tainted X.509 SVIDs", { subject_key_ids: [...keyIds].join(","), tainted_x509_svids: svids });
  log.metrics.observe("cache_manager.tainted_x509_svids.workload", svids);
}

// Entries and SVIDs

export function entryCreated(log: Log, entry: EntryName): void {
  log.info("Entry created", { entry: entry.id, spiffe_id: entry.spiffeId });
  log.metrics.increment("lru_cache_entry_add");
}

export function entryUpdated(log: Log, entry: EntryName): void {
  log.info("Entry updated", { entry: entry.id, spiffe_id: entry.spiffeId });
  log.metrics.increment("lru_cache_entry_update");
}

export function entryRemoved(log: Log, entry: EntryName): void {
  log.info("Entry removed", { entry: entry.id, spiffe_id: entry.spiffeId });
  log.metrics.increment("lru_cache_entry_remove");
}

/** What the cache holds after a change. */
export function identitiesHeld({ metrics }: Log, held: { readonly entries: number; readonly svids: number }): void {
  metrics.set("lru_cache_record_map_size", held.entries, { svid_type: "X509" });
  metrics.set("lru_cache_svid_map_size", held.svids, { svid_type: "X509" });
}

export function tokensHeld({ metrics }: Log, tokens: number): void {
  metrics.set("jwt_svid_cache_size", tokens);
}

/** What is about to be signed in place of what is held. */
export function svidsDue({ metrics }: Log, due: { readonly expiring: number; readonly outdated: number }): void {
  if (due.expiring > 0) metrics.observe("cache_manager.expiring_svids", due.expiring);
  if (due.outdated > 0) metrics.observe("cache_manager.outdated_svids", due.outdated);
}

/** Selectors of one caller. */
export function selectorsFound({ metrics }: Log, count: number): void {
  metrics.observe("workload_api.discovered_selectors", count);
}

export function duplicateHintIgnored(log: Log, entry: { readonly id: string; readonly hint: string }): void {
  log.warn("Ignoring entry with duplicate hint", { hint: entry.hint, entry_id: entry.id });
}

export function svidRequested(log: Log, entry: EntryName, expiresAt: Date | undefined): void {
  const fields = { entry_id: entry.id, spiffe_id: entry.spiffeId };
  if (expiresAt === undefined) log.info("Creating X509-SVID", fields);
  else log.info("Renewing X509-SVID", { ...fields, expires_at: rfc3339(expiresAt) });
}

export function svidUpdated(log: Log, entry: EntryName): void {
  log.debug("SVID updated", { entry: entry.id, spiffe_id: entry.spiffeId });
}

export function svidEvicted(log: Log, entry: EntryName): void {
  log.debug("Removing SVID record", { record_id: entry.id });
}

export function svidRefused(
  log: Log,
  entryId: string,
  problem: { readonly status: number; readonly error: string },
): void {
  log.warn("Failed to mint X509 SVID", { entry_id: entryId, status: problem.status, error: problem.error });
}

export function signingFailed(log: Log, error: unknown, failures: number): void {
  log.error("SVID sync failed", { error: messageOf(error), ...(failures === 1 ? {} : { failures }) });
}

export function targetNotMet(log: Log, entry: EntryName): void {
  log.warn(
    "X509 SVID lifetime isn't long enough to guarantee the availability_target, falling back to the default rotation strategy",
    {
      entry_id: entry.id,
      spiffe_id: entry.spiffeId,
    },
  );
}

export function jwtSvidNotRenewed(log: Log, id: SpiffeId, error: unknown): void {
  log.warn("Unable to renew JWT; returning cached copy", { spiffe_id: id, error: messageOf(error) });
}

export function jwtSvidsDropped(log: Log, keyId: string, count: number): void {
  log.info("JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority", {
    jwt_authority_key_ids: keyId,
    tainted_jwt_svids: count,
  });
  log.metrics.observe("cache_manager.tainted_jwt_svids.workload", count);
}

/** To the second, as SPIRE writes times. */
export function rfc3339(time: Date): string {
  return `${time.toISOString().slice(0, 19)}Z`;
}

export function rebootstrapping(log: Log): void {
  log.warn("Trust Bundle and Server don't agree, rebootstrapping");
}

export function bundlesFollowed(log: Log, from: bigint, to: bigint): void {
  log.warn("Trust Bundle was out of date; its authorities vouch for the present one", {
    sequence_number: from,
    new_sequence_number: to,
  });
}

export function bundlesNotFollowed(log: Log, error: unknown): void {
  log.warn("Trust Bundle and Server don't agree, and no authority of the bundle vouches for the server's", {
    error: messageOf(error),
  });
}

export function rebootstrapFailed(log: Log, error: unknown): void {
  log.error("Rebootstrapping failed", { error: Fault.from(error) });
}
