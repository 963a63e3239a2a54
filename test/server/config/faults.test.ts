import { describe, expect, test } from "vitest";
import { load, refused, server } from "./support.ts";

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
