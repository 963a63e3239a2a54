import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Bundle } from "../../../src/rpc/gen/spire/api/types/Bundle.ts";
import type { FederationRelationship } from "../../../src/rpc/gen/spire/api/types/FederationRelationship.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa } from "../../support/pki.ts";
import { startServer, type TestServer } from "../../support/server.ts";

let server: TestServer;
let roots: Buffer[];
beforeAll(async () => {
  server = await startServer();
  roots = await Promise.all([1, 2].map(async () => Buffer.from((await createCa({ trustDomain: "b.test" })).der)));
});
afterAll(() => server[Symbol.asyncDispose]());
const api = () => server.admin.trustDomain;

const OK = { code: 0, message: "OK" };
const bundle = (at: number, fields: Partial<Bundle> = {}): Bundle => ({
  trust_domain: "b.test",
  x509_authorities: [{ asn1: roots[at] ?? Buffer.alloc(0), tainted: false }],
  jwt_authorities: [],
  wit_authorities: [],
  refresh_hint: "60",
  sequence_number: "7",
  ...fields,
});
const web = (fields: FederationRelationship = {}): FederationRelationship => ({
  trust_domain: "b.test",
  bundle_endpoint_url: "https://127.0.0.1:1/bundle",
  https_web: {},
  ...fields,
});
const spiffe = (fields: FederationRelationship = {}): FederationRelationship => {
  const { https_web: _, ...rest } = web(fields);
  return { https_spiffe: { endpoint_spiffe_id: "spiffe://b.test/spire/server" }, ...rest };
};
/** As it comes back over the wire. */
const received = (sent: FederationRelationship): FederationRelationship => ({
  trust_domain_bundle: null,
  ...sent,
  bundle_endpoint_profile: sent.https_web === undefined ? "https_spiffe" : "https_web",
});
const ALL = { bundle_endpoint_url: true, bundle_endpoint_profile: true, trust_domain_bundle: true };
const NONE = { bundle_endpoint_url: false, bundle_endpoint_profile: false, trust_domain_bundle: false };

async function create(...federation_relationships: FederationRelationship[]) {
  return (await api().BatchCreateFederationRelationship({ federation_relationships })).results;
}

async function everyName(): Promise<string[]> {
  const { federation_relationships } = await api().ListFederationRelationships({ output_mask: NONE });
  return federation_relationships.map(({ trust_domain }) => trust_domain);
}

beforeEach(async () => {
  await api().BatchDeleteFederationRelationship({ trust_domains: await everyName() });
  await server.admin.bundle.BatchDeleteFederatedBundle({ trust_domains: ["b.test"], mode: "DELETE" });
});

