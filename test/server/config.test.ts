import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { loadServerConfig, type ServerConfig, type ServerFlags, serverReference } from "../../server/config.ts";
import { faultOf, refusal } from "../support/faults.ts";

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-server-config-"));
});
afterEach(() => rm(folder, { recursive: true }));

interface Load {
  readonly name?: string;
  readonly flags?: ServerFlags;
  readonly env?: Record<string, string>;
  readonly expandEnv?: boolean;
}

async function load(
  text: string,
  { name = "server.conf", flags = {}, env = {}, expandEnv = false }: Load = {},
): Promise<ServerConfig> {
  const path = join(folder, name);
  await writeFile(path, text);
  return loadServerConfig({ path, flags, env, expandEnv });
}

/** The message, with the path of the file left out. */
async function refused(text: string, options: Load = {}): Promise<string> {
  const path = join(folder, options.name ?? "server.conf");
  await writeFile(path, text);
  const fault = faultOf(() => loadServerConfig({ path, flags: options.flags ?? {}, env: {} }));
  expect(fault).toMatchObject(refusal("invalid", "config-invalid"));
  return fault.message.replaceAll(path, "");
}

function server(lines: string): string {
  return `server {\n trust_domain = "a.test"\n data_dir = "/data"\n ${lines}\n}\n`;
}

function store(lines: string): string {
  return `${server("")}plugins {\n DataStore "sql" {\n plugin_data {\n ${lines}\n}}}\n`;
}

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

const TELEMETRY = {
  ...{ statsd: [], dogStatsd: [], hostLabel: true, trustDomainLabel: false },
  ...{ allowedPrefixes: [], blockedPrefixes: [], blockedLabels: [] },
};

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

