import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Bundle, Bundle__Output } from "../../../src/rpc/gen/spire/api/types/Bundle.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa } from "../../support/pki.ts";
import { startServer, type TestServer } from "../../support/server.ts";

let server: TestServer;
let roots: Buffer[];
const spki = (key: KeyObject): Buffer => key.export({ format: "der", type: "spki" });
const newKey = (): Buffer => spki(generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey);

beforeAll(async () => {
  server = await startServer();
  roots = await Promise.all([1, 2, 3].map(async () => Buffer.from((await createCa({ trustDomain: "b.test" })).der)));
});
afterAll(() => server[Symbol.asyncDispose]());

const root = (at: number): { asn1: Buffer; tainted: boolean } => ({
  asn1: roots[at] ?? Buffer.alloc(0),
  tainted: false,
});
const jwtKey = (key_id: string, public_key = newKey()) => ({
  key_id,
  public_key,
  expires_at: "1900000000",
  tainted: false,
});
const foreign = (fields: Partial<Bundle> = {}): Bundle => ({
  trust_domain: "b.test",
  x509_authorities: [root(0)],
  jwt_authorities: [],
  wit_authorities: [],
  refresh_hint: "60",
  sequence_number: "7",
  ...fields,
});
const NONE = {
  x509_authorities: false,
  jwt_authorities: false,
  wit_authorities: false,
  refresh_hint: false,
  sequence_number: false,
};
const OK = { code: 0, message: "OK" };

async function everyForeign(): Promise<readonly Bundle__Output[]> {
  return (await server.admin.bundle.ListFederatedBundles({})).bundles;
}

beforeEach(async () => {
  const trust_domains = (await everyForeign()).map(({ trust_domain }) => trust_domain);
  await server.admin.bundle.BatchDeleteFederatedBundle({ trust_domains, mode: "DELETE" });
});

describe("the own bundle", () => {
  test("AppendBundle adds each authority once, and GetBundle has them at once", async () => {
    const before = await server.admin.bundle.GetBundle({});
    const keys = { jwt_authorities: [jwtKey("appended-jwt")], wit_authorities: [jwtKey("appended-wit")] };
    const after = await server.admin.bundle.AppendBundle({ x509_authorities: [root(0), root(0)], ...keys });
    expect(after.x509_authorities).toEqual([...before.x509_authorities, root(0)]);
    expect(after.jwt_authorities).toEqual([...before.jwt_authorities, ...keys.jwt_authorities]);
    expect(after.wit_authorities).toEqual([...before.wit_authorities, ...keys.wit_authorities]);
    expect(BigInt(after.sequence_number)).toBeGreaterThan(BigInt(before.sequence_number));
    expect(await server.admin.bundle.GetBundle({})).toEqual(after);
    expect(await server.admin.bundle.AppendBundle({ x509_authorities: [root(0)], ...keys })).toEqual(after);
  });

  test("AppendBundle honours the output mask and takes no taint from a caller", async () => {
    const answer = await server.admin.bundle.AppendBundle({
      x509_authorities: [{ ...root(1), tainted: true }],
      output_mask: { ...NONE, x509_authorities: true },
    });
    expect(answer).toMatchObject({ trust_domain: "example.org", jwt_authorities: [], sequence_number: "0" });
    expect(answer.x509_authorities).toContainEqual(root(1));
  });

  test.each([
    { what: "nothing", request: {}, message: "no authorities to append" },
    {
      what: "a JWT key that is none",
      request: { jwt_authorities: [jwtKey("bad", Buffer.from("malformed"))] },
      message: /^failed to convert JWT authority: /,
    },
    {
      what: "a JWT key without an ID",
      request: { jwt_authorities: [jwtKey("")] },
      message: "failed to convert JWT authority: missing key ID",
    },
    {
      what: "a certificate that is none",
      request: { x509_authorities: [{ asn1: Buffer.from("malformed") }] },
      message: /^failed to convert X.509 authority: /,
    },
  ])("AppendBundle refuses $what", async ({ request, message }) => {
    const fault = await faultFrom(server.admin.bundle.AppendBundle(request));
    expect(fault).toMatchObject({ kind: "invalid" });
    expect(fault.message).toMatch(message);
  });

  test("AppendBundle of a key that is there lets it live longer, never shorter, and never twice", async () => {
    const key = jwtKey("longer");
    const live = async (expires_at: string) => {
      const { jwt_authorities } = await server.admin.bundle.AppendBundle({ jwt_authorities: [{ ...key, expires_at }] });
      return jwt_authorities.filter(({ key_id }) => key_id === "longer").map((one) => one.expires_at);
    };
    expect(await live("2000000000")).toEqual(["2000000000"]);
    expect(await live("2000000060")).toEqual(["2000000060"]);
    expect(await live("2000000000")).toEqual(["2000000060"]);
    expect(await live("0")).toEqual(["0"]);
    expect(await live("2000000090")).toEqual(["0"]);
  });

  test("AppendBundle never lets a key ID name another key", async () => {
    await server.admin.bundle.AppendBundle({ jwt_authorities: [jwtKey("one-name")] });
    expect(await faultFrom(server.admin.bundle.AppendBundle({ jwt_authorities: [jwtKey("one-name")] }))).toMatchObject({
      kind: "already_exists",
      message: 'failed to append bundle: key ID "one-name" is the name of another key',
    });
  });

  test("CountBundles counts the own one too", async () => {
    expect(await server.admin.bundle.CountBundles({})).toEqual({ count: 1 });
    await server.admin.bundle.BatchSetFederatedBundle({ bundle: [foreign()] });
    expect(await server.admin.bundle.CountBundles({})).toEqual({ count: 2 });
  });
});

