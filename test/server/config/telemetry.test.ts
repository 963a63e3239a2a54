import { describe, expect, test } from "vitest";
import { serverReference } from "../../../server/config.ts";
import { load, refused, server, TELEMETRY } from "./support.ts";

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

describe("the reference", () => {
  const text = serverReference();

  test.each([
    "`trust_domain`",
    "`ca_subject.common_name`",
    '`DataStore "sql"`',
    "`connection_string`",
    "`health_checks`",
    "`aws_kms`",
  ])("names %s", (key) => expect(text).toContain(key));

  test("says what has no effect and what is not supported", () => {
    expect(text).toMatch(/`experimental\.events_based_cache` .* accepted, no effect/);
    expect(text).toMatch(/`experimental\.require_pq_kem` .* not supported/);
  });
});
