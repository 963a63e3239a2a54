import { type Certificate, parseCertificate } from "../src/crypto/certificate.ts";
import type { ExportingKeyManager } from "../src/keys/keys.ts";
import { measured } from "../src/rpc/counted.ts";
import { denialReason, retryAfterOf } from "../src/rpc/status.ts";
import { Telemetry } from "../src/rpc/telemetry.ts";
import type { Clock } from "../src/runtime/clock.ts";
import { lockDirectory } from "../src/runtime/directory-lock.ts";
import { Fault, isFault, messageOf } from "../src/runtime/fault.ts";
import { Feed } from "../src/runtime/feed.ts";
import { ensurePrivateDirectory } from "../src/runtime/files.ts";
import type { Log, LogHandle } from "../src/runtime/log.ts";
import { Repeats } from "../src/runtime/repeats.ts";
import { followerOf, type RetryOptions, retry, supervise } from "../src/runtime/task.ts";
import type { SpiffeId, TrustDomain } from "../src/spiffe/id.ts";
import { validateX509Svid } from "../src/spiffe/x509-svid.ts";
import { IdentityCache } from "./cache/entries.ts";
import { JwtCache } from "./cache/jwt.ts";
import { PushFollower } from "./cache/push.ts";
import { SvidSigner } from "./cache/signer.ts";
import { Synchronizer } from "./cache/sync.ts";
import { WitCache } from "./cache/wit.ts";
import type { AgentConfig } from "./config.ts";
import { openEndpoints } from "./endpoints.ts";
import * as events from "./events.ts";
import { Bootstrap, bundleOf } from "./node/bootstrap.ts";
import type { AgentIdentity, Credentials } from "./node/credentials.ts";
import { NodeIdentity } from "./node/identity.ts";
import { sleepUntilListening } from "./node/listening.ts";
import { ServerTrust } from "./node/server-trust.ts";
import { AgentState } from "./node/state.ts";
import { Upstream } from "./node/upstream.ts";
import { openKeyManager, openNodeAttestor } from "./parts.ts";

export interface RunAgentOptions {
  readonly config: AgentConfig;
  readonly log: Log;
  /** The program's log level. */
  readonly logger: Pick<LogHandle, "level">;
  readonly clock: Clock;
  readonly version: string;
  /** Ends the agent in an orderly way. */
  readonly signal: AbortSignal;
}

/** What fails at the start; after the last attempt the supervisor of the process has a say. */
const START_RETRY = { firstMs: 500, maxMs: 15_000, factor: 2, jitter: 0.5, giveUpAfterMs: 60_000 } as const;
/** As SPIRE, when the agent can find its way back by itself. */
const REBOOTSTRAP_GIVE_UP_MS = 24 * 3_600_000;
/** What no waiting changes. */
const FINAL_CODES: ReadonlySet<string> = new Set([
  "join-token-missing",
  "trust-bundle-missing",
  "bundle-missing",
  "kept-svid-unusable",
  "x509pop-keypair",
  "sshpop-keypair",
  "tpm-devid-files",
  "rebootstrap-impossible",
]);

/** SPIRE's call counters around the key manager. */
const KEY_MANAGER_CALLS = {
  generate: "agent_key_manager.generate_key",
  find: "agent_key_manager.get_key",
  list: "agent_key_manager.get_keys",
} as const satisfies Partial<Record<keyof ExportingKeyManager, string>>;

