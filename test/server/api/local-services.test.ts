import { X509Certificate } from "node:crypto";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { faultFrom } from "../../support/faults.ts";
import { startServer, type TestServer } from "../../support/server.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

describe("Logger", () => {
  afterEach(() => server.admin.logger.ResetLogLevel({}));
  const debugLines = () =>
    server.logged("Bundle refreshed").length + server.logged("Federation relationship created").length;
  let made = 0;
  /** Logs one line at DEBUG, and answers after it. */
  const logOneDebugLine = async (): Promise<void> => {
    made += 1;
    const bundle_endpoint_url = "https://127.0.0.1:1/";
    const trust_domain = `partner-${made}.test`;
    const federation_relationships = [{ trust_domain, bundle_endpoint_url, https_web: {} }];
    const { results } = await server.admin.trustDomain.BatchCreateFederationRelationship({ federation_relationships });
    expect(results[0]?.status?.code).toBe(0);
  };

  test("tells the level of now and of the start", async () => {
    expect(await server.admin.logger.GetLogger({})).toEqual({ current_level: "DEBUG", launch_level: "DEBUG" });
    await server.untilLogged("GetLogger Called");
  });

  test("a new level holds at once and for every part, until it is reset", async () => {
    await logOneDebugLine();
    await server.untilLogged("Federation relationship created", { trust_domain_id: `partner-${made}.test` });
    const before = debugLines();
    expect(await server.admin.logger.SetLogLevel({ new_level: "WARN" })).toEqual({
      current_level: "WARN",
      launch_level: "DEBUG",
    });
    await server.untilLogged("SetLogLevel Called", { new_log_level: "warning" });
    await logOneDebugLine();
    expect(await server.admin.logger.GetLogger({})).toMatchObject({ current_level: "WARN" });
    expect(await server.admin.logger.ResetLogLevel({})).toEqual({ current_level: "DEBUG", launch_level: "DEBUG" });
    await logOneDebugLine();
    await server.untilLogged("Federation relationship created", { trust_domain_id: `partner-${made}.test` });
    expect(debugLines()).toBe(before + 1);
  });

  test.each(["PANIC", "FATAL", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"] as const)(
    "level %s can be set",
    async (level) => {
      expect(await server.admin.logger.SetLogLevel({ new_level: level })).toMatchObject({ current_level: level });
    },
  );

  test.each([
    { level: 0, message: "newLevel value cannot be LogLevel_UNSPECIFIED" },
    { level: 99, message: "unsupported log level" },
  ] as const)("T-C3 level $level is refused and changes nothing", async ({ level, message }) => {
    const fault = await faultFrom(server.admin.logger.SetLogLevel({ new_level: level as 0 }));
    expect(fault).toMatchObject({ kind: "invalid", message });
    expect(await server.admin.logger.GetLogger({})).toMatchObject({ current_level: "DEBUG" });
  });
});

describe("Debug", () => {
  test("GetInfo tells the server's chain up to its root, the counts and the uptime, of at most five seconds ago", async () => {
    await server.createEntry({ spiffeId: "spiffe://example.org/one", parentId: "spiffe://example.org/node" });
    const info = await server.admin.debug.GetInfo({});
    const { x509_authorities } = await server.admin.bundle.GetBundle({});
    const root = new X509Certificate(x509_authorities[0]?.asn1 ?? "");
    const [leaf, anchor, ...others] = info.svid_chain;
    expect(others).toEqual([]);
    expect(leaf).toMatchObject({ id: { trust_domain: "example.org", path: "/spire/server" }, subject: "O=SPIRE,C=US" });
    expect(anchor?.id).toEqual({ trust_domain: "example.org", path: "" });
    expect(Number(anchor?.expires_at)).toBe(Date.parse(root.validTo) / 1000);
    expect(anchor?.subject.split(",").reverse()).toEqual(
      root.subject.split("\n").map((part) => part.replace(/^serialNumber/, "SERIALNUMBER")),
    );
    expect(info).toMatchObject({ agents_count: 0, entries_count: 1, federated_bundles_count: 1 });
    expect(info.uptime).toBeGreaterThanOrEqual(0);

    await server.createEntry({ spiffeId: "spiffe://example.org/two", parentId: "spiffe://example.org/node" });
    const again = await server.admin.debug.GetInfo({});
    if (again.uptime - info.uptime < 5) expect(again).toEqual(info);
  });
});
