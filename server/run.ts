import { parseCertificate } from "../src/crypto/certificate.ts";
import { generateKey } from "../src/crypto/key.ts";
import { RpcServer } from "../src/rpc/serve.ts";
import { Telemetry } from "../src/rpc/telemetry.ts";
import type { Clock } from "../src/runtime/clock.ts";
import { lockDirectory } from "../src/runtime/directory-lock.ts";
import { Fault } from "../src/runtime/fault.ts";
import { ensurePrivateDirectory } from "../src/runtime/files.ts";
import type { Log, LogHandle } from "../src/runtime/log.ts";
import { followerOf, supervise, type Task } from "../src/runtime/task.ts";
import { type SpiffeId, spiffeId, type TrustDomain, trustDomainOf } from "../src/spiffe/id.ts";
import { Admission, type Authorization } from "./api/admission.ts";
import { AgentGate } from "./api/agent-gate.ts";
import { Peers } from "./api/peers.ts";
import { type ServedService, type ServiceParts, servedServices } from "./api/routes.ts";
import { NodeAttestation } from "./attest/attest.ts";
import { ServerIdentity } from "./ca/server-identity.ts";
import { openSigning, type Signing } from "./ca/signing.ts";
import type { ServerConfig } from "./config.ts";
import { isBanned } from "./directory/agents.ts";
import { Directory } from "./directory/authorized.ts";
import { Follower } from "./directory/follow.ts";
import * as events from "./events.ts";
import { serveBundleEndpoint } from "./federation/endpoint.ts";
import { BundlePoller } from "./federation/poll.ts";
import { type HealthCheck, serveHealth } from "./health.ts";
import { runJanitor } from "./janitor.ts";
import { measuredKeys, measuredStore } from "./measured.ts";
import { openKeyManager, openNodeAttestors, openUpstreamAuthority } from "./parts.ts";
import { openStore } from "./store/database.ts";
import type { Store } from "./store/store.ts";

export interface RunServerOptions {
  readonly config: ServerConfig;
  readonly log: Log;
  /** Whose level the Logger service changes: the owner of `log`. */
  readonly logger: Pick<LogHandle, "level">;
  readonly clock: Clock;
  readonly version: string;
  /** Ends the server in an orderly way. */
  readonly signal: AbortSignal;
}

/** No certificate has it, and it is not the empty one of a ban. */
const NO_SERIAL = "0";
/** Permission bits of the admin socket: whoever may open it is an administrator. */
const ADMIN_SOCKET_MODE = 0o770;

/** Runs a server until the signal. Opened from top to bottom; disposal closes in the opposite order. */
export async function runServer(given: RunServerOptions): Promise<void> {
  const telemetry = openTelemetry(given);
  const options = { ...given, log: given.log.measured(telemetry.metrics) };
  const { config, clock, log, signal } = options;
  announce(options);
  await using scope = new AsyncDisposableStack();
  await openDataDirectory(config, scope);
  const opened = scope.use(await openStore(config.dataStore, { log: part(log, "datastore"), clock, signal }));
  const store = measuredStore(opened, { metrics: log.metrics, clock });
  await checkTrustDomain(config.trustDomain, store);
  const state = await openState(options, store, scope);
  const servers = openServers(options, state, await serviceParts(options, store, state));
  // Disposed of first: no call outlives what it stands on.
  scope.use(servers.admin);
  scope.use(servers.tcp);
  await listen(options, servers, state);
  const reporting = await telemetry.serve(
    { identity: state.identity.identity, verify: (chain) => servers.peers.validate(chain) },
    scope,
  );
  if (config.healthChecks.listenerEnabled) {
    const checks = await healthChecks(config, store, state);
    scope.use(await serveHealth({ ...config.healthChecks, checks, clock, log: part(log, "health") }));
  }
  const { follower, signing, identity } = state;
  const janitor = {
    store,
    trustDomain: config.trustDomain,
    nodes: config.pruneAttestedNodes,
    clock,
    log: part(log, "janitor"),
  };
  const tasks: Task[] = [
    (stop) => follower.run(stop),
    ...signing.tasks,
    (stop) => identity.run(stop),
    (stop) => state.poller.run(stop),
    ...(await serveBundle(options, state, scope)),
    (stop) => runJanitor(janitor, stop),
    ...reporting,
  ];
  await supervise(tasks, followerOf(signal));
  events.serverApisStopping(part(log, "endpoints"));
}

function openTelemetry({ config, version, clock, log }: RunServerOptions): Telemetry {
  const { telemetry: settings, trustDomain } = config;
  return new Telemetry({ settings, program: "spire_server", version, trustDomain, clock, log: part(log, "telemetry") });
}

function part(log: Log, name: string): Log {
  return log.child({ subsystem_name: name });
}

function announce({ config, log, version }: RunServerOptions): void {
  for (const warning of config.warnings) log.warn(warning);
  if (config.dataStore.kind === "embedded" && config.dataStore.notice !== undefined) log.info(config.dataStore.notice);
  events.configured(log, { adminIds: config.adminIds, dataDir: config.dataDir, logLevel: config.log.level, version });
}

