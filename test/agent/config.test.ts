import { describe, expect, test } from "vitest";
import { type AgentFlags, agentReference, loadAgentConfig } from "../../agent/config.ts";
import { agent, load } from "../support/agent-config.ts";

const FULL = `
agent {
  trust_domain = "example.org"
  server_address = "[::1]"
  server_port = "8082"
  data_dir = "/data"
  socket_path = "/run/public/a.sock"
  admin_socket_path = "/run/admin/a.sock"
  authorized_delegates = ["spiffe://example.org/d"]
  trust_bundle_path = "/b.pem"
  trust_bundle_format = "spiffe"
  rebootstrap_mode = "auto"
  rebootstrap_delay = "1m"
  join_token = "t"
  log_level = "DEBUG"
  log_selectors = ["unix:user"]
  allow_unauthenticated_verifiers = true
  availability_target = "48h"
  workload_x509_svid_key_type = "rsa-2048"
  x509_svid_cache_max_size = 5
  max_streams_per_connection = 9
  disable_sds_api = true
  disable_workload_api = true
  sds {
    default_svid_name = "me"
    default_bundle_name = "us"
    default_all_bundles_name = "everyone"
    disable_spiffe_cert_validation = true
  }
  experimental {
    sync_interval = "1s"
    ratelimit { fetch_x509_svid = 1 fetch_jwt_svid = 2 fetch_x509_bundles = 3 fetch_jwt_bundles = 4 stream_secrets = 5 fetch_secrets = 6 }
  }
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { directory = "/keys" } }
  WorkloadAttestor "unix" { plugin_data { discover_workload_path = true workload_size_limit = -1 } }
}
health_checks { listener_enabled = true bind_port = "8080" }
`;

const TELEMETRY = {
  ...{ statsd: [], dogStatsd: [], hostLabel: true, trustDomainLabel: false },
  ...{ allowedPrefixes: [], blockedPrefixes: [], blockedLabels: [] },
};

const DEFAULTS = {
  procRoot: "/proc",
  socketPath: "/tmp/spire-agent/public/api.sock",
  log: { level: "info", format: "text", sourceLocation: false, fractionalSeconds: false },
  workloadX509SvidKeyType: "ec-p256",
  syncIntervalMs: 5000,
  allowUnauthenticatedVerifiers: false,
  allowedForeignJwtClaims: [],
  witSvids: false,
  jwtSvidCacheMaxSize: 1000,
  jwtSvidCacheHitTimeoutMs: 30_000,
  authorizedDelegates: [],
  disableWorkloadApi: false,
  disableSdsApi: false,
  rateLimits: {
    fetch_x509_svid: 0,
    fetch_jwt_svid: 0,
    fetch_x509_bundles: 0,
    fetch_jwt_bundles: 0,
    stream_secrets: 0,
    fetch_secrets: 0,
  },
  sds: { names: { svid: "default", bundle: "ROOTCA", allBundles: "ALL" }, disableSpiffeCertValidation: false },
  nodeAttestor: { type: "join_token" },
  rebootstrap: { mode: "never", delayMs: 600_000 },
  workloadAttestors: [{ type: "unix", discoverWorkloadPath: false, workloadSizeLimit: 0 }],
  telemetry: TELEMETRY,
  healthChecks: {
    listenerEnabled: false,
    bindAddress: "localhost",
    bindPort: 80,
    livePath: "/live",
    readyPath: "/ready",
  },
  x509SvidCacheMaxSize: 1000,
  maxStreamsPerConnection: 1000,
  warnings: [],
};

describe("SPIRE's keys", () => {
  test("all that work become the configuration", async () => {
    expect(await load(FULL)).toEqual({
      trustDomain: "example.org",
      allowedForeignJwtClaims: [],
      witSvids: false,
      jwtSvidCacheMaxSize: 1000,
      jwtSvidCacheHitTimeoutMs: 30_000,
      serverAddress: "::1",
      serverPort: 8082,
      dataDir: "/data",
      socketPath: "/run/public/a.sock",
      adminSocketPath: "/run/admin/a.sock",
      authorizedDelegates: ["spiffe://example.org/d"],
      trustBundle: { kind: "path", path: "/b.pem", format: "spiffe" },
      joinToken: "t",
      log: { level: "debug", format: "text", sourceLocation: false, fractionalSeconds: false },
      logSelectors: ["unix:user"],
      allowUnauthenticatedVerifiers: true,
      disableWorkloadApi: true,
      disableSdsApi: true,
      rateLimits: {
        fetch_x509_svid: 1,
        fetch_jwt_svid: 2,
        fetch_x509_bundles: 3,
        fetch_jwt_bundles: 4,
        stream_secrets: 5,
        fetch_secrets: 6,
      },
      sds: { names: { svid: "me", bundle: "us", allBundles: "everyone" }, disableSpiffeCertValidation: true },
      availabilityTargetMs: 172_800_000,
      workloadX509SvidKeyType: "rsa-2048",
      x509SvidCacheMaxSize: 5,
      maxStreamsPerConnection: 9,
      procRoot: "/proc",
      syncIntervalMs: 1000,
      keyManager: { type: "disk", directory: "/keys" },
      nodeAttestor: { type: "join_token" },
      rebootstrap: { mode: "auto", delayMs: 60_000 },
      workloadAttestors: [{ type: "unix", discoverWorkloadPath: true, workloadSizeLimit: -1 }],
      telemetry: TELEMETRY,
      healthChecks: {
        listenerEnabled: true,
        bindAddress: "localhost",
        bindPort: 8080,
        livePath: "/live",
        readyPath: "/ready",
      },
      warnings: [],
    });
  });

  test("a small file gets SPIRE's defaults, with state in the current directory", async () => {
    expect(await load(agent(""))).toEqual({
      ...DEFAULTS,
      trustDomain: "a.test",
      serverAddress: "s",
      serverPort: 8081,
      dataDir: process.cwd(),
      trustBundle: { kind: "insecure" },
      keyManager: { type: "disk", directory: process.cwd() },
    });
  });

  test("without a file, one on the same machine is meant, and bootstrap trust is still to be had", () => {
    expect(loadAgentConfig({ env: { STEEPLE_DATA_DIR: "/state" } })).toEqual({
      ...DEFAULTS,
      trustDomain: "example.org",
      serverAddress: "127.0.0.1",
      serverPort: 8081,
      dataDir: "/state/agent",
      trustBundle: { kind: "none" },
      keyManager: { type: "disk", directory: "/state/agent" },
    });
  });

  test("YAML has the same keys", async () => {
    const yaml =
      "agent:\n  trust_domain: a.test\n  server_address: s\n  server_port: 8081\n  insecure_bootstrap: true\nplugins:\n  KeyManager: { memory: {} }\n";
    expect((await load(yaml, {}, "agent.yaml")).keyManager).toEqual({ type: "memory" });
  });

  test.each(["ec-p256", "ec-p384", "rsa-2048"])("workload keys may be %s", async (type) => {
    expect((await load(agent(`workload_x509_svid_key_type = "${type}"`))).workloadX509SvidKeyType).toBe(type);
  });

  test("a cache size of 0 is the default, as in SPIRE", async () => {
    expect((await load(agent("x509_svid_cache_max_size = 0"))).x509SvidCacheMaxSize).toBe(1000);
  });
});

