import { describe, expect, test } from "vitest";
import { DEFAULTS, load, server, TELEMETRY } from "./support.ts";

const FULL = `
server {
  trust_domain = "spiffe://example.org"
  bind_address = "[::1]"
  bind_port = "8082"
  socket_path = "/run/s.sock"
  data_dir = "/data"
  log_level = "WARN"
  log_format = "json"
  log_file = "/var/log/s.log"
  log_source_location = true
  ca_ttl = "168h"
  ca_key_type = "rsa-4096"
  ca_subject = { country = ["DE", "US"], organization = ["Org"], common_name = "CA" }
  jwt_key_type = "ec-p384"
  jwt_issuer = "https://issuer.test"
  default_x509_svid_ttl = "6h"
  default_jwt_svid_ttl = "10m"
  agent_ttl = "12h"
  admin_ids = ["spiffe://example.org/admin", "spiffe://other.test/admin"]
  audit_log_enabled = true
  ratelimit { attestation = false signing = false }
  experimental { wit_key_type = "rsa-2048" wit_issuer = "spiffe://example.org" feature_flags = ["wit-svid"] }
  prune_attested_nodes_expired_for = "24h"
  prune_attested_nodes_batch_size = 7
  prune_tofu_nodes = true
}
plugins {
  DataStore "sql" {
    plugin_data {
      database_type = "postgres"
      connection_string = "dbname=spire host=db"
      root_ca_path = "/ca.pem"
      client_cert_path = "/c.pem"
      client_key_path = "/k.pem"
      max_open_conns = 10
      max_idle_conns = 5
      conn_max_lifetime = "1h"
      disable_migration = true
    }
  }
  KeyManager "disk" { plugin_data { keys_path = "/keys/k.json" } }
  NodeAttestor "join_token" { plugin_data {} }
}
health_checks {
  listener_enabled = true
  bind_address = "[::]"
  bind_port = "8080"
  live_path = "/l"
  ready_path = "/r"
}
`;

const FULL_CONFIG = {
  trustDomain: "example.org",
  bindAddress: "::1",
  bindPort: 8082,
  socketPath: "/run/s.sock",
  dataDir: "/data",
  log: { level: "warn", format: "json", file: "/var/log/s.log", sourceLocation: true, fractionalSeconds: true },
  caTtlSeconds: 604_800,
  caKeyType: "rsa-4096",
  caSubject: { country: ["DE", "US"], organization: ["Org"], commonName: "CA" },
  defaultX509SvidTtlSeconds: 21_600,
  defaultJwtSvidTtlSeconds: 600,
  agentTtlSeconds: 43_200,
  jwtKeyType: "ec-p384",
  jwtIssuer: "https://issuer.test",
  witKeyType: "rsa-2048",
  witIssuer: "spiffe://example.org",
  adminIds: ["spiffe://example.org/admin", "spiffe://other.test/admin"],
  auditLogEnabled: true,
  rateLimit: { attestation: false, signing: false },
  pruneAttestedNodes: { expiredForMs: 86_400_000, batchSize: 7, includeNonReattestable: true },
  dataStore: {
    kind: "postgres",
    connectionString: "dbname=spire host=db",
    rootCaPath: "/ca.pem",
    clientCertPath: "/c.pem",
    clientKeyPath: "/k.pem",
    maxOpenConns: 10,
    maxIdleConns: 5,
    connMaxLifetimeMs: 3_600_000,
    disableMigration: true,
  },
  keyManager: { type: "disk", keysPath: "/keys/k.json" },
  nodeAttestors: [{ type: "join_token" }],
  trustedProxies: [],
  telemetry: TELEMETRY,
  federation: { endpoint: undefined, relationships: [] },
  healthChecks: { listenerEnabled: true, bindAddress: "::", bindPort: 8080, livePath: "/l", readyPath: "/r" },
  warnings: [expect.stringContaining('Developer feature flag "wit-svid" has been enabled')],
};

describe("SPIRE's keys", () => {
  test("all that work become the configuration", async () => expect(await load(FULL)).toEqual(FULL_CONFIG));

  test("a file that names only the trust domain gets SPIRE's defaults and the embedded store", async () => {
    expect(await load('server { trust_domain = "a.test" data_dir = "/data" }')).toEqual({
      ...DEFAULTS,
      trustDomain: "a.test",
      dataDir: "/data",
      dataStore: { kind: "embedded", directory: "/data/store" },
      keyManager: { type: "disk", keysPath: "/data/keys.json" },
    });
  });

  test("YAML and JSON have the same keys", async () => {
    const yaml =
      "server:\n  trust_domain: a.test\n  data_dir: /data\n  admin_ids: [spiffe://a.test/x]\nplugins:\n  KeyManager:\n    memory: {}\n";
    const json =
      '{"server": {"trust_domain": "a.test", "data_dir": "/data", "admin_ids": ["spiffe://a.test/x"]}, "plugins": {"KeyManager": [{"memory": {}}]}}';
    const hcl =
      'server { trust_domain = "a.test" data_dir = "/data" admin_ids = ["spiffe://a.test/x"] }\nplugins { KeyManager "memory" {} }';
    const expected = await load(hcl);
    expect(expected.keyManager).toEqual({ type: "memory" });
    expect(await load(yaml, { name: "s.yaml" })).toEqual(expected);
    expect(await load(json, { name: "s.json" })).toEqual(expected);
    expect(await load(json)).toEqual(expected);
  });

  test("the result is frozen, to its leaves", async () => {
    const config = await load(FULL);
    expect(() => Object.assign(config.caSubject, { commonName: "x" })).toThrow(TypeError);
    expect(() => Object.assign(config.adminIds, { length: 0 })).toThrow(TypeError);
  });

  test.each([
    { file: "rsa-2048", type: "rsa-2048" },
    { file: "rsa-4096", type: "rsa-4096" },
    { file: "ec-p256", type: "ec-p256" },
    { file: "EC-P384", type: "ec-p384" },
  ])("ca_key_type $file is used for JWTs too", async ({ file, type }) => {
    expect(await load(server(`ca_key_type = "${file}"`))).toMatchObject({ caKeyType: type, jwtKeyType: type });
  });
});