/** Two servers never share a folder that holds keys or a database: the second is told the first's pid. */
async function openDataDirectory(
  { dataDir, dataStore, keyManager }: ServerConfig,
  scope: AsyncDisposableStack,
): Promise<void> {
  await ensurePrivateDirectory(dataDir);
  if (dataStore.kind === "embedded" || keyManager.type === "disk") scope.use(await lockDirectory(dataDir));
}

/** One look at the oldest entry tells a database that another trust domain has filled. */
async function checkTrustDomain(trustDomain: TrustDomain, store: Store): Promise<void> {
  const { items } = await store.entries.list({}, { size: 1, token: "" });
  const found = items[0] === undefined ? trustDomain : trustDomainOf(items[0].spiffeId);
  if (found === trustDomain) return;
  throw new Fault(
    "precondition",
    `a registration entry with trust domain '${found}' has been detected, which does not match the configured trust domain of '${trustDomain}'`,
    {
      code: "trust-domain-mismatch",
      hint: "to change the trust domain delete all registration entries first, or use another datastore",
    },
  );
}

interface State {
  readonly directory: Directory;
  readonly follower: Follower;
  readonly signing: Signing;
  readonly identity: ServerIdentity;
  readonly poller: BundlePoller;
}

/** What the calls stand on: the directory as it is in the database, an authority that may sign, an SVID of our own. */
async function openState(
  { config, log, clock, signal }: RunServerOptions,
  store: Store,
  scope: AsyncDisposableStack,
): Promise<State> {
  const { trustDomain, caKeyType } = config;
  const manager = scope.use(await openKeyManager(config.keyManager, { log: part(log, "key_manager"), clock }));
  const keys = measuredKeys(manager, { metrics: log.metrics, clock });
  const directory = new Directory({ trustDomain, clock });
  const follower = new Follower({ changes: store.changes, directory, clock, log: part(log, "directory") });
  await follower.load(signal);
  const upstreamParts = { trustDomain, clock, log: part(log, "upstream_authority"), signal };
  const upstream = await openUpstreamAuthority(config.upstreamAuthority, upstreamParts);
  if (upstream !== undefined) scope.use(upstream);
  const signing = await openSigning({
    ...{ upstream, signal },
    ...{ config, keys, store, clock, log: part(log, "ca_manager") },
    counts: (holder, entryId) => isServed(directory, holder, entryId),
    async replaced() {
      await follower.caughtUp();
      return follower.replaced;
    },
  });
  const identity = await ServerIdentity.open({
    issuer: signing.issuer,
    authorities: signing.authorities.x509,
    keyType: caKeyType,
    clock,
    log: part(log, "svid_rotator"),
  });
  await follower.caughtUp();
  const poller = new BundlePoller({
    ...{ federation: store.federation, bundles: store.bundles, directory, clock, log: part(log, "bundle_client") },
    relationships: config.federation.relationships,
  });
  return { directory, follower, signing, identity, poller };
}

/** What was signed for agents and entries that are gone can't be replaced any more, and nobody waits for it. */
function isServed(directory: Directory, holder: SpiffeId, entryId: string | undefined): boolean {
  if (entryId !== undefined) return directory.authorizedEntry(holder, entryId) !== undefined;
  const node = directory.node(holder);
  return node === undefined ? directory.isDownstream(holder) : !isBanned(node);
}

interface Servers {
  readonly admin: RpcServer<Authorization>;
  readonly tcp: RpcServer<Authorization>;
  readonly peers: Peers;
}

function openServers({ config, log, clock }: RunServerOptions, state: State, parts: ServiceParts): Servers {
  const { trustDomain, adminIds, rateLimit, auditLogEnabled } = config;
  const { directory } = state;
  const apiLog = part(log, "api");
  const peers = new Peers({ directory, trustDomain, adminIds, clock, log: part(log, "endpoints") });
  const services = servedServices(parts);
  const gate = new AgentGate({
    ...{ directory, nodes: parts.nodes, usage: state.signing.usage, clock },
    caughtUp: () => state.follower.caughtUp(),
  });
  const routes = new Map([...services.everywhere, ...services.local].flatMap(({ routes }) => [...routes]));
  const admission = new Admission({ routes, directory, adminIds, gate, peers, rateLimit, auditLogEnabled, clock });
  const serve = (served: readonly ServedService[]): RpcServer<Authorization> =>
    new RpcServer({
      services: served.map(({ implementation }) => implementation),
      admit: (call) => admission.admit(call),
      observe: (call, outcome) => {
        events.callEnded(apiLog, call.method, outcome);
        admission.ended(call, outcome);
      },
      log: apiLog,
      clock,
    });
  return { admin: serve([...services.everywhere, ...services.local]), tcp: serve(services.everywhere), peers };
}