/** Runs an agent until the signal. Opened from top to bottom; disposal closes in the opposite order. */
export async function runAgent(given: RunAgentOptions): Promise<void> {
  const telemetry = openTelemetry(given);
  const options = { ...given, log: given.log.measured(telemetry.metrics) };
  const { config, log, version, signal } = options;
  for (const warning of config.warnings) log.warn(warning);
  events.agentStarting(log, { data_dir: config.dataDir, version });
  await using scope = new AsyncDisposableStack();
  await ensurePrivateDirectory(config.dataDir);
  scope.use(await lockDirectory(config.dataDir));
  const node = await openNode(options, scope);
  const identities = openIdentities(options, node);
  const verify = svidVerifier(options, node, identities);
  const reporting = await telemetry.serve({ identity: node.credentials.identity, verify }, scope);
  const serving = await openEndpoints({ ...options, ...node, ...identities, verify }, scope);
  const isReady = (stop: AbortSignal): Promise<boolean> => identities.cache.ready.until((ready) => ready, stop);
  await supervise(
    [
      (stop) => start(options, { ...node, ...identities }, stop),
      (stop) => isReady(stop).then(() => node.identity.run(stop)),
      (stop) => isReady(stop).then(() => identities.synchronizer.run(stop)),
      (stop) => isReady(stop).then(() => identities.follower.run(stop)),
      (stop) => identities.signer.run(stop),
      ...serving,
      ...reporting,
    ],
    followerOf(signal),
  );
  events.apisStopping(part(log, "endpoints"), config);
}

function openTelemetry({ config, version, clock, log }: RunAgentOptions): Telemetry {
  const { telemetry: settings, trustDomain } = config;
  return new Telemetry({ settings, program: "spire_agent", version, trustDomain, clock, log: part(log, "telemetry") });
}

/** Verifies against the bundles held at this moment, own and foreign. */
function svidVerifier(
  { config, clock }: RunAgentOptions,
  { credentials }: Node,
  { cache }: Identities,
): (chain: readonly Certificate[]) => SpiffeId {
  const authorities = (domain: TrustDomain): readonly Certificate[] | undefined => {
    const own = domain === config.trustDomain;
    const bundle = own ? credentials.bundle.value : cache.bundle.value.federated.get(domain);
    return bundle?.x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
  };
  return (chain) => validateX509Svid({ chain, authorities, at: clock.now() });
}

function part(log: Log, name: string): Log {
  return log.child({ subsystem_name: name });
}

interface Node {
  readonly identity: NodeIdentity;
  readonly upstream: Upstream;
  readonly credentials: Credentials;
}

async function openNode({ config, log, clock }: RunAgentOptions, scope: AsyncDisposableStack): Promise<Node> {
  const { trustDomain, serverAddress: address, serverPort: port, trustBundle, availabilityTargetMs } = config;
  const manager = scope.use(await openKeyManager(config.keyManager, part(log, "key_manager")));
  const keys = measured(manager, KEY_MANAGER_CALLS, { metrics: log.metrics, clock });
  const state = await AgentState.load(config.dataDir);
  const credentials: Credentials = {
    identity: new Feed<AgentIdentity | undefined>(undefined),
    bundle: new Feed(bundleOf(trustDomain, [])),
  };
  const attestorLog = part(log, "attestor");
  const serverTrust = new ServerTrust(clock);
  const server = { trustDomain, address, port, serverTrust };
  const upstream = scope.use(new Upstream({ ...server, credentials, clock, log: attestorLog }));
  const identity = new NodeIdentity({
    bootstrap: new Bootstrap({
      ...{ source: trustBundle, trustDomain, clock, serverAddress: address, serverPort: port, log: attestorLog },
    }),
    ...{ trustDomain, attestor: openNodeAttestor({ config, clock }), keys, state },
    ...{ rebootstrap: config.rebootstrap, serverTrust },
    ...{ upstream, credentials, availabilityTargetMs, clock, log: attestorLog },
  });
  return { identity, upstream, credentials };
}

interface Identities {
  readonly cache: IdentityCache;
  readonly jwtTokens: JwtCache;
  /** Undefined while WIT-SVIDs are switched off. */
  readonly witTokens: WitCache | undefined;
  readonly signer: SvidSigner;
  readonly synchronizer: Synchronizer;
  readonly follower: PushFollower;
}

