import { lstat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseJws } from "../../src/crypto/jws.ts";
import { dialUnix } from "../../src/rpc/dial.ts";
import { AgentDebugApi, AgentLoggerApi, BrokerApi, DelegatedIdentityApi } from "../../src/rpc/protos.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { BROKER_HEADER, dialBroker, objectReference, pidReference } from "../support/broker.ts";
import { collect } from "../support/collect.ts";
import { eventually } from "../support/eventually.ts";
import { KubeApiServer } from "../support/kube-apiserver.ts";
import { Kubelet } from "../support/kubelet.ts";
import { scrapeMetrics } from "../support/metrics.ts";
import { SdsClient } from "../support/sds.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { freePort } from "../support/server-process.ts";
import { runProgram } from "../support/transcript.ts";
import { temporaryDirectory } from "../support/workload.ts";

let scope: AsyncDisposableStack;
let server: TestServer;
let agent: TestAgent;
let socket: string;
let brokerSocket: string;
let metricsPort: number;
let kubelet: Kubelet;
beforeAll(async () => {
  scope = new AsyncDisposableStack();
  server = scope.use(await startServer());
  const { path } = scope.use(await temporaryDirectory());
  socket = join(path, "private", "admin.sock");
  metricsPort = await freePort();
  const apiserver = scope.use(await KubeApiServer.open());
  kubelet = scope.use(await Kubelet.open(apiserver));
  const broker = { access_policy: "permissive", brokers: [{ id: "spiffe://example.org/broker" }] };
  const polls = { max_poll_attempts: 1, poll_retry_interval: "50ms" };
  agent = scope.use(
    await startAgent(server, {
      workloadAttestors: {
        unix: {},
        k8s: { kubelet_read_only_port: kubelet.readOnlyPort, ...polls, experimental: { broker } },
      },
      sections: { telemetry: { Prometheus: { port: metricsPort }, EnableHostnameLabel: false } },
      agent: {
        admin_socket_path: socket,
        authorized_delegates: ["spiffe://example.org/delegate"],
        experimental: {
          sync_interval: "200ms",
          broker: {
            socket_path: join(path, "broker", "broker.sock"),
            brokers: [{ id: "spiffe://example.org/broker", allowed_reference_types: [{ type_url: "*" }] }],
          },
        },
      },
    }),
  );
  brokerSocket = join(path, "broker", "broker.sock");
  const parentId = agent.id();
  await server.createEntry({ parentId, spiffeId: "spiffe://example.org/delegate", selectors: [OWN_SELECTOR] });
  for (const [name, extra] of [
    ["web", { hint: "inside" }],
    ["boss", { admin: true }],
    ["nested", { downstream: true }],
  ] as const)
    await server.createEntry({
      parentId,
      spiffeId: `spiffe://example.org/${name}`,
      selectors: ["k8s:ns:web"],
      ...extra,
    });
  await eventually("the agent serves the delegate", () => agent.fetch().catch(() => undefined));
});
afterAll(() => scope.disposeAsync());

const run = (line: string) => runProgram(`agent ${line} -socketPath ${socket}`);

describe("the admin socket", () => {
  test("T-W10 is for its owner and group only, and says so in the log", async () => {
    expect((await lstat(socket)).mode & 0o777).toBe(0o770);
    expect(dirname(socket)).not.toBe(dirname(agent.socketPath));
    expect(agent.logged("Starting Admin APIs", { address: socket, network: "unix" })).toHaveLength(1);
  });

  test("what it serves is not on the public socket", async () => {
    using channel = dialUnix(agent.socketPath);
    const metadata = { "workload.spiffe.io": "true" };
    await expect(channel.client(AgentDebugApi).GetInfo({}, { metadata })).rejects.toMatchObject({
      kind: "unimplemented",
    });
    await expect(channel.client(AgentLoggerApi).GetLogger({}, { metadata })).rejects.toMatchObject({
      kind: "unimplemented",
    });
    await expect(
      channel.client(DelegatedIdentityApi).FetchJWTSVIDs({ audience: ["a"], pid: 1 }, { metadata }),
    ).rejects.toMatchObject({ kind: "unimplemented" });
  });
});