const DEFAULTS = {
  bindAddress: "0.0.0.0",
  bindPort: 8081,
  socketPath: "/tmp/spire-server/private/api.sock",
  log: { level: "info", format: "text", sourceLocation: false, fractionalSeconds: false },
  caTtlSeconds: 86_400,
  caKeyType: "ec-p256",
  caSubject: {},
  defaultX509SvidTtlSeconds: 3600,
  defaultJwtSvidTtlSeconds: 300,
  agentTtlSeconds: 3600,
  jwtKeyType: "ec-p256",
  jwtIssuer: "",
  witKeyType: undefined,
  witIssuer: "",
  adminIds: [],
  auditLogEnabled: false,
  pruneAttestedNodes: { expiredForMs: 2_592_000_000, batchSize: 1000, includeNonReattestable: false },
  rateLimit: { attestation: true, signing: true },
  nodeAttestors: [{ type: "join_token" }],
  trustedProxies: [],
  telemetry: TELEMETRY,
  federation: { endpoint: undefined, relationships: [] },
  healthChecks: {
    listenerEnabled: false,
    bindAddress: "localhost",
    bindPort: 80,
    livePath: "/live",
    readyPath: "/ready",
  },
  warnings: [],
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

describe("without a file", () => {
  test("defaults are sound: example.org, the embedded store, keys on disk, join tokens", () => {
    expect(loadServerConfig({ env: { STEEPLE_DATA_DIR: "/state" } })).toEqual({
      ...DEFAULTS,
      trustDomain: "example.org",
      dataDir: "/state/server",
      dataStore: { kind: "embedded", directory: "/state/server/store" },
      keyManager: { type: "disk", keysPath: "/state/server/keys.json" },
    });
  });

  test("state goes where the system wants it", () => {
    const expected =
      process.geteuid?.() === 0 ? "/var/lib/steeple/server" : join(homedir(), ".local/state/steeple/server");
    expect(loadServerConfig({ env: {} }).dataDir).toBe(expected);
  });

  test("SPIRE's path in the current directory is taken when it's there", async () => {
    await mkdir(join(folder, "conf", "server"), { recursive: true });
    await writeFile(join(folder, "conf", "server", "server.conf"), server(""));
    const script = `
      import { loadServerConfig } from ${JSON.stringify(new URL("../../server/config.ts", import.meta.url).href)};
      console.log(loadServerConfig({ env: {} }).trustDomain);`;
    const { stdout } = spawnSync(process.execPath, ["--input-type=module", "-e", script], { cwd: folder });
    expect(stdout.toString()).toBe("a.test\n");
  });

  test("a file that was asked for must be there", () => {
    const fault = faultOf(() => loadServerConfig({ path: "/nowhere.conf" }));
    expect(fault).toMatchObject(refusal("not_found", "config-not-found"));
    expect(fault.message).toBe("could not find config file /nowhere.conf: please use the -config flag");
  });
});

describe("flags go before the file", () => {
  test("each of them", async () => {
    const flags: ServerFlags = {
      bindAddress: "10.0.0.1",
      serverPort: 9000,
      dataDir: "/other",
      socketPath: "/o.sock",
      trustDomain: "b.test",
      logFile: "/o.log",
      logFormat: "text",
      logLevel: "debug",
      logSourceLocation: true,
    };
    expect(await load(`${server("bind_port = 1")}`, { flags })).toMatchObject({
      bindAddress: "10.0.0.1",
      bindPort: 9000,
      dataDir: "/other",
      socketPath: "/o.sock",
      trustDomain: "b.test",
      log: { level: "debug", format: "text", file: "/o.log", sourceLocation: true },
      dataStore: { kind: "embedded", directory: "/other/store" },
    });
  });

  test("empty ones count as not given, as in SPIRE", async () => {
    const flags = { bindAddress: "", serverPort: 0, trustDomain: "", logSourceLocation: false };
    expect(await load(server("bind_port = 8085\nlog_source_location = true"), { flags })).toMatchObject({
      bindAddress: "0.0.0.0",
      bindPort: 8085,
      trustDomain: "a.test",
      log: { sourceLocation: true },
    });
  });

  test("they can stand in for the file", () => {
    expect(loadServerConfig({ flags: { trustDomain: "b.test", dataDir: "/d" }, env: {} })).toMatchObject({
      trustDomain: "b.test",
      dataDir: "/d",
    });
  });

  test("a wrong one is named", () => {
    const fault = faultOf(() => loadServerConfig({ flags: { logLevel: "loud", trustDomain: "B" }, env: {} }));
    expect(fault.message).toContain("-logLevel: server.log_level: not a valid log level");
    expect(fault.message).toContain(
      '-trustDomain: server.trust_domain: could not parse trust_domain "B": trust domain characters',
    );
  });
});

describe("environment variables", () => {
  test("are expanded when asked, and those that are not set are told", async () => {
    const text = server('jwt_issuer = "$ISSUER"\n ca_ttl = "${TTL}"\n log_level = "$$x$NONE"').replace("$$x", "");
    const { jwtIssuer, caTtlSeconds, warnings } = await load(text, {
      env: { ISSUER: "i", TTL: "48h" },
      expandEnv: true,
    });
    expect({ jwtIssuer, caTtlSeconds }).toEqual({ jwtIssuer: "i", caTtlSeconds: 172_800 });
    expect(warnings).toEqual([expect.stringContaining("environment variable NONE is not set")]);
  });

  test("and stay as they are otherwise", async () => {
    expect((await load(server('jwt_issuer = "$ISSUER"'), { env: { ISSUER: "i" } })).jwtIssuer).toBe("$ISSUER");
  });
});

describe("faults", () => {
  test.each([
    {
      lines: 'trust_domian = "x"',
      message: ':4:2: unknown key "trust_domian" in server; did you mean "trust_domain"?',
    },
    { lines: "bind_prt = 1", message: ':4:2: unknown key "bind_prt" in server; did you mean "bind_port"?' },
    {
      lines: "ca_subject { countri = [] }",
      message: ':4:15: unknown key "countri" in server.ca_subject; did you mean "country"?',
    },
    { lines: "experimental { wat = 1 }", message: ':4:17: unknown key "wat" in server.experimental' },
    { lines: "bind_port = 70000", message: ":4:2: server.bind_port: 70000 is not between 0 and 65535" },
    { lines: 'ca_ttl = "a day"', message: ':4:2: server.ca_ttl: invalid duration "a day"; write it like 24h or 1h30m' },
    { lines: 'agent_ttl = "0s"', message: ":4:2: server.agent_ttl: must be at least 1s" },
    {
      lines: 'ca_key_type = "dsa"',
      message:
        ':4:2: server.ca_key_type: key type "dsa" is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]',
    },
    { lines: 'log_level = "loud"', message: ':4:2: server.log_level: not a valid log level: "loud"' },
    { lines: 'log_format = "xml"', message: ':4:2: server.log_format: "xml" is not one of text, json' },
    {
      lines: 'admin_ids = ["spiffe://A/x"]',
      message:
        ':4:2: server.admin_ids: could not parse admin ID "spiffe://A/x": trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores',
    },
    {
      lines: `socket_path = "/${"x".repeat(107)}"`,
      message: `:4:2: server.socket_path: socket path "/${"x".repeat(107)}" is longer than 107 bytes`,
    },
    { lines: 'data_dir = "/x"', message: ":4:2: server.data_dir is set twice; the first is at :3:2" },
  ])("$message", async ({ lines, message }) => expect(await refused(server(lines))).toBe(message));

  test("all are told at once", async () => {
    const text =
      'server {\n bind_port = -1\n ca_ttl = "x"\n unknwon = 1\n}\nplugins {\n KeyManager "disk" {}\n KeyManager "memory" {}\n}\nsrever {}\n';
    expect(await refused(text)).toBe(
      [
        "6 faults in the configuration:",
        "  :1:1: trust_domain must be configured",
        "  :2:2: server.bind_port: -1 is not between 0 and 65535",
        '  :3:2: server.ca_ttl: invalid duration "x"; write it like 24h or 1h30m',
        '  :4:2: unknown key "unknwon" in server',
        '  :6:1: plugin type "KeyManager" constraint not satisfied: expected exactly 1 but got 2',
        '  :10:1: unknown key "srever"; did you mean "server"?',
      ].join("\n"),
    );
  });

  test.each([
    { text: "", message: ": trust_domain must be configured" },
    { text: 'server { trust_domain = "" }', message: ":1:1: trust_domain must be configured" },
  ])("a file names its trust domain: '$text'", async ({ text, message }) => expect(await refused(text)).toBe(message));
});

describe("key managers and upstream authorities", () => {
  const plugin = (type: string, name: string, data: string): string =>
    `${server("")}plugins {\n ${type} "${name}" { plugin_data { ${data} } }\n}\n`;

  test("a PKCS#11 token", async () => {
    const data = 'module_path = "/m.so" token_label = "ca" pin_path = "/pin"';
    expect((await load(plugin("KeyManager", "pkcs11", data))).keyManager).toEqual({
      ...{ type: "pkcs11", module: "/m.so", tokenLabel: "ca", pinPath: "/pin", keyPrefix: "steeple/" },
    });
    expect(await refused(plugin("KeyManager", "pkcs11", 'module_path = "/m.so"'))).toContain("token_label is required");
  });

  test("a CA in files", async () => {
    const data = 'cert_file_path = "/c.pem" key_file_path = "/k.pem" bundle_file_path = "/b.pem"';
    expect((await load(plugin("UpstreamAuthority", "disk", data))).upstreamAuthority).toEqual({
      ...{ type: "disk", certPath: "/c.pem", keyPath: "/k.pem", bundlePath: "/b.pem" },
    });
    expect(await refused(plugin("UpstreamAuthority", "disk", 'key_file_path = "/k.pem"'))).toContain(
      "cert_file_path is required",
    );
  });

  test("HashiCorp Vault as both, with what the environment says", async () => {
    const base = 'vault_addr = "https://v.test:8200" approle_auth { approle_id = "r" }';
    const env = { VAULT_APPROLE_SECRET_ID: "s", VAULT_NAMESPACE: "n" };
    const vault = {
      ...{ address: "https://v.test:8200", namespace: "n", insecureSkipVerify: false },
      auth: { method: "approle", mount: "approle", roleId: "r", secretId: "s" },
    };
    const transit = await load(plugin("KeyManager", "hashicorp_vault", `${base} key_identifier_value = "one"`), {
      env,
    });
    expect(transit.keyManager).toEqual({
      ...{ type: "hashicorp_vault", vault, mount: "transit", identifier: { value: "one" } },
    });
    const pki = await load(plugin("UpstreamAuthority", "vault", `${base} pki_mount_point = "p"`), { env });
    expect(pki.upstreamAuthority).toEqual({ type: "vault", vault, mount: "p" });
  });

  test.each([
    { data: 'token_auth { token = "t" }', message: "vault_addr is required, as a URL" },
    { data: 'vault_addr = "http://v" token_auth { token = "t" }', message: "one of 'key_identifier_file'" },
    {
      data: 'vault_addr = "http://v" key_identifier_value = "x" token_auth {} k8s_auth {}',
      message: "exactly one of token_auth, cert_auth, approle_auth and k8s_auth",
    },
    {
      data: 'vault_addr = "http://v" key_identifier_value = "x" k8s_auth {}',
      message: "k8s_auth_role_name is required",
    },
    { data: 'vault_addr = "http://v" key_identifier_value = "x" token_auth {}', message: "token is required" },
  ])("Vault with $data is refused", async ({ data, message }) => {
    expect(await refused(plugin("KeyManager", "hashicorp_vault", data))).toContain(message);
  });

  test("a server above", async () => {
    const data = 'server_address = "up.test" server_port = "8081" workload_api_socket = "/w.sock"';
    expect((await load(plugin("UpstreamAuthority", "spire", data))).upstreamAuthority).toEqual({
      ...{ type: "spire", address: "up.test", port: 8081, workloadApiSocket: "/w.sock" },
    });
    const wrong = await refused(plugin("UpstreamAuthority", "spire", 'server_address = "u" server_port = "http"'));
    expect(wrong).toContain('server_port "http" is not a port');
  });
});

describe("tokens", () => {
  test("JWT-SVIDs can be turned off", async () => {
    expect(await load(server("disable_jwt_svids = true"))).toMatchObject({ jwtKeyType: undefined, warnings: [] });
  });

  test("WIT-SVIDs are turned on by SPIRE's feature flag, with the CA's key type, and a warning", async () => {
    const config = await load(server('ca_key_type = "ec-p384"\nexperimental { feature_flags = ["wit-svid"] }'));
    expect(config).toMatchObject({ witKeyType: "ec-p384" });
    expect(config.warnings).toEqual([expect.stringContaining('Developer feature flag "wit-svid" has been enabled')]);
  });

  test("an unknown feature flag is refused", async () => {
    const message = await refused(server('experimental { feature_flags = ["wit-svids"] }'));
    expect(message).toContain("unknown feature flag(s): [wit-svids]");
  });

  test("WIT-26 an issuer that looks like an OpenID provider's is warned of", async () => {
    const { warnings } = await load(server('experimental { wit_issuer = "https://idp.example.org" }'));
    expect(warnings).toEqual([expect.stringContaining("should not be that of an OpenID provider")]);
  });
});

describe("federation", () => {
  const endpoint = (lines: string) => `federation { bundle_endpoint { ${lines} } }`;
  const federates = (lines: string, name = "b.test") => `federation { federates_with "${name}" { ${lines} } }`;
  const URL = 'bundle_endpoint_url = "https://b.test:8443"';

  test("SPIRE's own example is read whole", async () => {
    const { federation } = await load(
      server(`federation {
        bundle_endpoint {
          address = "127.0.0.1" port = 8443 refresh_hint = "10m"
          profile "https_web" { serving_cert_file { cert_file_path = "/c" key_file_path = "/k" file_sync_interval = "1m" } }
        }
        federates_with "domain1.test" { bundle_endpoint_url = "https://1.2.3.4:8443" bundle_endpoint_profile "https_web" {} }
        federates_with "domain2.test" {
          bundle_endpoint_url = "https://5.6.7.8:8443"
          bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "spiffe://domain2.test/beserver" }
        }
      }`),
    );
    expect(federation).toEqual({
      endpoint: {
        ...{ address: "127.0.0.1", port: 8443, refreshHintSeconds: 600 },
        profile: { type: "https_web", certFile: "/c", keyFile: "/k", syncIntervalMs: 60_000 },
      },
      relationships: [
        {
          ...{ trustDomain: "domain1.test", bundleEndpointUrl: "https://1.2.3.4:8443" },
          profile: { type: "https_web" },
        },
        {
          ...{ trustDomain: "domain2.test", bundleEndpointUrl: "https://5.6.7.8:8443" },
          profile: { type: "https_spiffe", endpointSpiffeId: "spiffe://domain2.test/beserver" },
        },
      ],
    });
  });

  test("without the section nothing is served and nobody is asked", async () => {
    expect((await load(server(""))).federation).toEqual({ endpoint: undefined, relationships: [] });
    const plain = await load(server(endpoint('port = 8443 profile "https_spiffe" {}')));
    expect(plain.federation.endpoint).toMatchObject({ address: "0.0.0.0", refreshHintSeconds: 300 });
  });

  test.each([
    { lines: endpoint('profile "https_spiffe" {}'), says: "port must be configured" },
    { lines: endpoint("port = 8443"), says: "needs one profile" },
    { lines: endpoint('port = 1 profile "https_web" {} profile "https_spiffe" {}'), says: "needs one profile" },
    { lines: endpoint('port = 1 profile "https_web" {}'), says: "needs cert_file_path and key_file_path" },
    { lines: federates('bundle_endpoint_profile "https_web" {}'), says: "bundle_endpoint_url must be configured" },
    { lines: federates(URL), says: 'must be one of "https_web" {} and "https_spiffe"' },
    {
      lines: federates(`${URL} bundle_endpoint_profile "https_spiffe" {}`),
      says: "endpoint_spiffe_id must be configured",
    },
    {
      lines: federates('bundle_endpoint_url = "http://b.test" bundle_endpoint_profile "https_web" {}'),
      says: "must use the https scheme",
    },
    {
      lines: federates('bundle_endpoint_url = "https://u@b.test" bundle_endpoint_profile "https_web" {}'),
      says: "must not contain user info",
    },
    { lines: federates(`${URL} bundle_endpoint_profile "https_web" {}`, "B"), says: "invalid trust domain" },
    { lines: federates(`${URL} bundle_endpoint_profile "https_web" {}`, "a.test"), says: "federate with itself" },
  ])("FED-14 FED-16 FED-17 FED-20 $says: refused", async ({ lines, says }) => {
    await expect(load(server(lines))).rejects.toThrow(says);
  });
});

describe("what SPIRE has and Steeple hasn't", () => {
  test.each([
    {
      lines: 'federation { bundle_endpoint { port = 1 profile "https_spiffe" {} acme { email = "a@b.test" } } }',
      key: "federation.bundle_endpoint.acme",
    },
    { lines: "experimental { require_pq_kem = true }", key: "experimental.require_pq_kem" },
    { lines: "experimental { agent_spiffe_id_as_selector = true }", key: "experimental.agent_spiffe_id_as_selector" },
    {
      lines: 'experimental { auth_opa_policy_engine { local { rego_path = "x" } } }',
      key: "experimental.auth_opa_policy_engine",
    },
    { lines: 'experimental { named_pipe_name = "x" }', key: "experimental.named_pipe_name" },
  ])("$key would change behaviour, and is refused with its line", async ({ lines, key }) => {
    expect(await refused(server(lines))).toMatch(
      new RegExp(`^:4:\\d+: server\\.${key} is not supported by this version of Steeple$`),
    );
  });

  test.each([
    ["KeyManager", "aws_kms"],
    ["NodeAttestor", "aws_iid"],
    ["UpstreamAuthority", "aws_pca"],
    ["Notifier", "k8sbundle"],
    ["BundlePublisher", "aws_s3"],
    ["CredentialComposer", "uniqueid"],
  ])('so is %s "%s"', async (type, name) => {
    const text = `${server("")}plugins {\n ${type} "${name}" { plugin_data { a = 1 } }\n}\n`;
    expect(await refused(text)).toMatch(
      new RegExp(`^:7:\\d+: plugin ${type} "${name}" is not supported by this version of Steeple$`),
    );
  });

  test.each([
    "profiling_enabled = true",
    "profiling_port = 6060",
    'max_attested_node_info_staleness = "1m"',
    "experimental { events_based_cache = true }",
    'experimental { cache_reload_interval = "5s" }',
    'experimental { event_timeout = "15m" }',
  ])("%s only tunes, and is accepted with one warning", async (lines) => {
    const { warnings } = await load(server(lines));
    expect(warnings).toEqual([
      expect.stringMatching(/server\.conf:4:\d+: server\..* has no effect in this version of Steeple$/),
    ]);
  });

  test("a value that changes nothing is accepted without a word", async () => {
    expect((await load(server("federation {}\nexperimental { require_pq_kem = false }"))).warnings).toEqual([]);
  });
});

describe("the store", () => {
  test.each([
    { what: "nothing", lines: "", directory: "/data/store" },
    { what: "embedded", lines: 'database_type = "embedded"', directory: "/data/store" },
  ])("$what is the embedded one in the data folder", async ({ lines, directory }) => {
    expect((await load(store(lines))).dataStore).toEqual({ kind: "embedded", directory });
  });

  test.each([
    { connection: "/x/spire/datastore.sqlite3", directory: "/x/spire/store" },
    { connection: "file:/x/spire/d.db?cache=shared", directory: "/x/spire/store" },
    { connection: "file:///x/spire/d.db", directory: "/x/spire/store" },
    { connection: "./rel/d.db", directory: `${process.cwd()}/rel/store` },
    { connection: ":memory:", directory: "/data/store" },
    { connection: "file:memdb?mode=memory&cache=shared", directory: "/data/store" },
  ])(
    "sqlite3 $connection means the embedded one in that file's folder, and says so",
    async ({ connection, directory }) => {
      const { dataStore } = await load(store(`database_type = "sqlite3"\nconnection_string = "${connection}"`));
      expect(dataStore).toEqual({ kind: "embedded", directory, notice: expect.stringContaining(directory) });
    },
  );

  test("sqlite3 is refused when a SQLite file with data stands there, with the way to export", async () => {
    const file = join(folder, "datastore.sqlite3");
    await writeFile(file, Buffer.concat([Buffer.from("SQLite format 3\0"), Buffer.alloc(100_000)]));
    const message = await refused(store(`database_type = "sqlite3"\nconnection_string = "${file}"`));
    expect(message).toMatch(
      /^:9:2: the SQLite database .*datastore\.sqlite3 holds data that this server would not see/,
    );
    expect(message).toContain("spire-server entry show -output json");
    expect(existsSync(file)).toBe(true);
  });

  test.each([
    { what: "an empty file", content: Buffer.alloc(0) },
    {
      what: "a database without tables",
      content: Buffer.concat([Buffer.from("SQLite format 3\0"), Buffer.alloc(4080)]),
    },
    { what: "another file", content: Buffer.alloc(100_000, "x") },
  ])("but not for $what", async ({ content }) => {
    const file = join(folder, "datastore.sqlite3");
    await writeFile(file, content);
    const { dataStore } = await load(store(`database_type = "sqlite3"\nconnection_string = "${file}"`));
    expect(dataStore.kind).toBe("embedded");
  });

  test.each([
    {
      lines: 'database_type = "mysql"\nconnection_string = "x"',
      message: /:9:2: database_type "mysql" is not supported; write database_type = "postgres" with connection_string/,
    },
    {
      lines: 'database_type "aws_postgres" { region = "x" }',
      message: /:9:2: database_type "aws_postgres" is not supported by this version of Steeple/,
    },
    { lines: 'database_type = "oracle"', message: /:9:2: unknown database_type "oracle"; use postgres or embedded/ },
    { lines: 'database_type = "postgres"', message: /^:7:12: connection_string must be set/ },
    {
      lines: 'database_type = "postgres"\nconnection_string = "x"\nclient_cert_path = "/c"',
      message: /client_cert_path and client_key_path must be set together/,
    },
    { lines: "database_type { a {} b {} }", message: /exactly one database type is expected/ },
    {
      lines: 'database_typ = "postgres"',
      message: /unknown key "database_typ" in plugins\.DataStore\.sql; did you mean "database_type"\?/,
    },
  ])("$lines is refused", async ({ lines, message }) => expect(await refused(store(lines))).toMatch(message));

  test("T-J8 a fault never repeats the connection string", async () => {
    expect(await refused(store('database_type = "mysql"\nconnection_string = "root:hunter2@tcp(db)/x"'))).not.toContain(
      "hunter2",
    );
  });
});

describe("lifetimes that the CA's can't guarantee are warned of, in SPIRE's words", () => {
  test.each([
    { lines: 'default_x509_svid_ttl = "4h"', warning: undefined },
    {
      lines: 'default_x509_svid_ttl = "5h"',
      warning:
        "default_x509_svid_ttl is too high for the configured ca_ttl value. SVIDs with shorter lifetimes may be issued. Please set default_x509_svid_ttl to 4h or less, or the ca_ttl to 30h or more, to guarantee the full default_x509_svid_ttl lifetime when CA rotations are scheduled.",
    },
    {
      lines: 'ca_ttl = "900h"\n agent_ttl = "200h"',
      warning:
        "agent_ttl is too high and the ca_ttl is too low. SVIDs with shorter lifetimes may be issued. Please set agent_ttl to 168h or less, and the ca_ttl to 1008h or more, to guarantee the full agent_ttl lifetime when CA rotations are scheduled.",
    },
    {
      lines: 'ca_ttl = "2000h"\n default_jwt_svid_ttl = "200h"',
      warning:
        "default_jwt_svid_ttl is too high. SVIDs with shorter lifetimes may be issued. Please set default_jwt_svid_ttl to 168h or less to guarantee the full default_jwt_svid_ttl lifetime when CA rotations are scheduled.",
    },
  ])("$lines", async ({ lines, warning }) => {
    const { warnings } = await load(server(lines));
    expect(warnings.map((one) => one.replace(/^.*?: /, ""))).toEqual(warning === undefined ? [] : [warning]);
  });

  test("those that no authority could ever give are refused, with the arithmetic", async () => {
    expect(await refused(server('ca_ttl = "6h"\n default_x509_svid_ttl = "8h"\n agent_ttl = "7h"'))).toBe(
      [
        "2 faults in the configuration:",
        "  :5:2: default_x509_svid_ttl (8h) is longer than ca_ttl (6h), so that no SVID could live as long as asked. An authority signs until 5/6 of its life and then still has ca_ttl/6 = 1h: set default_x509_svid_ttl to 1h or less, or ca_ttl to 6 * 8h = 48h or more",
        "  :6:2: agent_ttl (7h) is longer than ca_ttl (6h), so that no SVID could live as long as asked. An authority signs until 5/6 of its life and then still has ca_ttl/6 = 1h: set agent_ttl to 1h or less, or ca_ttl to 6 * 7h = 42h or more",
      ].join("\n"),
    );
  });

  test("a ca_ttl so short that an authority would sign before agents know it is refused, with the arithmetic", async () => {
    expect(await refused(server('ca_ttl = "17s"'))).toBe(
      ":4:2: ca_ttl (17s) is too short for authorities to change without an outage. The next one is published after ca_ttl/2 = 8.5s and signs after ca_ttl*5/6 = 14.2s: 5.7s later, and agents take up to 6s to learn of it. Set ca_ttl to 3 * 6s = 18s or more",
    );
    expect((await load(server('ca_ttl = "18s"'))).caTtlSeconds).toBe(18);
  });

  test("a default that a short ca_ttl can't give is warned of only", async () => {
    const { warnings } = await load(server('ca_ttl = "30m"'));
    expect(warnings).toEqual([expect.stringContaining("default_x509_svid_ttl is too high")]);
  });

  test("an empty ca_subject is warned of too", async () => {
    const { warnings, caSubject } = await load(server('ca_subject { common_name = "" }'));
    expect(warnings).toEqual([
      expect.stringContaining("ca_subject configurable is set but empty; the default will be used"),
    ]);
    expect(caSubject).toEqual({});
  });
});

describe("the reference", () => {
  const text = serverReference();

  test.each([
    "`trust_domain`",
    "`ca_subject.common_name`",
    '`DataStore "sql"`',
    "`connection_string`",
    "`health_checks`",
    "`aws_iid`",
  ])("names %s", (key) => expect(text).toContain(key));

  test("says what has no effect and what is not supported", () => {
    expect(text).toMatch(/`experimental\.events_based_cache` .* accepted, no effect/);
    expect(text).toMatch(/`experimental\.require_pq_kem` .* not supported/);
  });
});

describe("load balancers", () => {
  test("networks whose PROXY headers are believed", async () => {
    const { trustedProxies } = await load(server('proxy_protocol_trusted_cidrs = ["10.0.0.0/8", "2001:db8::/32"]'));
    expect(trustedProxies).toEqual(["10.0.0.0/8", "2001:db8::/32"]);
  });

  test.each(["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "2001:db8::/129", "/8", "10.0.0.0/-1", "all"])(
    "%s is no network",
    async (network) => {
      const message = await refused(server(`proxy_protocol_trusted_cidrs = ["${network}"]`));
      expect(message).toContain(`invalid proxy_protocol_trusted_cidrs "${network}"`);
    },
  );
});

describe("telemetry", () => {
  const telemetry = (text: string): string => `${server("")}telemetry {\n${text}\n}`;

  test("SPIRE's defaults: no sink, the host on every metric", async () => {
    expect((await load(server(""))).telemetry).toEqual(TELEMETRY);
  });

  test("every key, as SPIRE's own example writes them", async () => {
    const { telemetry: read, warnings } = await load(
      telemetry(`
        Prometheus { host = "127.0.0.1" port = 9988 }
        DogStatsd = [{ address = "localhost:8125" }]
        Statsd = [{ address = "localhost:1337" }, { address = "collector.example.org:8125" }]
        MetricPrefix = "mine"
        EnableTrustDomainLabel = true
        EnableHostnameLabel = false
        AllowedPrefixes = ["mine.rpc"]
        BlockedPrefixes = ["mine"]
        AllowedLabels = ["status"]
        BlockedLabels = ["host"]`),
    );
    expect(read).toEqual({
      prometheus: { host: "127.0.0.1", port: 9988 },
      statsd: ["localhost:1337", "collector.example.org:8125"],
      dogStatsd: ["localhost:8125"],
      ...{ prefix: "mine", hostLabel: false, trustDomainLabel: true },
      ...{ allowedPrefixes: ["mine.rpc"], blockedPrefixes: ["mine"] },
      ...{ allowedLabels: ["status"], blockedLabels: ["host"] },
    });
    expect(warnings).toEqual([]);
  });

  test.each([
    [`use_spire_svid = true`, { useSvid: true, authorizedIds: [] }],
    [
      `use_spire_svid = true\nauthorized_spiffe_ids = ["spiffe://example.org/monitor"]`,
      { useSvid: true, authorizedIds: ["spiffe://example.org/monitor"] },
    ],
    [
      `cert_file = "c"\nkey_file = "k"\nclient_ca_file = "a"`,
      { useSvid: false, authorizedIds: [], files: { certFile: "c", keyFile: "k", clientCaFile: "a" } },
    ],
  ])("tls { %s }", async (tls, expected) => {
    const { telemetry: read } = await load(telemetry(`Prometheus { port = 1\ntls { ${tls} } }`));
    expect(read.prometheus?.tls).toEqual(expected);
  });

  test.each([
    ["", "cert_file and key_file must both be configured unless use_spire_svid is enabled"],
    [`cert_file = "c"`, "cert_file and key_file must both be configured unless use_spire_svid is enabled"],
    [
      `use_spire_svid = true\ncert_file = "c"`,
      "cert_file and key_file cannot be configured when use_spire_svid is enabled",
    ],
    [`use_spire_svid = true\nclient_ca_file = "c"`, "client_ca_file cannot be configured with use_spire_svid"],
    [
      `cert_file = "c"\nkey_file = "k"\nclient_ca_file = "a"\nauthorized_spiffe_ids = ["spiffe://a/b"]`,
      "client_ca_file cannot be configured with authorized_spiffe_ids",
    ],
    [`use_spire_svid = true\nauthorized_spiffe_ids = ["x"]`, 'invalid authorized SPIFFE ID "x"'],
  ])("tls { %s } is refused", async (tls, why) => {
    expect(await refused(telemetry(`Prometheus { tls { ${tls} } }`))).toContain(why);
  });

  test("T-F6 an endpoint that others can reach without a certificate is warned about", async () => {
    const warningsOf = async (text: string) => (await load(telemetry(text))).warnings;
    const open = await warningsOf('Prometheus { host = "0.0.0.0" }');
    expect(open).toEqual([expect.stringContaining("metrics can be read from other machines at 0.0.0.0")]);
    expect(await warningsOf('Prometheus { host = "0.0.0.0" tls { use_spire_svid = true } }')).toHaveLength(1);
    const closed = 'tls { use_spire_svid = true authorized_spiffe_ids = ["spiffe://example.org/m"] }';
    expect(await warningsOf(`Prometheus { host = "0.0.0.0" ${closed} }`)).toEqual([]);
    expect(await warningsOf('Prometheus { host = "[::1]" }')).toEqual([]);
  });

  test("what is not built says so", async () => {
    expect(await refused(telemetry('M3 = [{ address = "x:1" env = "y" }]'))).toContain("M3 is not supported");
    expect((await load(telemetry("InMem {}"))).warnings).toEqual([expect.stringContaining("InMem has no effect")]);
    expect(await refused(telemetry("Statsd = [{}]"))).toContain("address must be written as host:port");
  });
});