describe("creating relationships", () => {
  test("both profiles come back as they went in, from create, get and list", async () => {
    const second = spiffe({ trust_domain: "c.test" });
    expect(await create(web(), second)).toEqual([
      { status: OK, federation_relationship: received(web()) },
      { status: OK, federation_relationship: received(second) },
    ]);
    expect(await api().GetFederationRelationship({ trust_domain: "b.test" })).toEqual(received(web()));
    expect((await api().ListFederationRelationships({})).federation_relationships).toEqual([
      received(web()),
      received(second),
    ]);
  });

  test("an initial bundle is stored, is the federated bundle, and outlives the relationship", async () => {
    const given = spiffe({ trust_domain_bundle: bundle(0) });
    expect(await create(given)).toEqual([{ status: OK, federation_relationship: received(given) }]);
    expect(await server.admin.bundle.GetFederatedBundle({ trust_domain: "b.test" })).toEqual(bundle(0));
    const { results } = await api().BatchDeleteFederationRelationship({ trust_domains: ["b.test", "b.test", "", "B"] });
    expect(results).toEqual([
      { status: OK, trust_domain: "b.test" },
      { status: { code: 5, message: "federation relationship not found" }, trust_domain: "b.test" },
      { status: { code: 3, message: "missing trust domain" }, trust_domain: "" },
      { status: { code: 3, message: expect.stringMatching(/^failed to parse trust domain: /) }, trust_domain: "B" },
    ]);
    expect(await server.admin.bundle.GetFederatedBundle({ trust_domain: "b.test" })).toEqual(bundle(0));
  });

  test("an https_spiffe endpoint whose bundle is not held is warned of", async () => {
    await create(spiffe());
    await server.untilLogged("bundle not found for the endpoint SPIFFE ID trust domain", {
      endpoint_spiffe_id: "spiffe://b.test/spire/server",
      trust_domain_id: "b.test",
    });
  });

  test.each([
    { ids: "FED-19 FED-20", profile: "https_web", made: web },
    { ids: "FED-36 FED-37", profile: "https_spiffe", made: spiffe },
  ])("$ids the URL of an $profile endpoint has the scheme https and no user", async ({ made }) => {
    const refused = ["http://b.test/", "ftp://b.test/", "//b.test/", "/bundle", "b.test"];
    const withUser = ["https://u@b.test/", "https://u:p@b.test/", "https://@b.test/"];
    const results = await create(
      ...[...refused, ...withUser].map((bundle_endpoint_url) => made({ bundle_endpoint_url })),
      made({ trust_domain: "x.test", bundle_endpoint_url: "HTTPS://b.test:8443/a/b?c=d" }),
    );
    const messages = results.map(({ status }) => String(status?.message));
    for (const message of messages.slice(0, refused.length)) expect(message).toMatch(/must use the https scheme$/);
    for (const message of messages.slice(refused.length, -1)) expect(message).toMatch(/must not contain user info$/);
    expect(results.at(-1)).toMatchObject({
      status: OK,
      federation_relationship: { bundle_endpoint_url: "https://b.test:8443/a/b?c=d" },
    });
  });

  test.each<{ what: string; given: FederationRelationship; message: string | RegExp }>([
    { what: "a bad trust domain", given: web({ trust_domain: "B" }), message: /: failed to parse trust domain: / },
    { what: "no URL", given: web({ bundle_endpoint_url: "" }), message: /must use the https scheme$/ },
    { what: "plain HTTP", given: web({ bundle_endpoint_url: "http://b.test" }), message: /must use the https scheme$/ },
    { what: "no host", given: web({ bundle_endpoint_url: "https:///x" }), message: /must specify the host$/ },
    {
      what: "a URL only browsers read",
      given: web({ bundle_endpoint_url: "https:b.test" }),
      message: /specify the host$/,
    },
    {
      what: "user information",
      given: web({ bundle_endpoint_url: "https://u:p@b.test" }),
      message: /contain user info$/,
    },
    {
      what: "a bad port",
      given: web({ bundle_endpoint_url: "https://b.test:99999" }),
      message: /parse bundle endpoint URL/,
    },
    {
      what: "a line break",
      given: web({ bundle_endpoint_url: "https://b.test/\nx" }),
      message: /parse bundle endpoint URL/,
    },
    {
      what: "no profile",
      given: { trust_domain: "b.test", bundle_endpoint_url: "https://b.test" },
      message: "failed to convert federation relationship: unsupported bundle endpoint profile type: <nil>",
    },
    {
      what: "a bad endpoint SPIFFE ID",
      given: spiffe({ https_spiffe: { endpoint_spiffe_id: "b.test" } }),
      message: /: failed to parse endpoint SPIFFE ID: /,
    },
    {
      what: "the bundle of another trust domain",
      given: web({ trust_domain_bundle: { trust_domain: "c.test" } }),
      message:
        'failed to convert federation relationship: trust domain bundle ("c.test") must match the trust domain of the federation relationship ("b.test")',
    },
    {
      what: "a bundle that does not parse",
      given: web({ trust_domain_bundle: { trust_domain: "b.test", x509_authorities: [{ asn1: Buffer.from("x") }] } }),
      message: /: failed to parse bundle: unable to parse X.509 authority: /,
    },
    {
      what: "T-F1 the own trust domain",
      given: web({ trust_domain: "example.org" }),
      message: "unable to create federation relationship for server trust domain",
    },
  ])("$what is refused, and the item before and after it are not", async ({ given, message }) => {
    const results = await create(web({ trust_domain: "x.test" }), given, web({ trust_domain: "y.test" }));
    expect(results.map(({ status }) => status?.code)).toEqual([0, 3, 0]);
    expect(results[1]?.status?.message).toMatch(message);
    expect(results[1]?.federation_relationship).toBeNull();
    expect(await everyName()).toEqual(["x.test", "y.test"]);
  });

  test("a second one with the same trust domain is refused", async () => {
    expect((await create(web(), spiffe())).map(({ status }) => status)).toEqual([
      OK,
      {
        code: 6,
        message: "failed to create federation relationship: a relationship with this trust domain already exists",
      },
    ]);
  });
});