describe("flags go before the file", () => {
  test("each of them", async () => {
    const flags: AgentFlags = {
      dataDir: "/o",
      joinTokenFile: "/t",
      logFile: "/l",
      logFormat: "json",
      logLevel: "error",
      logSourceLocation: true,
      serverAddress: "o",
      serverPort: 1,
      socketPath: "/o.sock",
      trustBundle: "/b",
      trustBundleFormat: "spiffe",
      trustDomain: "o.test",
      allowUnauthenticatedVerifiers: true,
      disableSDSAPI: true,
      disableWorkloadAPI: true,
      rebootstrapMode: "never",
    };
    expect(await load(agent("", ""), flags)).toMatchObject({
      dataDir: "/o",
      joinTokenFile: "/t",
      log: { level: "error", format: "json", file: "/l", sourceLocation: true },
      serverAddress: "o",
      serverPort: 1,
      socketPath: "/o.sock",
      trustBundle: { kind: "path", path: "/b", format: "spiffe" },
      trustDomain: "o.test",
      allowUnauthenticatedVerifiers: true,
      disableSdsApi: true,
      disableWorkloadApi: true,
    });
  });
});

describe("feature flags", () => {
  test("WAPI-52 WIT-SVIDs are switched on by name, with a warning", async () => {
    const { witSvids, warnings } = await load(agent('experimental { feature_flags = ["wit-svid"] }'));
    expect(witSvids).toBe(true);
    expect(warnings).toEqual([expect.stringContaining('Developer feature flag "wit-svid" has been enabled')]);
  });

  test("an unknown one is refused", async () => {
    await expect(load(agent('experimental { feature_flags = ["x"] }'))).rejects.toThrow("unknown feature flag(s): [x]");
  });
});

describe("JWT-SVIDs", () => {
  test("cache, patience and foreign claims", async () => {
    const lines = `allowed_foreign_jwt_claims = ["team", "env"]
      jwt_svid_cache_max_size = 5
      experimental { jwt_svid_cache_hit_timeout = "7s" }`;
    expect(await load(agent(lines))).toMatchObject({
      allowedForeignJwtClaims: ["team", "env"],
      jwtSvidCacheMaxSize: 5,
      jwtSvidCacheHitTimeoutMs: 7_000,
      warnings: [],
    });
    expect((await load(agent("jwt_svid_cache_max_size = 0"))).jwtSvidCacheMaxSize).toBe(1000);
  });

  test("a timeout below five seconds is refused", async () => {
    const lines = 'experimental { jwt_svid_cache_hit_timeout = "4s" }';
    await expect(load(agent(lines))).rejects.toThrow(/jwt_svid_cache_hit_timeout.*5s/);
  });
});

describe("what only tunes is accepted with a warning", () => {
  test.each(["profiling_enabled = true", "experimental { use_sync_authorized_entries = true }"])(
    "%s",
    async (lines) => {
      const { warnings } = await load(agent(lines));
      expect(warnings).toEqual([
        expect.stringMatching(/agent\.conf:6:\d+: agent\..* has no effect in this version of Steeple$/),
      ]);
    },
  );

  test("and what changes nothing, without one", async () => {
    expect((await load(agent('rebootstrap_mode = "never"\n disable_workload_api = false'))).warnings).toEqual([]);
  });
});

test("the reference names the agent's keys, and which are Steeple's own", () => {
  const text = agentReference();
  expect(text).toMatch(/`trust_bundle_url_roots_path` .* Steeple only/);
  expect(text).toMatch(/`experimental.named_pipe_name` .* not supported/);
  expect(text).toContain('`WorkloadAttestor "unix"`');
});

test("HOST_PROC moves the proc file system, as SPIRE has it", () => {
  expect(loadAgentConfig({ env: { HOST_PROC: "/host/proc" } }).procRoot).toBe("/host/proc");
});
