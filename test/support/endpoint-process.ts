/**
 * The agent's public endpoint as a process of its own: the real services, attestor and cache, the latter filled by the
 * test over IPC. Started by `startEndpoint`.
 */
import { readdirSync } from "node:fs";
import { CallRates, LIMITED_METHODS, type RateLimits } from "../../agent/api/rate-limit.ts";
import { adminServices, workloadServices } from "../../agent/api/routes.ts";
import type { SdsSettings } from "../../agent/api/sds.ts";
import { openBroker } from "../../agent/broker-endpoint.ts";
import { IdentityCache } from "../../agent/cache/entries.ts";
import type { CachedEntry } from "../../agent/cache/entry.ts";
import { JwtCache } from "../../agent/cache/jwt.ts";
import type { HeldSvid } from "../../agent/cache/svid.ts";
import type { TrustBundles } from "../../agent/cache/update.ts";
import type { BrokerConfig } from "../../agent/config/broker.ts";
import { workloadApiProbe } from "../../agent/health.ts";
import { WorkloadAttestor } from "../../agent/workload/attest.ts";
import { K8sAttestor, type K8sAttestorConfig } from "../../agent/workload/k8s.ts";
import { type InCluster, KubeApi } from "../../agent/workload/kube-api.ts";
import { BrokerProcessReferences, ProcessReferences } from "../../agent/workload/references.ts";
import { UnixAttestor } from "../../agent/workload/unix.ts";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { privateKeyFromPkcs8 } from "../../src/crypto/key.ts";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { RpcServer } from "../../src/rpc/serve.ts";
import type { TlsIdentity } from "../../src/rpc/tls.ts";
import { type Clock, systemClock as clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { Feed } from "../../src/runtime/feed.ts";
import type { SpiffeId, TrustDomain } from "../../src/spiffe/id.ts";
import { validateX509Svid } from "../../src/spiffe/x509-svid.ts";
import { RecordingLog } from "./recording-log.ts";

export interface EndpointOrders {
  readonly path: string;
  readonly bundles: TrustBundles;
  readonly allowUnauthenticatedVerifiers?: boolean;
  readonly logSelectors?: readonly string[];
  readonly discoverWorkloadPath?: boolean;
  readonly workloadSizeLimit?: number;
  readonly maxStreamsPerConnection?: number;
  readonly maxSvids?: number;
  readonly rateLimits?: Partial<RateLimits>;
  readonly disableWorkloadApi?: boolean;
  readonly disableSdsApi?: boolean;
  readonly sds?: Partial<SdsSettings>;
  /** Serves the Broker API too, with this SVID of the agent. */
  readonly broker?: BrokerConfig & { readonly svid: BrokerSvid };
  /** Waits for a server that never answers before it looks at what brokers may have. */
  readonly serverIsSilent?: boolean;
  /** Attests pods too, as the proc file system at this place shows them. */
  readonly k8s?: Pick<K8sAttestorConfig, "kubelet" | "broker"> & { readonly procRoot: string; readonly api: InCluster };
  /** Serves the admin APIs too, at this path, for these delegates. */
  readonly admin?: { readonly path: string; readonly delegates: readonly SpiffeId[] };
}

interface BrokerSvid {
  readonly chain: readonly Uint8Array[];
  readonly privateKey: Uint8Array;
}

export type EndpointCommand =
  | { readonly do: "renew"; readonly svid: BrokerSvid }
  | { readonly do: "replace"; readonly entries: ReadonlyMap<string, CachedEntry>; readonly bundles: TrustBundles }
  | { readonly do: "accept"; readonly svids: ReadonlyMap<string, HeldSvid> }
  | { readonly do: "look" };

/** What `look` answers. */
export interface EndpointView {
  readonly attestations: number;
  readonly descriptors: number;
  readonly lines: readonly { readonly level: string; readonly message: string; readonly fields: object }[];
}

/** Counts what the real attestor is asked. */
class CountingAttestor extends WorkloadAttestor {
  asked = 0;

  override attest(peer: PeerProcess, signal: AbortSignal, needed?: string) {
    this.asked += 1;
    return super.attest(peer, signal, needed);
  }
}

async function noServer(): Promise<never> {
  throw new Fault("unimplemented", "this endpoint has no server");
}

const UNLIMITED = Object.fromEntries(Object.keys(LIMITED_METHODS).map((key) => [key, 0])) as RateLimits;

function tlsIdentity({ chain, privateKey }: BrokerSvid): TlsIdentity {
  return { chain, privateKey: privateKeyFromPkcs8(Buffer.from(privateKey)) };
}

function k8sAttestor(
  { api, ...config }: NonNullable<EndpointOrders["k8s"]>,
  parts: { readonly clock: Clock; readonly log: RecordingLog; readonly signal: AbortSignal },
): K8sAttestor {
  return new K8sAttestor({
    ...{ maxPollAttempts: 2, pollRetryIntervalMs: 100, disableContainerSelectors: false },
    ...{ enableNamespaceLabels: false, verboseContainerLocatorLogs: false, watches: false },
    ...{ ...config, ...parts, api: new KubeApi(parts.clock, parts.signal, api) },
  });
}

process.once("message", (orders) => void serve(orders as EndpointOrders));

async function serve(orders: EndpointOrders): Promise<void> {
  const { discoverWorkloadPath = false, workloadSizeLimit = 0, maxStreamsPerConnection } = orders;
  const log = new RecordingLog();
  const cache = new IdentityCache({ clock, log, maxSvids: orders.maxSvids ?? 1000, bundles: orders.bundles });
  const { signal } = new AbortController();
  const unix = new UnixAttestor({ discoverWorkloadPath, workloadSizeLimit, clock, signal });
  const k8s = orders.k8s && k8sAttestor(orders.k8s, { clock, log, signal });
  const attestor = new CountingAttestor({ attestors: k8s === undefined ? [unix] : [unix, k8s], clock, log });
  const local = {
    attestor,
    identities: cache,
    jwtTokens: new JwtCache({ upstream: { signJwt: noServer }, clock, log, maxSvids: 10, hitTimeoutMs: 5000, signal }),
    witTokens: undefined,
    allowedForeignJwtClaims: [],
    allowUnauthenticatedVerifiers: orders.allowUnauthenticatedVerifiers ?? false,
    logSelectors: orders.logSelectors ?? [],
    disableWorkloadApi: orders.disableWorkloadApi ?? false,
    disableSdsApi: orders.disableSdsApi ?? false,
    sds: {
      names: { svid: "default", bundle: "ROOTCA", allBundles: "ALL" },
      disableSpiffeCertValidation: false,
      ...orders.sds,
    },
    clock,
    probe: workloadApiProbe(orders.path),
  };
  const listen = async ({ services, admit }: ReturnType<typeof workloadServices>, path: string): Promise<void> => {
    const server = new RpcServer({
      ...{ services, admit, log, clock },
      ...(maxStreamsPerConnection && { maxStreamsPerConnection }),
    });
    await server.listenUnix({ path, mode: 0o777 });
  };
  const rates = new CallRates(clock, { ...UNLIMITED, ...orders.rateLimits });
  await listen(workloadServices({ ...local, rates }), orders.path);
  if (orders.admin !== undefined) {
    const { path, delegates } = orders.admin;
    const agent = { chain: [], bundle: orders.bundles.own, lastSync: async () => undefined, x509Svids: 0, jwtSvids: 0 };
    const processes = new ProcessReferences(attestor, clock);
    const parts = { ...local, processes, authorizedDelegates: delegates, logger: { level: "info" as const }, agent };
    await listen(adminServices(parts), path);
  }
  const identity = new Feed<TlsIdentity | undefined>(orders.broker && tlsIdentity(orders.broker.svid));
  if (orders.broker !== undefined) {
    const broker = orders.broker;
    const authorities = (domain: TrustDomain) => {
      const { own, federated } = cache.bundle.value;
      const bundle = domain === own.trustDomain ? own : federated.get(domain);
      return bundle?.x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
    };
    const verify = (chain: readonly Certificate[]) => validateX509Svid({ chain, authorities, at: clock.now() });
    const processes = new BrokerProcessReferences(new ProcessReferences(attestor, clock), k8s?.references);
    const resolvers = { processes, objects: k8s?.references };
    const pull = (_: unknown, stop: AbortSignal): Promise<void> => clock.sleep(600_000, stop);
    const waiting = orders.serverIsSilent === true ? { pull } : {};
    const options = { ...local, ...waiting, broker, identity, verify, resolvers, maxStreamsPerConnection: 1000, log };
    void openBroker(options, new AsyncDisposableStack())(signal);
  }
  process.on("message", (message) => {
    const command = message as EndpointCommand;
    if (command.do === "renew") identity.set(tlsIdentity(command.svid));
    if (command.do === "replace") cache.replace(command.entries, command.bundles);
    if (command.do === "accept") cache.accept(command.svids);
    const descriptors = readdirSync("/proc/self/fd").length;
    const lines = JSON.parse(JSON.stringify(log.lines)) as EndpointView["lines"];
    process.send?.({ attestations: attestor.asked, descriptors, lines } satisfies EndpointView);
  });
  process.once("disconnect", () => process.exit(0));
  process.send?.("ready");
}