describe("updating relationships", () => {
  const update = async (given: FederationRelationship, input_mask?: Partial<typeof ALL>) => {
    const { results } = await api().BatchUpdateFederationRelationship({
      federation_relationships: [given],
      input_mask: input_mask === undefined ? null : { ...NONE, ...input_mask },
    });
    return results[0];
  };
  const elsewhere = spiffe({
    bundle_endpoint_url: "https://localhost:1/",
    https_spiffe: { endpoint_spiffe_id: "spiffe://b.test/other" },
  });

  test("a mask names what changes; what it leaves out is not looked at", async () => {
    const before = web({ trust_domain_bundle: bundle(0) });
    await create(before);
    const bundle_endpoint_url = "https://localhost:1/";
    const byUrl = { ...before, bundle_endpoint_url };
    expect(await update({ trust_domain: "b.test", bundle_endpoint_url }, { bundle_endpoint_url: true })).toEqual({
      status: OK,
      federation_relationship: received(byUrl),
    });
    const byProfile = { ...elsewhere, trust_domain_bundle: bundle(0) };
    const profileOnly = { ...elsewhere, bundle_endpoint_url: "no URL" };
    expect(await update(profileOnly, { bundle_endpoint_profile: true })).toEqual({
      status: OK,
      federation_relationship: received(byProfile),
    });
    const byBundle = { ...elsewhere, trust_domain_bundle: bundle(1) };
    const bundleOnly = { trust_domain: "b.test", trust_domain_bundle: bundle(1) };
    expect(await update(bundleOnly, { trust_domain_bundle: true })).toEqual({
      status: OK,
      federation_relationship: received(byBundle),
    });
    expect(await api().GetFederationRelationship({ trust_domain: "b.test" })).toEqual(received(byBundle));
    expect(await server.admin.bundle.GetFederatedBundle({ trust_domain: "b.test" })).toEqual(bundle(1));
  });

  test("without a mask everything is replaced, but a bundle that is not given stays", async () => {
    await create(web({ trust_domain_bundle: bundle(0) }));
    expect(await update(elsewhere)).toEqual({
      status: OK,
      federation_relationship: received({ ...elsewhere, trust_domain_bundle: bundle(0) }),
    });
  });

  test("one that is not there is NotFound, the own trust domain is refused", async () => {
    expect((await update(web()))?.status).toEqual({
      code: 5,
      message: "federation relationship not found",
    });
    expect((await update(web({ trust_domain: "example.org" })))?.status).toEqual({
      code: 3,
      message: "unable to update federation relationship for server trust domain",
    });
  });
});

describe("reading relationships", () => {
  test.each(Object.keys(ALL) as (keyof typeof ALL)[])("an output mask of %s shows it alone", async (field) => {
    const whole = spiffe({ trust_domain_bundle: bundle(0) });
    await create(whole);
    const output_mask = { ...NONE, [field]: true };
    const { trust_domain, bundle_endpoint_url, https_spiffe, trust_domain_bundle } = received(whole);
    const shown = {
      bundle_endpoint_url: { bundle_endpoint_url, trust_domain_bundle: null },
      bundle_endpoint_profile: {
        bundle_endpoint_url: "",
        https_spiffe,
        bundle_endpoint_profile: "https_spiffe",
        trust_domain_bundle: null,
      },
      trust_domain_bundle: { bundle_endpoint_url: "", trust_domain_bundle },
    }[field];
    expect(await api().GetFederationRelationship({ trust_domain: "b.test", output_mask })).toEqual({
      trust_domain,
      ...shown,
    });
  });

  test("Get refuses a bad name, and tells an unknown one", async () => {
    expect(await faultFrom(api().GetFederationRelationship({ trust_domain: "B" }))).toMatchObject({
      kind: "invalid",
      message: expect.stringMatching(/^failed to parse trust domain: /),
    });
    expect(await faultFrom(api().GetFederationRelationship({ trust_domain: "b.test" }))).toMatchObject({
      kind: "not_found",
      message: "federation relationship does not exist",
    });
  });

  test("T-F4 the list comes in pages, and never in a message that is too large", async () => {
    const names = ["x.test", "y.test", "z.test"];
    const large = Array.from({ length: 4_000 }, () => ({ asn1: roots[0] ?? Buffer.alloc(0), tainted: false }));
    for (const trust_domain of names) {
      const trust_domain_bundle = { trust_domain, x509_authorities: large };
      const [result] = await create(web({ trust_domain, trust_domain_bundle }));
      expect(result?.status).toEqual(OK);
    }
    expect(await everyName()).toEqual(names);
    const first = await api().ListFederationRelationships({ page_size: 2, output_mask: NONE });
    expect(first.federation_relationships.map(({ trust_domain }) => trust_domain)).toEqual(["x.test", "y.test"]);
    const page_token = first.next_page_token;
    const rest = await api().ListFederationRelationships({ page_size: 2, page_token, output_mask: NONE });
    expect(rest).toMatchObject({ federation_relationships: [{ trust_domain: "z.test" }], next_page_token: "" });
    expect(await faultFrom(api().ListFederationRelationships({}))).toMatchObject({ kind: "exhausted" });
    const whole = await api().ListFederationRelationships({ page_size: 3 });
    expect(whole.federation_relationships).toHaveLength(1);
    expect(whole.next_page_token).not.toBe("");
  });
});

describe("RefreshBundle", () => {
  test("refuses a bad name, and tells when there is no relationship", async () => {
    expect(await faultFrom(api().RefreshBundle({ trust_domain: "B" }))).toMatchObject({ kind: "invalid" });
    expect(await faultFrom(api().RefreshBundle({ trust_domain: "b.test" }))).toMatchObject({
      kind: "not_found",
      message: 'no relationship with trust domain "b.test"',
    });
  });

  test("says why a bundle could not be fetched", async () => {
    await create(web());
    expect(await faultFrom(api().RefreshBundle({ trust_domain: "b.test" }))).toMatchObject({
      kind: "unavailable",
      message: expect.stringMatching(/^failed to refresh bundle: could not connect: .*ECONNREFUSED/),
    });
  });
});