describe("federated bundles", () => {
  const api = () => server.admin.bundle;

  test("create, then get, then list: what went in comes out, without the own one", async () => {
    const whole = foreign({
      jwt_authorities: [jwtKey("k")],
      wit_authorities: [jwtKey("w")],
      sequence_number: "18446744073709551615",
    });
    const { results } = await api().BatchCreateFederatedBundle({ bundle: [whole] });
    expect(results).toEqual([{ status: OK, bundle: whole }]);
    expect(await api().GetFederatedBundle({ trust_domain: "b.test" })).toEqual(whole);
    expect(await everyForeign()).toEqual([whole]);
  });

  test("each item has its status, in order, and one that fails does not stop the others", async () => {
    const { results } = await api().BatchCreateFederatedBundle({
      bundle: [
        foreign(),
        foreign(),
        foreign({ trust_domain: "no://" }),
        foreign({ trust_domain: "example.org" }),
        foreign({ trust_domain: "c.test", x509_authorities: [{ asn1: Buffer.from("malformed") }] }),
        foreign({ trust_domain: "spiffe://d.test" }),
      ],
      output_mask: NONE,
    });
    expect(results.map(({ status }) => status)).toEqual([
      OK,
      { code: 6, message: "bundle already exists" },
      { code: 3, message: expect.stringMatching(/^trust domain argument is not valid: /) },
      { code: 3, message: "creating a federated bundle for the server's own trust domain is not allowed" },
      { code: 3, message: expect.stringMatching(/^failed to convert bundle: unable to parse X.509 authority: /) },
      OK,
    ]);
    expect(results.map(({ bundle }) => bundle?.trust_domain)).toEqual([
      "b.test",
      undefined,
      undefined,
      undefined,
      undefined,
      "d.test",
    ]);
  });

  test.each(Object.keys(NONE))("an update changes %s alone when its mask says so", async (field) => {
    const before = foreign({ jwt_authorities: [jwtKey("k")] });
    await api().BatchCreateFederatedBundle({ bundle: [before] });
    const other = foreign({
      x509_authorities: [root(1)],
      jwt_authorities: [jwtKey("new")],
      wit_authorities: [jwtKey("new")],
      refresh_hint: "61",
      sequence_number: "3",
    });
    const input_mask = { ...NONE, [field]: true };
    const after = { ...before, [field]: other[field as keyof Bundle] };
    const { results } = await api().BatchUpdateFederatedBundle({ bundle: [other], input_mask });
    expect(results).toEqual([{ status: OK, bundle: after }]);
    expect(await everyForeign()).toEqual([after]);
  });

  test("an update without a mask replaces everything, and one of an unknown bundle is NotFound", async () => {
    await api().BatchCreateFederatedBundle({ bundle: [foreign({ jwt_authorities: [jwtKey("k")] })] });
    const next = foreign({ x509_authorities: [root(1)], refresh_hint: "0", sequence_number: "8" });
    const { results } = await api().BatchUpdateFederatedBundle({
      bundle: [next, foreign({ trust_domain: "unknown.test" }), foreign({ trust_domain: "example.org" })],
    });
    expect(results).toEqual([
      { status: OK, bundle: next },
      { status: { code: 5, message: "bundle not found" }, bundle: null },
      {
        status: { code: 3, message: "updating a federated bundle for the server's own trust domain is not allowed" },
        bundle: null,
      },
    ]);
  });

  test("set creates and replaces, and takes no taint from a caller", async () => {
    const next = foreign({ x509_authorities: [{ ...root(1), tainted: true }] });
    const { results } = await api().BatchSetFederatedBundle({
      bundle: [foreign(), next, foreign({ trust_domain: "example.org" })],
    });
    expect(results.map(({ status }) => status)).toEqual([
      OK,
      OK,
      { code: 3, message: "setting a federated bundle for the server's own trust domain is not allowed" },
    ]);
    expect(await everyForeign()).toEqual([foreign({ x509_authorities: [root(1)] })]);
    await server.untilLogged("Bundle set successfully", { trust_domain_id: "b.test" });
  });

  test("T-F1 no method that writes foreign bundles reaches the own one", async () => {
    const own = await api().GetBundle({});
    for (const trust_domain of ["example.org", "spiffe://example.org", "spiffe://example.org/spire/server"]) {
      const bundle = [foreign({ trust_domain })];
      const answers = [
        await api().BatchCreateFederatedBundle({ bundle }),
        await api().BatchUpdateFederatedBundle({ bundle }),
        await api().BatchSetFederatedBundle({ bundle }),
        await api().BatchDeleteFederatedBundle({ trust_domains: [trust_domain], mode: "DELETE" }),
      ];
      expect(answers.map(({ results }) => results[0]?.status?.code)).toEqual([3, 3, 3, 3]);
      expect(await faultFrom(api().GetFederatedBundle({ trust_domain }))).toMatchObject({
        kind: "invalid",
        message: "getting a federated bundle for the server's own trust domain is not allowed",
      });
    }
    expect(await api().GetBundle({})).toEqual(own);
  });

  test("GetFederatedBundle: a mask hides, a bad name is invalid, an unknown one not found", async () => {
    await api().BatchSetFederatedBundle({ bundle: [foreign()] });
    const output_mask = { ...NONE, refresh_hint: true };
    expect(await api().GetFederatedBundle({ trust_domain: "b.test", output_mask })).toEqual(
      foreign({ x509_authorities: [], sequence_number: "0" }),
    );
    expect(await faultFrom(api().GetFederatedBundle({ trust_domain: "B" }))).toMatchObject({
      kind: "invalid",
      message: expect.stringMatching(/^trust domain argument is not valid: /),
    });
    expect(await faultFrom(api().GetFederatedBundle({ trust_domain: "c.test" }))).toMatchObject({
      kind: "not_found",
      message: "bundle not found",
    });
  });

  test("an agent gets a federated bundle, and no list of them", async () => {
    await api().BatchSetFederatedBundle({ bundle: [foreign()] });
    using agent = server.connect((await server.attest()).tls);
    expect(await agent.bundle.GetFederatedBundle({ trust_domain: "b.test" })).toEqual(foreign());
    expect(await faultFrom(agent.bundle.ListFederatedBundles({}))).toMatchObject({ kind: "denied" });
  });

  test("the list comes in full pages, and its last page has no token", async () => {
    const names = ["a.test", "b.test", "c.test"];
    await api().BatchSetFederatedBundle({ bundle: names.map((trust_domain) => foreign({ trust_domain })) });
    const output_mask = NONE;
    const first = await api().ListFederatedBundles({ page_size: 2, output_mask });
    expect(first.bundles.map(({ trust_domain }) => trust_domain)).toEqual(["a.test", "b.test"]);
    const rest = await api().ListFederatedBundles({ page_size: 2, page_token: first.next_page_token, output_mask });
    expect(rest).toMatchObject({ bundles: [{ trust_domain: "c.test" }], next_page_token: "" });
    expect(await faultFrom(api().ListFederatedBundles({ page_size: 2, page_token: "x" }))).toMatchObject({
      kind: "invalid",
    });
  });
});

