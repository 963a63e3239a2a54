import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { encodePem } from "../../src/crypto/pem.ts";
import { dialUnix } from "../../src/rpc/dial.ts";
import {
  AgentDebugApi,
  AgentLoggerApi,
  BrokerApi,
  DelegatedIdentityApi,
  SecretDiscoveryApi,
  WorkloadApi,
} from "../../src/rpc/protos.ts";
import { OWN_SELECTOR, restartAgent, startAgent, type TestAgent } from "../support/agent.ts";
import { BROKER_HEADER, dialBroker, pidReference } from "../support/broker.ts";
import { collect } from "../support/collect.ts";
import { eventually } from "../support/eventually.ts";
import { scrapeMetrics } from "../support/metrics.ts";
import { createCa } from "../support/pki.ts";
import { SECURITY_HEADER } from "../support/raw-client.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { freePort } from "../support/server-process.ts";
import { temporaryDirectory } from "../support/workload.ts";

type Kind = "call" | "counter" | "gauge" | "sample";

/** A family of SPIRE's agent: its key, what it is, and the labels of one series. */
interface Row {
  readonly key: string;
  readonly kind: Kind;
  readonly labels?: Readonly<Record<string, string>>;
}

const call = (key: string, labels = {}): Row => ({ key, kind: "call", labels: { ...labels, status: "OK" } });
const counter = (key: string, labels = {}): Row => ({ key, kind: "counter", labels });
const gauge = (key: string, labels = {}): Row => ({ key, kind: "gauge", labels });
const sample = (key: string, labels = {}): Row => ({ key, kind: "sample", labels });
const open = (api: string): readonly Row[] => [counter(`${api}.connection`), gauge(`${api}.connections`)];

/** What SPIRE's agent tells, as far as there is something like it here. The README says what there is not, and why. */
const rows: readonly Row[] = [
  call("rpc.workload_api.fetch_x509svid"),
  call("rpc.workload_api.fetch_x509_bundles"),
  call("rpc.workload_api.fetch_jwtsvid"),
  call("rpc.workload_api.fetch_jwt_bundles"),
  call("rpc.workload_api.validate_jwtsvid"),
  call("rpc.sds.v3.fetch_secrets"),
  call("rpc.debug.get_info"),
  call("rpc.logger.get_logger"),
  call("rpc.delegated_identity.subscribe_to_x509_svids"),
  call("agent_key_manager.generate_key"),
  call("agent_key_manager.get_keys"),
  call("agent_svid.rotate"),
  call("node.attest"),
  call("node.attestor.new_svid", { attestor: "join_token" }),
  call("manager.sync.fetch_entries_updates"),
  call("manager.sync.fetch_svids_updates"),
  gauge("sync_bundles_total"),
  gauge("sync_entries_total"),
  gauge("sync_entries_missing"),
  gauge("sync_entries_stale"),
  gauge("sync_entries_dropped"),
  sample("cache_manager.expiring_svids"),
  sample("cache_manager.outdated_svids"),
  sample("cache_manager.tainted_x509_svids.workload"),
  sample("cache_manager.tainted_jwt_svids.workload"),
  call("cache_manager.workload.process_tainted_x509_svids"),
  call("cache_manager.workload.process_tainted_jwt_svids"),
  counter("lru_cache_entry_add"),
  counter("lru_cache_entry_update"),
  counter("lru_cache_entry_remove"),
  gauge("lru_cache_record_map_size", { svid_type: "X509" }),
  gauge("lru_cache_svid_map_size", { svid_type: "X509" }),
  gauge("jwt_svid_cache_size"),
  ...["workload_api", "sds_api", "debug_api", "logger_api", "delegated_identity_api", "broker_api"].flatMap(open),
  call("workload_api.workload_attestation"),
  call("workload_api.workload_attestor", { attestor: "unix" }),
  sample("workload_api.discovered_selectors"),
  counter("workload_api.rate_limit_exceeded", { method: "/SpiffeWorkloadAPI/FetchX509Bundles" }),
  sample("delegated_identity_api.subscribe_x509_svids.first_update"),
  gauge("bootstrapped"),
  gauge("bootstrap_seconds", { mode: "bootstrap" }),
  gauge("bootstrap_attempts", { mode: "bootstrap" }),
  gauge("started", { trust_domain_id: "example.org", version: "" }),
  gauge("uptime_in_ms"),
];

