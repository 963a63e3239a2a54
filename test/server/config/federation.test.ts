import { describe, expect, test } from "vitest";
import { load, refused, server } from "./support.ts";

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

  test("without a profile the endpoint shows an X.509-SVID, with a warning, as in SPIRE", async () => {
    const { federation, warnings } = await load(server(endpoint("port = 8443")));
    expect(federation.endpoint).toMatchObject({ port: 8443, profile: { type: "https_spiffe" } });
    expect(warnings.join("\n")).toContain('add profile "https_spiffe" {}');
  });

  test.each([
    { lines: endpoint('profile "https_spiffe" {}'), says: "port must be configured" },
    { lines: endpoint("port = 8443 profile {}"), says: "needs one profile" },
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