function openIdentities(
  { config, log, clock, signal }: RunAgentOptions,
  { identity, upstream, credentials }: Node,
): Identities {
  const { workloadX509SvidKeyType: keyType, availabilityTargetMs, x509SvidCacheMaxSize: maxSvids } = config;
  const manager = part(log, "manager");
  const bundles = { own: credentials.bundle.value, federated: new Map() };
  const cache = new IdentityCache({ clock, log: part(log, "cache_manager"), maxSvids, bundles });
  const signer = new SvidSigner({ cache, upstream, keyType, availabilityTargetMs, clock, log: manager });
  const { syncIntervalMs: intervalMs, jwtSvidCacheMaxSize, jwtSvidCacheHitTimeoutMs: hitTimeoutMs } = config;
  const tokenOptions = { upstream, clock, log: manager, maxSvids: jwtSvidCacheMaxSize, hitTimeoutMs, signal };
  const jwtTokens = new JwtCache(tokenOptions);
  const witTokens = config.witSvids ? new WitCache({ ...tokenOptions, keyType }) : undefined;
  const tokens = { jwtAuthorities: jwtTokens, witAuthorities: witTokens };
  const sync = { cache, tokens, upstream, trust: identity, intervalMs, clock, log: manager };
  const synchronizer = new Synchronizer(sync);
  const follower = new PushFollower({ synchronizer, upstream, clock, log: manager });
  return { cache, jwtTokens, witTokens, signer, synchronizer, follower };
}

/** Everything up to the moment at which workloads can be served. */
async function start(options: RunAgentOptions, parts: Node & Identities, signal: AbortSignal): Promise<void> {
  const { config, log, clock } = options;
  const { identity, credentials } = parts;
  const { serverAddress: address, serverPort: port } = config;
  const repeats = new Repeats(clock);
  const retrying = (what: string, retryable: (error: unknown) => boolean): RetryOptions => ({
    ...START_RETRY,
    ...(config.rebootstrap.mode === "never" ? {} : { giveUpAfterMs: REBOOTSTRAP_GIVE_UP_MS }),
    retryable,
    onRetry: (error, delayMs) => {
      const failures = repeats.worthSaying(messageOf(error));
      if (failures !== undefined) events.startRetried(log, what, { error, delayMs, failures });
    },
    wait: (error, delayMs, stop) =>
      sleepUntilListening({ clock, address, port, ms: Math.max(delayMs, retryAfterOf(error)) }, stop),
  });
  const open = retrying("Failed to retrieve attestation result", (error) => !isFinal(error));
  await retry(clock, open, (stop) => identity.open(stop), signal);
  if (config.keyManager.type === "memory" && credentials.identity.value?.reattestable === false)
    events.keysWillBeLost(log);
  const initialize = retrying("Failed to initialize manager", (error) => denialReason(Fault.from(error)) === undefined);
  try {
    await retry(clock, initialize, (stop) => healingSync(options, parts, stop), signal);
  } catch (error) {
    signal.throwIfAborted();
    await identity.refusedAtStart(Fault.from(error));
    throw error;
  }
  events.apisStarted(part(log, "endpoints"), config);
}

/** A refusal that a new attestation answers does not end the agent, as one that it cannot answer does. */
async function healingSync(options: RunAgentOptions, parts: Node & Identities, signal: AbortSignal): Promise<void> {
  try {
    await firstSync(options, parts, signal);
  } catch (error) {
    signal.throwIfAborted();
    if (!(await parts.identity.healAtStart(error, signal))) throw error;
    await firstSync(options, parts, signal);
  }
}

/** A server that does not know the call, or fails it, is no reason not to start. One that is away fails the sync, too. */
async function firstSync(
  { log, version }: RunAgentOptions,
  parts: Node & Identities,
  signal: AbortSignal,
): Promise<void> {
  const posted = await parts.upstream.postStatus(version, signal).then(
    () => true,
    (error: unknown) => error,
  );
  signal.throwIfAborted();
  await parts.synchronizer.sync(signal);
  if (posted !== true) events.statusNotPosted(log, version, posted);
}

function isFinal(error: unknown): boolean {
  return isFault(error, "denied") || (error instanceof Fault && FINAL_CODES.has(error.code));
}