/** The series of a row as Prometheus has them; a label without a value may have any. */
function seriesOf({ key, kind, labels = {} }: Row): readonly RegExp[] {
  const name = `spire_agent_${key.replaceAll(".", "_")}`;
  const pairs = Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1));
  const texts = pairs.map(
    ([label, value]) => `${label}="${value === "" ? '[^"]+' : value.replace(/[^A-Za-z0-9_]+_?/g, "_")}"`,
  );
  const braces = texts.length === 0 ? "" : `\\{${texts.join(",")}\\}`;
  const plain = new RegExp(`^${name}${braces}$`);
  if (kind === "counter" || kind === "gauge") return [plain];
  const counted = (base: string) => new RegExp(`^${base}_count${braces}$`);
  return kind === "call" ? [plain, counted(`${name}_elapsed_time`)] : [counted(name)];
}

const ID = "spiffe://example.org/counted";
const BROKER = "spiffe://example.org/broker";
const scope = new AsyncDisposableStack();
let server: TestServer;
let agent: TestAgent;
let ports: readonly [number, number];
beforeAll(async () => {
  const { path: folder } = scope.use(await temporaryDirectory());
  const ca = await createCa({ uris: [], subject: { commonName: "node CA" } });
  const node = await ca.issue({ uris: [], subject: { commonName: "node-1" } });
  const files = { ca: join(folder, "ca.pem"), certificate: join(folder, "node.pem"), key: join(folder, "node.key") };
  await writeFile(files.ca, ca.pem);
  await writeFile(files.certificate, node.chain.map((der) => encodePem("CERTIFICATE", der)).join(""));
  await writeFile(files.key, encodePem("PRIVATE KEY", node.privateKey));
  server = scope.use(
    await startServer({
      server: { ca_ttl: "10m" },
      nodeAttestors: { join_token: {}, x509pop: { ca_bundle_path: files.ca } },
    }),
  );
  ports = [await freePort(), await freePort()];
  const telemetry = (port: number) => ({ telemetry: { Prometheus: { port }, EnableHostnameLabel: false } });
  agent = scope.use(
    await startAgent(server, {
      agent: {
        admin_socket_path: join(folder, "admin", "api.sock"),
        authorized_delegates: [ID],
        experimental: {
          sync_interval: "500ms",
          ratelimit: { fetch_x509_bundles: 1 },
          broker: {
            socket_path: join(folder, "broker", "api.sock"),
            brokers: [{ id: BROKER, allowed_reference_types: [{ type_url: "*" }] }],
          },
        },
      },
      sections: telemetry(ports[0]),
    }),
  );
  const pop = { private_key_path: files.key, certificate_path: files.certificate };
  const reattestable = { nodeAttestor: { x509pop: pop }, sections: telemetry(ports[1]) };
  const { path: home } = scope.use(await temporaryDirectory());
  await (await startAgent(server, { ...reattestable, folder: home }))[Symbol.asyncDispose]();
  scope.use(await restartAgent(home));

  const { tls } = await server.mint(BROKER);
  const local = scope.use(dialUnix(agent.socketPath));
  const admin = scope.use(dialUnix(join(folder, "admin", "api.sock")));
  const broker = scope.use(dialBroker(join(folder, "broker", "api.sock"), { identity: tls }));
  const entry = { parentId: agent.id(), selectors: [OWN_SELECTOR] };
  const { id } = await server.createEntry({ ...entry, spiffeId: ID, x509_svid_ttl: 20 });
  const { id: passing } = await server.createEntry({ ...entry, spiffeId: `${ID}/passing` });
  await eventually("two identities", async () => (await agent.fetch()).svids.length === 2);
  await server.admin.entry.BatchUpdateEntry({ entries: [{ id, hint: "other" }], input_mask: { hint: true } });
  await server.admin.entry.BatchDeleteEntry({ ids: [passing] });
  await use(local, admin, broker);
  await changeAuthorities();
}, 240_000);
afterAll(() => scope.disposeAsync());