test("with both public APIs off there is no public socket, and the admin socket stays", async () => {
  await using folder = await temporaryDirectory();
  const admin_socket_path = join(folder.path, "private", "admin.sock");
  await using quiet = await startAgent(server, {
    agent: { admin_socket_path, disable_sds_api: true, disable_workload_api: true },
    anyState: true,
  });
  using channel = dialUnix(admin_socket_path);
  await quiet.untilLogged("Node attestation was successful");
  expect(await channel.client(AgentDebugApi).GetInfo({}, { waitForReady: true })).toMatchObject({
    uptime: expect.any(Number),
  });
  await expect(lstat(quiet.socketPath)).rejects.toMatchObject({ code: "ENOENT" });
  expect(quiet.logged("Starting Workload and SDS APIs")).toEqual([]);
});

describe("debug getinfo", () => {
  test("prints what SPIRE's agent prints", async () => {
    const { status, stdout } = await run("debug getinfo");
    expect(status).toBe(0);
    const time = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ/.source;
    expect(stdout).toMatch(
      new RegExp(
        [
          "^Agent Debug Info:",
          "  Uptime:                          \\d+s",
          `  Last Sync Success:               ${time}`,
          "  Cached X.509 SVIDs:              \\d+",
          "  Cached JWT SVIDs:                \\d+",
          "  Cached SVID Store X.509 SVIDs:   0",
          "  SVID Chain:",
          `    \\[0\\] SPIFFE ID:  ${agent.id()}`,
          "        Subject:    .+",
          `        Expires At: ${time}`,
          "    \\[1\\] SPIFFE ID:  spiffe://example.org",
          "        Subject:    .+",
          `        Expires At: ${time}\n$`,
        ].join("\n"),
      ),
    );
  });

  test("and its answer as JSON", async () => {
    const { stdout } = await run("debug getinfo -output json");
    expect(JSON.parse(stdout)).toMatchObject({
      cached_x509_svids_count: expect.any(Number),
      cached_svidstore_x509_svids_count: 0,
      last_sync_success: expect.stringMatching(/^\d+$/),
      svid_chain: [{ id: { trust_domain: "example.org" } }, {}],
    });
  });
});

test("last_sync_success moves on while changes are pushed and there are none, and stands still while the server hangs", async () => {
  await agent.untilLogged("Changes are pushed by the server");
  using channel = dialUnix(socket);
  const client = channel.client(AgentDebugApi);
  const lastSync = async (): Promise<number> => Number((await client.GetInfo({})).last_sync_success);
  const first = await lastSync();
  await eventually("it moves on", async () => (await lastSync()) > first, 30_000);
  process.kill(server.pid, "SIGSTOP");
  try {
    const stopped = Math.floor(Date.now() / 1000);
    const { uptime } = await client.GetInfo({});
    // An answer is held for five seconds.
    const later = async () => {
      const info = await client.GetInfo({});
      return info.uptime >= uptime + 5 ? info : undefined;
    };
    expect(Number((await eventually("another answer", later, 30_000)).last_sync_success)).toBeLessThanOrEqual(stopped);
  } finally {
    process.kill(server.pid, "SIGCONT");
  }
}, 90_000);

describe("logger", () => {
  test("get, set and reset the level of the running agent", async () => {
    expect((await run("logger get")).stdout).toBe("Logger Level : debug\nLaunch Level : debug\n\n");
    expect((await run("logger set -level warn")).stdout).toBe("Logger Level : warning\nLaunch Level : debug\n\n");
    await agent.untilLogged("SetLogLevel Called", { new_log_level: "warning" });
    expect((await run("logger get -output json")).stdout).toBe('{"current_level":"WARN","launch_level":"DEBUG"}\n');
    // At level warn nothing is said of it.
    expect((await run("logger reset")).stdout).toBe("Logger Level : debug\nLaunch Level : debug\n\n");
    await run("logger reset");
    await agent.untilLogged("ResetLogLevel Called", { launch_log_level: "debug" });
  });

  test("refuses what is no level", async () => {
    const { status, stderr } = await run("logger set -level loud");
    expect(status).toBe(1);
    expect(stderr).toContain('the value "loud" is not a valid setting');
    using channel = dialUnix(socket);
    await expect(channel.client(AgentLoggerApi).SetLogLevel({})).rejects.toMatchObject({
      kind: "invalid",
      message: "newLevel value cannot be LogLevel_UNSPECIFIED",
    });
  });
});