/** Reads the files that node attestors judge by, and throws where they would keep a server from starting. */
export async function checkNodeAttestors({
  config: { nodeAttestors, trustDomain },
  ...parts
}: Pick<RunServerOptions, "config" | "log" | "clock">): Promise<void> {
  const tokens = { consume: async () => undefined };
  await openNodeAttestors(nodeAttestors, { trustDomain, tokens, ...parts, ownAuthorities: () => [] });
}

async function serviceParts(
  { config, clock, log, logger, signal: closing }: RunServerOptions,
  store: Store,
  state: State,
): Promise<ServiceParts> {
  const { trustDomain } = config;
  const { nodes, entries, tokens, bundles, federation } = store;
  const { directory, signing, follower } = state;
  const attestors = await openNodeAttestors(config.nodeAttestors, {
    ...{ trustDomain, tokens, clock, log: part(log, "node_attestor") },
    ownAuthorities: () => (directory.ownBundle.value?.x509Authorities ?? []).map(({ asn1 }) => parseCertificate(asn1)),
  });
  const attestation = new NodeAttestation({
    ...{ trustDomain, attestors, node: (id) => directory.node(id) },
    // Not by deletion, which would lift a ban that another server has just laid on it.
    async withdraw(node) {
      await nodes.attest({ ...node, selectors: [], serialNumber: NO_SERIAL, expiresAt: clock.now() });
      await follower.caughtUp();
    },
  });
  const seams = {
    caughtUp: visible(follower),
    lookAgain: () => follower.caughtUp().catch(() => undefined),
    checkReady: () => checkReady(state),
    refreshBundle: (name: TrustDomain, stop: AbortSignal) => state.poller.refresh(name, stop),
    relationshipsChanged: () => state.poller.reload(),
    serverSvid: () => state.identity.svid,
  };
  const stores = { nodes, entries, tokens, bundles, federation };
  return { trustDomain, ...stores, ...signing, directory, attestation, clock, logger, closing, ...seams };
}

/** Own writes are visible on this server when a call returns. What was stored stays stored when that cannot be seen to. */
function visible(follower: Follower): (log: Log) => Promise<void> {
  return async (log) => {
    try {
      await follower.caughtUp();
    } catch (error) {
      log.warn("The change is stored, and not in the directory yet", { error: Fault.from(error) });
    }
  };
}

/** The tasks of the bundle endpoint: none when the bundle is not served. */
async function serveBundle(
  { config, clock, log }: RunServerOptions,
  { directory, identity }: State,
  scope: AsyncDisposableStack,
): Promise<readonly Task[]> {
  const { endpoint } = config.federation;
  if (endpoint === undefined) return [];
  const bundle = () => directory.ownBundle.value;
  const own = { bundle, identity: identity.identity, clock, log: part(log, "bundle_endpoint") };
  const { run } = scope.use(await serveBundleEndpoint({ ...endpoint, ...own }));
  return [run];
}

function checkReady({ directory, signing }: State): void {
  signing.authorities.x509.signing();
  if (directory.ownBundle.value === undefined) throw new Fault("unavailable", "bundle is missing");
}

async function listen(
  { config, log }: RunServerOptions,
  { admin, tcp, peers }: Servers,
  { identity }: State,
): Promise<void> {
  const { bindAddress, bindPort, socketPath, trustedProxies } = config;
  const endpoints = part(log, "endpoints");
  const bound = await tcp.listenTls({
    address: bindAddress,
    port: bindPort,
    identity: identity.identity,
    verifyPeer: (chain) => peers.verify(chain),
    trustedProxies,
  });
  if (trustedProxies.length > 0) events.proxiesTrusted(endpoints, trustedProxies);
  events.serverApisStarting(endpoints, { address: hostPort(bound), network: "tcp" });
  // Sidecars call from containers of their own.
  await admin.listenUnix({ path: socketPath, mode: ADMIN_SOCKET_MODE }, { unseen: true });
  events.serverApisStarting(endpoints, { address: socketPath, network: "unix" });
}

function hostPort({ address, port }: { readonly address: string; readonly port: number }): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

/** SPIRE's subsystems. A database that is away is reported and leaves the server ready: it goes on issuing. */
async function healthChecks(
  { trustDomain }: ServerConfig,
  store: Store,
  state: State,
): Promise<readonly HealthCheck[]> {
  const { publicKey } = await generateKey("ec-p256");
  const probe = {
    id: spiffeId(trustDomain, "/for/health/check/only"),
    publicKey,
    ttlSeconds: 60,
    dnsNames: [],
    subject: {},
  };
  return [
    { name: "server", field: "get_bundle_err", essential: true, check: async () => checkReady(state) },
    {
      name: "server.ca",
      field: "sign_x509_svid_err",
      essential: true,
      check: async () => void (await state.signing.issuer.mint(probe)),
    },
    { name: "catalog.datastore", field: "list_bundle_err", essential: false, check: () => store.ping() },
  ];
}