describe("deleting federated bundles", () => {
  const remove = (mode: "RESTRICT" | "DELETE" | "DISSOCIATE") =>
    server.admin.bundle.BatchDeleteFederatedBundle({ trust_domains: ["b.test"], mode });
  const federating = (path: string) =>
    server.createEntry({
      spiffeId: `spiffe://example.org${path}`,
      parentId: "spiffe://example.org/node",
      federates_with: ["b.test"],
    });

  test("RESTRICT refuses while entries federate with it, DISSOCIATE takes it out of them, DELETE takes them along", async () => {
    await server.admin.bundle.BatchSetFederatedBundle({ bundle: [foreign()] });
    const { id } = await federating("/restrict");
    expect((await remove("RESTRICT")).results).toEqual([
      {
        status: {
          code: 9,
          message: "failed to delete federated bundle: cannot delete bundle; federated with 1 registration entries",
        },
        trust_domain: "b.test",
      },
    ]);
    expect((await remove("DISSOCIATE")).results).toEqual([{ status: OK, trust_domain: "b.test" }]);
    expect(await server.admin.entry.GetEntry({ id })).toMatchObject({ federates_with: [], revision_number: "1" });

    await server.admin.bundle.BatchSetFederatedBundle({ bundle: [foreign()] });
    const gone = await federating("/delete");
    expect((await remove("DELETE")).results).toEqual([{ status: OK, trust_domain: "b.test" }]);
    expect(await faultFrom(server.admin.entry.GetEntry({ id: gone.id }))).toMatchObject({ kind: "not_found" });
    expect((await remove("RESTRICT")).results[0]?.status).toEqual({ code: 5, message: "bundle not found" });
  });

  test("T-C3 an unknown mode is refused and deletes nothing", async () => {
    await server.admin.bundle.BatchSetFederatedBundle({ bundle: [foreign()] });
    const request = { trust_domains: ["b.test"], mode: 9 as unknown as "DELETE" };
    expect(await faultFrom(server.admin.bundle.BatchDeleteFederatedBundle(request))).toMatchObject({
      kind: "invalid",
      message: 'failed to parse deletion mode: unhandled delete mode "9"',
    });
    expect(await everyForeign()).toHaveLength(1);
  });
});