describe("Delegated Identity at a real server", () => {
  const selectors = [{ type: "k8s", value: "ns:web" }];

  test("T-W7 gives JWT-SVIDs of the ordinary identities only", async () => {
    using channel = dialUnix(socket);
    const { svids } = await channel.client(DelegatedIdentityApi).FetchJWTSVIDs({ selectors, audience: ["db", "db"] });
    expect(svids).toMatchObject([{ id: { trust_domain: "example.org", path: "/web" }, hint: "inside" }]);
    const { payload } = parseJws(svids[0]?.token ?? "");
    expect(payload).toMatchObject({ sub: "spiffe://example.org/web", aud: ["db"] });
    expect([svids[0]?.issued_at, svids[0]?.expires_at]).toEqual([String(payload["iat"]), String(payload["exp"])]);
  });

  test("by pid, of this process", async () => {
    using channel = dialUnix(socket);
    const { svids } = await channel.client(DelegatedIdentityApi).FetchJWTSVIDs({ pid: process.pid, audience: ["db"] });
    expect(svids.map(({ id }) => id?.path)).toEqual(["/delegate"]);
  });

  test("T-W7 X.509-SVIDs and bundles, with the keys signed for the asking", async () => {
    using channel = dialUnix(socket);
    const api = channel.client(DelegatedIdentityApi);
    for await (const { x509_svids } of api.SubscribeToX509SVIDs({ selectors })) {
      expect(x509_svids.map(({ x509_svid }) => x509_svid?.id?.path)).toEqual(["/web"]);
      break;
    }
    for await (const { ca_certificates } of api.SubscribeToX509Bundles({})) {
      expect(Object.keys(ca_certificates)).toEqual(["spiffe://example.org"]);
      break;
    }
    for await (const { bundles } of api.SubscribeToJWTBundles({})) {
      expect(JSON.parse(bundles["spiffe://example.org"]?.toString() ?? "").keys.length).toBeGreaterThan(0);
      break;
    }
  });
});

