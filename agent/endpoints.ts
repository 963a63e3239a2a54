import { readFileSync } from "node:fs";
import type { Certificate } from "../src/crypto/certificate.ts";
import { RpcServer } from "../src/rpc/serve.ts";
import type { Clock } from "../src/runtime/clock.ts";
import type { Log, LogHandle } from "../src/runtime/log.ts";
import type { Task } from "../src/runtime/task.ts";
import type { SpiffeId } from "../src/spiffe/id.ts";
import type { AgentView } from "./api/admin.ts";
import { CallRates } from "./api/rate-limit.ts";
import { adminServices, type LocalServices, type WorkloadServicesOptions, workloadServices } from "./api/routes.ts";
import { type BrokerEndpointOptions, openBroker } from "./broker-endpoint.ts";
import type { IdentityCache } from "./cache/entries.ts";
import type { JwtCache } from "./cache/jwt.ts";
import type { SvidSigner } from "./cache/signer.ts";
import type { Synchronizer } from "./cache/sync.ts";
import type { WitCache } from "./cache/wit.ts";
import { callEvents } from "./call-events.ts";
import type { AgentConfig } from "./config.ts";
import * as events from "./events.ts";
import { type AgentCondition, AgentHealth, workloadApiProbe } from "./health.ts";
import type { Credentials } from "./node/credentials.ts";
import { openWorkloadAttestors } from "./parts.ts";
import { WorkloadAttestor } from "./workload/attest.ts";
import { seesPrograms } from "./workload/process.ts";
import { BrokerProcessReferences, type ClusterReferences, ProcessReferences } from "./workload/references.ts";

/** What is served, and to whom. */
export interface EndpointParts {
  readonly config: AgentConfig;
  readonly log: Log;
  readonly logger: Pick<LogHandle, "level">;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly credentials: Credentials;
  /** Verifies an X.509-SVID against the bundles held at this moment, own and foreign. Throws to refuse it. */
  readonly verify: (chain: readonly Certificate[]) => SpiffeId;
  readonly cache: IdentityCache;
  readonly jwtTokens: JwtCache;
  readonly signer: SvidSigner;
  readonly witTokens: WitCache | undefined;
  readonly synchronizer: Synchronizer;
}

/** Every local process may ask; what it gets depends on who it is. */
const PUBLIC_SOCKET_MODE = 0o777;
const ADMIN_SOCKET_MODE = 0o770;

/**
 * Sockets are there from the start and say that the agent is not ready, so that callers need not guess. Returns what
 * goes on for as long as the agent runs.
 */
export async function openEndpoints(parts: EndpointParts, scope: AsyncDisposableStack): Promise<readonly Task[]> {
  const { config, log, clock, cache, synchronizer } = parts;
  const { attestor, cluster } = openAttestor(parts);
  const isPublic = !(config.disableWorkloadApi && config.disableSdsApi);
  const probe = isPublic ? workloadApiProbe(config.socketPath) : async () => {};
  const pull: WorkloadServicesOptions["pull"] = async (selectors, stop) =>
    cache.entitles(selectors) ? undefined : synchronizer.refresh(stop);
  const logSelectors = config.logSelectors ?? [];
  const local = { ...config, ...parts, attestor, identities: cache, logSelectors, pull, probe };
  if (isPublic) {
    const services = workloadServices({ ...local, rates: openRates(parts) });
    await listen(parts, { ...services, path: config.socketPath, mode: PUBLIC_SOCKET_MODE }, scope);
  }
  const processes = new ProcessReferences(attestor, clock);
  if (config.adminSocketPath !== undefined) {
    const services = adminServices({ ...local, processes, agent: agentView(parts) });
    await listen(parts, { ...services, path: config.adminSocketPath, mode: ADMIN_SOCKET_MODE }, scope);
    events.adminApisStarted(part(log, "endpoints"), config.adminSocketPath);
  }
  const resolvers = { processes: new BrokerProcessReferences(processes, cluster), objects: cluster };
  const health = new AgentHealth({
    ...{ probe, clock, log: part(log, "health") },
    started: () => cache.ready.value,
    condition: () => conditionOf(parts),
  });
  scope.use(health);
  if (config.healthChecks.listenerEnabled) await health.listen(config.healthChecks);
  return [(stop) => health.run(stop), ...openBrokers({ ...local, resolvers }, scope)];
}

function openBrokers(
  options: EndpointParts & Omit<BrokerEndpointOptions, "broker" | "identity" | "maxStreamsPerConnection">,
  scope: AsyncDisposableStack,
): readonly Task[] {
  const { broker, maxStreamsPerConnection } = options.config;
  if (broker === undefined) return [];
  const { credentials, log } = options;
  const rest = { broker, maxStreamsPerConnection, identity: credentials.identity, log: part(log, "broker_api") };
  return [openBroker({ ...options, ...rest }, scope)];
}

interface Attestation {
  readonly attestor: WorkloadAttestor;
  readonly cluster: ClusterReferences | undefined;
}

function openAttestor({ config, log, clock, signal }: EndpointParts): Attestation {
  const { procRoot, dataDir } = config;
  const attestationLog = part(log, "workload_attestor");
  if (!seesPrograms(readFileSync("/proc/self/status", "latin1"))) events.programsHidden(attestationLog);
  const attestors = openWorkloadAttestors(config.workloadAttestors, {
    ...{ clock, procRoot, dataDir, signal, log: attestationLog },
  });
  const cluster = attestors.find(({ references }) => references !== undefined)?.references;
  return { attestor: new WorkloadAttestor({ attestors, clock, procRoot, log: attestationLog }), cluster };
}

function openRates({ config, log, clock }: EndpointParts): CallRates {
  const rates = new CallRates(clock, config.rateLimits);
  for (const [method, limit] of rates.limits) events.rateLimited(part(log, "endpoints"), method, limit);
  return rates;
}

interface Place extends LocalServices {
  readonly path: string;
  readonly mode: number;
}

async function listen(
  { config, log, clock }: EndpointParts,
  { services, admit, ...place }: Place,
  scope: AsyncDisposableStack,
): Promise<void> {
  const { maxStreamsPerConnection } = config;
  const endpoints = part(log, "endpoints");
  const rpc = scope.use(
    new RpcServer({
      ...{ services, log: endpoints, clock, maxStreamsPerConnection },
      ...callEvents(endpoints, admit),
    }),
  );
  await rpc.listenUnix(place);
}

function conditionOf({ credentials, cache, signer, synchronizer }: EndpointParts): AgentCondition {
  return {
    attestedUntil: credentials.identity.value?.leaf.notAfter,
    lastSync: synchronizer.lastSync,
    quarantined: synchronizer.quarantined,
    signingFailsSince: signer.failsSince,
    firstSvidEnds: cache.nextExpiry(),
  };
}

/** Read when asked. */
function agentView({ credentials, cache, jwtTokens, synchronizer }: EndpointParts): AgentView {
  return {
    get chain() {
      return credentials.identity.value?.chain ?? [];
    },
    get bundle() {
      return credentials.bundle.value;
    },
    lastSync: (signal) => synchronizer.confirmed(signal),
    get x509Svids() {
      return cache.svidCount;
    },
    get jwtSvids() {
      return jwtTokens.size;
    },
  };
}

function part(log: Log, name: string): Log {
  return log.child({ subsystem_name: name });
}