describe("T-F4 no answer is larger than a message may be", () => {
  /** About 1.2 megabytes. */
  const large = (trust_domain: string): Bundle =>
    foreign({
      trust_domain,
      jwt_authorities: Array.from({ length: 1100 }, (_, at) => jwtKey(`${at}${"x".repeat(1000)}`, KEY)),
    });
  const KEY = newKey();

  test("a list is cut into pages, refused without them, and whole under a mask", async () => {
    const names = ["a.test", "b.test", "c.test", "d.test"];
    for (const name of names)
      await server.admin.bundle.BatchSetFederatedBundle({ bundle: [large(name)], output_mask: NONE });
    expect(await faultFrom(server.admin.bundle.ListFederatedBundles({}))).toMatchObject({ kind: "exhausted" });
    const found: string[] = [];
    let page_token = "";
    do {
      const page = await server.admin.bundle.ListFederatedBundles({ page_size: 4, page_token });
      found.push(...page.bundles.map(({ trust_domain }) => trust_domain));
      page_token = page.next_page_token;
    } while (page_token !== "");
    expect(found).toEqual(names);
    expect((await server.admin.bundle.ListFederatedBundles({ output_mask: NONE })).bundles).toHaveLength(4);

    const updates = names.map((trust_domain) => foreign({ trust_domain, refresh_hint: "99" }));
    const input_mask = { ...NONE, refresh_hint: true };
    const { results } = await server.admin.bundle.BatchUpdateFederatedBundle({ bundle: updates, input_mask });
    expect(results.map(({ status }) => status?.code)).toEqual([0, 0, 0, 0]);
    expect(results.at(-1)).toEqual({ status: { code: 0, message: "" }, bundle: null });
    const { bundles } = await server.admin.bundle.ListFederatedBundles({
      output_mask: { ...NONE, refresh_hint: true },
    });
    expect(bundles.map(({ refresh_hint }) => refresh_hint)).toEqual(["99", "99", "99", "99"]);
  });
});