describe("the Broker API at a real server", () => {
  test("BRK-01 BRK-69 BRK-70 BRK-74 BEP-02 BEP-16 its four RPCs answer for a live process", async () => {
    await agent.untilLogged("Starting SPIFFE Broker Endpoint", { network: "unix", address: brokerSocket });
    const { tls } = await server.mint("spiffe://example.org/broker");
    const seen: string[] = [];
    const verifyServer = (chain: readonly { readonly uris: readonly string[] }[]) =>
      void seen.push(chain[0]?.uris[0] ?? "");
    using channel = dialBroker(brokerSocket, { identity: tls, verifyServer });
    const api = channel.client(BrokerApi);
    const metadata = BROKER_HEADER;
    const reference = pidReference(process.pid);
    const audience = ["db", "cache"];
    const { svids } = await api.FetchJWTSVID({ reference, audience }, { metadata });
    expect(svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/delegate"]);
    expect(parseJws(svids[0]?.svid ?? "").payload).toMatchObject({
      sub: "spiffe://example.org/delegate",
      aud: audience,
    });
    const named = { reference, audience, spiffe_id: "spiffe://example.org/delegate" };
    expect((await api.FetchJWTSVID(named, { metadata })).svids).toHaveLength(1);
    await expect(
      api.FetchJWTSVID({ ...named, spiffe_id: "spiffe://example.org/other" }, { metadata }),
    ).rejects.toMatchObject({ kind: "denied" });
    for await (const answer of api.SubscribeToX509SVID({ reference }, { metadata })) {
      expect(answer.svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/delegate"]);
      break;
    }
    for await (const { bundles } of api.SubscribeToX509Bundles({ reference }, { metadata })) {
      expect(Object.keys(bundles)).toEqual(["spiffe://example.org"]);
      break;
    }
    for await (const { bundles } of api.SubscribeToJWTBundles({ reference }, { metadata })) {
      const { keys } = JSON.parse(bundles["spiffe://example.org"]?.toString() ?? "") as { keys: { kid: string }[] };
      expect(keys.every(({ kid }) => kid !== "")).toBe(true);
      expect(keys.length).toBeGreaterThan(0);
      break;
    }
    expect(new Set(seen)).toEqual(new Set([agent.id()]));
  });

  test("BRK-01 BRK-21 its RPCs answer for a pod that the kubelet of the node knows", async () => {
    const uid = "2c48913c-b29f-41e7-9350-020968147796";
    kubelet.set({ uid, name: "web-1", namespace: "web" });
    const { tls } = await server.mint("spiffe://example.org/broker");
    using channel = dialBroker(brokerSocket, { identity: tls });
    const api = channel.client(BrokerApi);
    const reference = objectReference({ type: { plural: "pods", group: "core" }, uid });
    const request = { reference, audience: ["db"] };
    const { svids } = await api.FetchJWTSVID(request, { metadata: BROKER_HEADER });
    expect(svids.map(({ spiffe_id, hint }) => [spiffe_id, hint])).toEqual([["spiffe://example.org/web", "inside"]]);
    using stream = collect((options) =>
      api.SubscribeToX509SVID({ reference }, { ...options, metadata: BROKER_HEADER }),
    );
    expect((await stream.answer(1)).svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/web"]);
    kubelet.remove(uid);
    expect(await stream.ended).toMatchObject({ kind: "not_found" });
  });

  test("BRK-71b of two JWT-SVIDs with one hint the broker gets one, the same every time", async () => {
    const parentId = agent.id();
    const twin = (name: string) => ({ parentId, spiffeId: `spiffe://example.org/${name}`, selectors: [OWN_SELECTOR] });
    const twins = [
      await server.createEntry({ ...twin("twin-1"), hint: "same" }),
      await server.createEntry({ ...twin("twin-2"), hint: "same" }),
      await server.createEntry({ ...twin("single"), hint: "another" }),
    ];
    const { tls } = await server.mint("spiffe://example.org/broker");
    using channel = dialBroker(brokerSocket, { identity: tls });
    const hints = async (): Promise<readonly string[]> => {
      const request = { reference: pidReference(process.pid), audience: ["db"] };
      const { svids } = await channel.client(BrokerApi).FetchJWTSVID(request, { metadata: BROKER_HEADER });
      return svids.map(({ hint, spiffe_id }) => `${hint} ${spiffe_id}`).sort();
    };
    const first = await eventually("the agent knows them all", async () => {
      const found = await hints();
      return found.some((line) => line.startsWith("another")) && found.some((line) => line.startsWith("same")) && found;
    });
    expect(first.map((line) => line.split(" ")[0])).toEqual(["", "another", "same"]);
    expect(await hints()).toEqual(first);
    await server.admin.entry.BatchDeleteEntry({ ids: twins.map(({ id }) => id) });
    await eventually("they are gone", async () => (await hints()).length === 1);
  });
});

describe("the open calls of each API are metrics", () => {
  /** What the agent counts of an API: calls open now, and ever. */
  async function counts(api: string): Promise<readonly [open: number, ever: number]> {
    const values = await scrapeMetrics(metricsPort);
    const [open = 0, ever = 0] = ["connections", "connection"].map((name) => values.get(`spire_agent_${api}_${name}`));
    return [open, ever];
  }

  const openings: Readonly<Record<string, () => Promise<Disposable>>> = {
    sds_api: async () => {
      const stream = new SdsClient(agent.socketPath).world();
      stream.send({ resource_names: ["default"] });
      return stream;
    },
    delegated_identity_api: async () => {
      const api = dialUnix(socket).client(DelegatedIdentityApi);
      return collect((options) => api.SubscribeToX509Bundles({}, options));
    },
    broker_api: async () => {
      const { tls } = await server.mint("spiffe://example.org/broker");
      const api = dialBroker(brokerSocket, { identity: tls }).client(BrokerApi);
      const request = { reference: pidReference(process.pid) };
      return collect((options) => api.SubscribeToX509Bundles(request, { ...options, metadata: BROKER_HEADER }));
    },
  };

  test.each(Object.keys(openings))("%s.connection and .connections", async (api) => {
    await eventually("the calls before are over", async () => (await counts(api))[0] === 0);
    const [, ever] = await counts(api);
    {
      using _ = await openings[api]!();
      await eventually("a call is open", async () => (await counts(api))[0] === 1);
    }
    await eventually("it is over", async () => (await counts(api))[0] === 0);
    expect((await counts(api))[1]).toBe(ever + 1);
  });
});