/** Every API, each stream until its client has seen one answer and left. */
async function use(...[local, admin, broker]: readonly [Dialed, Dialed, Dialed]): Promise<void> {
  const metadata = SECURITY_HEADER;
  const workload = local.client(WorkloadApi);
  const delegated = admin.client(DelegatedIdentityApi);
  const reference = pidReference(process.pid);
  const streams = [
    collect((options) => workload.FetchX509SVID({}, { ...options, metadata })),
    collect((options) => workload.FetchX509Bundles({}, { ...options, metadata })),
    collect((options) => workload.FetchJWTBundles({}, { ...options, metadata })),
    collect((options) => delegated.SubscribeToX509SVIDs({ pid: process.pid }, options)),
    collect((options) =>
      broker.client(BrokerApi).SubscribeToX509SVID({ reference }, { ...options, metadata: BROKER_HEADER }),
    ),
  ];
  for (const stream of streams) await stream.answer(1);
  for (const stream of streams) stream[Symbol.dispose]();
  const again = () => collect((options) => workload.FetchX509Bundles({}, { ...options, metadata }));
  await eventually("a call too many", async () => (await Promise.all([again().ended, again().ended])).some(Boolean));
  const { svids } = await workload.FetchJWTSVID({ audience: ["a"] }, { metadata });
  await workload.ValidateJWTSVID({ audience: "a", svid: svids[0]?.svid ?? "" }, { metadata });
  await local.client(SecretDiscoveryApi).FetchSecrets({ resource_names: ["default"] });
  await admin.client(AgentDebugApi).GetInfo({});
  await admin.client(AgentLoggerApi).GetLogger({});
}

type Dialed = ReturnType<typeof dialUnix>;

/** What workloads and nodes hold is tainted, and replaced. */
async function changeAuthorities(): Promise<void> {
  const api = server.admin.localAuthority;
  const x509 = (await api.GetX509AuthorityState({})).active?.authority_id ?? "";
  const jwt = (await api.GetJWTAuthorityState({})).active?.authority_id ?? "";
  const prepared = (await api.PrepareX509Authority({})).prepared_authority?.authority_id ?? "";
  const preparedJwt = (await api.PrepareJWTAuthority({})).prepared_authority?.authority_id ?? "";
  await eventually("the next root is known", async () => {
    const { bundles } = await agent.fetch();
    return [...bundles.values()].some(({ authorities }) => authorities.length === 2);
  });
  await api.ActivateX509Authority({ authority_id: prepared });
  await api.TaintX509Authority({ authority_id: x509 });
  await api.ActivateJWTAuthority({ authority_id: preparedJwt });
  await api.TaintJWTAuthority({ authority_id: jwt });
}

test("every metric of SPIRE's agent is there under its name, with its labels", { timeout: 120_000 }, async () => {
  const missing = async (): Promise<readonly string[]> => {
    const found = await Promise.all(ports.map(async (port) => [...(await scrapeMetrics(port)).keys()]));
    const names = found.flat();
    return rows
      .flatMap((row) => seriesOf(row).filter((series) => !names.some((name) => series.test(name))))
      .map(String);
  };
  await eventually("all have happened", async () => (await missing()).length === 0, 90_000).catch(() => undefined);
  expect(await missing()).toEqual([]);
});
