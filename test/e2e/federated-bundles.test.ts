import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { createCa, type TestCa } from "../support/pki.ts";
import { withoutPostgres } from "../support/postgres.ts";
import { RawClient } from "../support/raw-client.ts";
import { startServer, type TestServer } from "../support/server.ts";

const PARTNER = "partner.test";
const PARTNER_ID = `spiffe://${PARTNER}`;

describe.skipIf(withoutPostgres)("a foreign bundle on its way from the server to a workload", () => {
  let server: TestServer;
  let agent: TestAgent;
  let client: RawClient;
  let roots: readonly TestCa[];
  beforeAll(async () => {
    server = await startServer({ store: "postgres" });
    agent = await startAgent(server);
    client = new RawClient(agent.socketPath);
    roots = [await createCa({ trustDomain: PARTNER }), await createCa({ trustDomain: PARTNER })];
  });
  afterAll(async () => {
    await client?.[Symbol.asyncDispose]();
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
  });

  const set = async (...held: readonly TestCa[]): Promise<void> => {
    const x509_authorities = held.map(({ der }) => ({ asn1: Buffer.from(der) }));
    const { results } = await server.admin.bundle.BatchSetFederatedBundle({
      bundle: [{ trust_domain: PARTNER, x509_authorities }],
    });
    expect(results[0]?.status).toEqual({ code: 0, message: "OK" });
  };
  const ders = (held: readonly TestCa[]): string => Buffer.concat(held.map(({ der }) => der)).toString("hex");

  test("WAPI-10 the bundles that an entry federates with reach FetchX509SVID and FetchX509Bundles, change and go", async () => {
    await set(...roots.slice(0, 1));
    const entry = await server.createEntry({
      spiffeId: "spiffe://example.org/federated",
      parentId: agent.id(),
      selectors: [OWN_SELECTOR],
      federates_with: [PARTNER],
    });
    await agent.untilLogged("Entry created", { entry: entry.id });
    const svids = client.svids();
    const bundles = client.bundles();
    const first = await svids.x509Svids();
    expect(first.svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/federated"]);
    expect(first.federated_bundles[PARTNER_ID]?.toString("hex")).toBe(ders(roots.slice(0, 1)));
    const own = (await bundles.x509Bundles()).bundles;
    expect(Object.keys(own).sort()).toEqual(["spiffe://example.org", PARTNER_ID]);

    await set(...roots);
    expect((await svids.x509Svids(2)).federated_bundles[PARTNER_ID]?.toString("hex")).toBe(ders(roots));
    expect((await bundles.x509Bundles(2)).bundles[PARTNER_ID]?.toString("hex")).toBe(ders(roots));

    await server.admin.bundle.BatchDeleteFederatedBundle({ trust_domains: [PARTNER], mode: "DISSOCIATE" });
    const last = await svids.x509Svids(3);
    expect(last.federated_bundles).toEqual({});
    expect(last.svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/federated"]);
    expect(Object.keys((await bundles.x509Bundles(3)).bundles)).toEqual(["spiffe://example.org"]);
    await server.admin.entry.BatchDeleteEntry({ ids: [entry.id] });
    await svids.status;
  });

  test("a foreign bundle that is missing is withheld, and never the identity", async () => {
    await set(...roots.slice(0, 1));
    const entry = await server.createEntry({
      spiffeId: "spiffe://example.org/withheld",
      parentId: agent.id(),
      selectors: [OWN_SELECTOR],
      federates_with: [PARTNER],
    });
    await agent.untilLogged("Entry created", { entry: entry.id });
    const svids = client.svids();
    expect(Object.keys((await svids.x509Svids()).federated_bundles)).toEqual([PARTNER_ID]);
    const database = new pg.Client({ connectionString: server.databaseUrl });
    await database.connect();
    await database.query("delete from bundles where trust_domain = $1", [PARTNER]);
    await database.end();
    const without = await svids.x509Svids(2);
    expect(without.federated_bundles).toEqual({});
    expect(without.svids.map(({ spiffe_id }) => spiffe_id)).toEqual(["spiffe://example.org/withheld"]);
    expect(await server.admin.entry.GetEntry({ id: entry.id })).toMatchObject({ federates_with: [PARTNER] });
  });
});
