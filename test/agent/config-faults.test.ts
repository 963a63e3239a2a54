import { describe, expect, test } from "vitest";
import { agent, load, refused } from "../support/agent-config.ts";

describe("bootstrap trust", () => {
  test.each([
    { bootstrap: "insecure_bootstrap = true", trustBundle: { kind: "insecure" } },
    { bootstrap: 'trust_bundle_path = "/b.pem"', trustBundle: { kind: "path", path: "/b.pem", format: "pem" } },
    {
      bootstrap: 'trust_bundle_url = "https://b.test/x"',
      trustBundle: { kind: "url", url: "https://b.test/x", format: "pem" },
    },
    {
      bootstrap:
        'trust_bundle_url = "https://b.test/x"\n trust_bundle_url_roots_path = "/r.pem"\n trust_bundle_format = "spiffe"',
      trustBundle: { kind: "url", url: "https://b.test/x", format: "spiffe", rootsPath: "/r.pem" },
    },
  ])("$bootstrap", async ({ bootstrap, trustBundle }) =>
    expect((await load(agent("", bootstrap))).trustBundle).toEqual(trustBundle),
  );

  test.each([
    {
      bootstrap: "",
      message:
        ":1:1: trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless insecure_bootstrap is set",
    },
    {
      bootstrap: 'insecure_bootstrap = true\n trust_bundle_url = "https://x"',
      message: ":5:2: only one of insecure_bootstrap or trust_bundle_url can be specified, not both",
    },
    {
      bootstrap: 'insecure_bootstrap = true\n trust_bundle_path = "/x"',
      message: ":5:2: only one of insecure_bootstrap or trust_bundle_path can be specified, not both",
    },
    {
      bootstrap: 'trust_bundle_url = "https://x"\n trust_bundle_path = "/x"',
      message: ":5:2: only one of trust_bundle_url or trust_bundle_path can be specified, not both",
    },
    {
      bootstrap: 'insecure_bootstrap = true\n trust_bundle_url = "https://x"\n trust_bundle_path = "/x"',
      message:
        ":5:2: only one of insecure_bootstrap, trust_bundle_url, or trust_bundle_path can be specified, not the three options",
    },
    { bootstrap: 'trust_bundle_url = "http://x"', message: ":5:2: trust bundle URL must start with https://" },
    { bootstrap: 'trust_bundle_url = "::"', message: ":5:2: unable to parse trust bundle URL" },
    {
      bootstrap: 'trust_bundle_path = "/x"\n trust_bundle_url_roots_path = "/r"',
      message: ":6:2: if trust_bundle_url_roots_path is specified, so must be trust_bundle_url",
    },
    {
      bootstrap: 'trust_bundle_path = "/x"\n trust_bundle_format = "der"',
      message: ':6:2: agent.trust_bundle_format: "der" is not one of pem, spiffe',
    },
    {
      bootstrap: 'trust_bundle_path = "/x"\n trust_bundle_unix_socket = "/s"',
      message: ":6:2: if trust_bundle_unix_socket is specified, so must be trust_bundle_url",
    },
    {
      bootstrap: 'trust_bundle_url = "https://x"\n trust_bundle_unix_socket = "/s"',
      message: ":5:2: trust bundle URL must start with http:// when used with trust bundle unix socket",
    },
    {
      bootstrap: 'trust_bundle_url = "http://x?spire-a=1"\n trust_bundle_unix_socket = "/s"',
      message: ":5:2: trust_bundle_url query params can not start with spire-",
    },
    {
      bootstrap: 'trust_bundle_spiffe_workload_api = "unix:///s"\n trust_bundle_unix_socket = "/s"',
      message: ":6:2: trust_bundle_unix_socket can not be used with trust_bundle_spiffe_workload_api",
    },
    {
      bootstrap: 'trust_bundle_path = "/x"\n trust_bundle_spiffe_workload_api = "unix:///s"',
      message: ":5:2: only one of trust_bundle_path or trust_bundle_spiffe_workload_api can be specified, not both",
    },
    {
      bootstrap: 'insecure_bootstrap = true\n rebootstrap_mode = "auto"',
      message: ":6:2: insecure_bootstrap option can not be used with rebootstrapping",
    },
  ])("$message", async ({ bootstrap, message }) => expect(await refused(agent("", bootstrap))).toBe(message));
});

describe("faults", () => {
  test.each([
    {
      lines: 'join_token = "a"\n join_token_file = "/b"',
      message: ":7:2: only one of join_token or join_token_file can be specified, not both",
    },
    {
      lines: 'admin_socket_path = "/tmp/spire-agent/public/admin.sock"',
      message:
        ":6:2: admin socket cannot be in the same directory or a subdirectory as that containing the Workload API socket",
    },
    {
      lines: 'admin_socket_path = "/tmp/spire-agent/public/a/admin.sock"',
      message:
        ":6:2: admin socket cannot be in the same directory or a subdirectory as that containing the Workload API socket",
    },
    {
      lines: 'workload_x509_svid_key_type = "rsa-4096"',
      message:
        ':6:2: agent.workload_x509_svid_key_type: key type "rsa-4096" is unknown; must be one of [rsa-2048, ec-p256, ec-p384]',
    },
    { lines: 'availability_target = "1h"', message: ":6:2: agent.availability_target: must be at least 24h" },
    {
      lines: "x509_svid_cache_max_size = -1",
      message: ":6:2: agent.x509_svid_cache_max_size: -1 is not between 0 and 1000000",
    },
    {
      lines: 'experimental { sync_interval = "1ms" }',
      message: ":6:17: agent.experimental.sync_interval: must be at least 100ms",
    },
    { lines: 'jion_token = "x"', message: ':6:2: unknown key "jion_token" in agent; did you mean "join_token"?' },
    {
      lines: 'authorized_delegates = ["spiffe://b.test/d"]',
      message:
        ':6:2: error validating authorized delegate: "spiffe://b.test/d" is not a member of trust domain "a.test"',
    },
    {
      lines: "experimental { ratelimit { fetch_x509_svid = -5 } }",
      message: ":6:29: agent.experimental.ratelimit.fetch_x509_svid: -5 is not between 0 and 1000000",
    },
  ])("$message", async ({ lines, message }) => expect(await refused(agent(lines))).toBe(message));

  test.each([
    ["WorkloadAttestor", "windows"],
    ["SVIDStore", "aws_secretsmanager"],
  ])('%s "%s" is not supported', async (type, name) => {
    expect(await refused(`${agent("")}plugins { ${type} "${name}" {} }`)).toMatch(
      /^:8:\d+: plugin .* is not supported by this version of Steeple$/,
    );
  });

  test("a file names its server and trust domain; all that's missing is told at once", async () => {
    expect(await refused("agent {}")).toBe(
      [
        "4 faults in the configuration:",
        "  :1:1: server_address must be configured",
        "  :1:1: server_port must be configured",
        "  :1:1: trust_domain must be configured",
        "  :1:1: trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless insecure_bootstrap is set",
      ].join("\n"),
    );
  });

  test("T-J8 a fault never repeats the join token", async () => {
    expect(await refused(agent('join_token = "s3cret"\n join_token_file = "/b"'))).not.toContain("s3cret");
  });
});
