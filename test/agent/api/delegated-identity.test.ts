import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { CachedEntry } from "../../../agent/cache/entry.ts";
import { type Channel, dialUnix } from "../../../src/rpc/dial.ts";
import type { SubscribeToX509SVIDsRequest } from "../../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsRequest.ts";
import type { SubscribeToX509SVIDsResponse__Output } from "../../../src/rpc/gen/spire/api/agent/delegatedidentity/v1/SubscribeToX509SVIDsResponse.ts";
import { DelegatedIdentityApi, DelegatedIdentityPartsApi } from "../../../src/rpc/protos.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { collect } from "../../support/collect.ts";
import { bundlesOf, cachedEntry, Endpoint } from "../../support/endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { isRoot, NOBODY, startWorkload } from "../../support/workload.ts";

const PARTNER = parseTrustDomain("partner.test");
const mine = [`unix:uid:${process.getuid?.()}`];
const DELEGATE = parseSpiffeId("spiffe://example.org/delegate");
const delegate = cachedEntry({ id: "delegate", selectors: mine, createdAt: 1 });
const web = cachedEntry({
  id: "web",
  selectors: ["k8s:ns:web"],
  createdAt: 2,
  hint: "inside",
  federatesWith: [PARTNER],
});
const admin = cachedEntry({ id: "admin", selectors: ["k8s:ns:web"], createdAt: 3, admin: true });
const nested = cachedEntry({ id: "nested", selectors: ["k8s:ns:web"], createdAt: 4, downstream: true });
const nobodys = cachedEntry({ id: "nobody", selectors: [`unix:uid:${NOBODY}`], createdAt: 5 });
const WEB = { selectors: [{ type: "k8s", value: "ns:web" }] };
const UNATTESTED = { kind: "unavailable", message: "workload attestation failed" };

let root: TestCa;
let rootB: TestCa;
let endpoint: Endpoint;
let channel: Channel;
beforeAll(async () => {
  root = await createCa({ trustDomain: "example.org" });
  rootB = await createCa({ trustDomain: "partner.test" });
  endpoint = await Endpoint.start({ bundles: bundlesOf(root), delegates: [DELEGATE] });
  channel = dialUnix(endpoint.adminPath);
});
afterAll(async () => {
  channel[Symbol.dispose]();
  await endpoint[Symbol.asyncDispose]();
});
let issued: ReadonlyMap<string, Issued>;
beforeEach(async () => {
  issued = await grant(delegate, web, admin, nested, nobodys);
});

const issueFor = ({ spiffeId }: CachedEntry): Promise<Issued> => root.issue({ id: spiffeId });

async function grant(...entries: readonly CachedEntry[]): Promise<ReadonlyMap<string, Issued>> {
  const svids = await Promise.all(entries.map(async (entry) => [entry, await issueFor(entry)] as const));
  await endpoint.replace(entries, bundlesOf(root, rootB));
  await endpoint.accept(...svids);
  return new Map(svids.map(([{ id }, svid]) => [id, svid]));
}

const api = () => channel.client(DelegatedIdentityApi);
const pathsOf = ({ x509_svids }: SubscribeToX509SVIDsResponse__Output) =>
  x509_svids.map(({ x509_svid }) => x509_svid?.id?.path);

const svids = (request: SubscribeToX509SVIDsRequest) =>
  collect((options) => api().SubscribeToX509SVIDs(request, options));

describe("SubscribeToX509SVIDs", () => {
  test("T-W7 gives by selectors the ordinary identities with their keys, never admin or downstream ones", async () => {
    using stream = svids(WEB);
    const answer = await stream.answer(1);
    expect(pathsOf(answer)).toEqual(["/web"]);
    const [found] = answer.x509_svids;
    const svid = issued.get("web")!;
    expect(found?.x509_svid).toMatchObject({
      id: { trust_domain: "example.org", path: "/web" },
      cert_chain: svid.chain.map((der) => Buffer.from(der)),
      expires_at: String(svid.certificate.notAfter.getTime() / 1000),
      hint: "inside",
    });
    expect(found?.x509_svid_key).toEqual(Buffer.from(svid.privateKey));
    expect(answer.federates_with).toEqual(["spiffe://partner.test"]);
  });

  test("pushes rotation and withdrawal, to the last identity and beyond, as SPIRE does", async () => {
    using stream = svids(WEB);
    await stream.answer(1);
    const rotated = await issueFor(web);
    await endpoint.accept([web, rotated]);
    expect((await stream.answer(2)).x509_svids[0]?.x509_svid?.cert_chain).toEqual(
      rotated.chain.map((der) => Buffer.from(der)),
    );
    await endpoint.accept([admin, await issueFor(admin)]);
    await endpoint.replace([delegate], bundlesOf(root));
    expect(pathsOf(await stream.answer(3))).toEqual([]);
    await grant(delegate, web);
    await eventually("the identity is back", () => pathsOf(stream.answers.at(-1)!).includes("/web"));
  });

  test.each([
    { what: "neither", request: {} },
    { what: "both", request: { ...WEB, pid: process.pid } },
  ])("selectors and pid: $what is refused", async ({ request }) => {
    using stream = svids(request);
    expect(await stream.ended).toMatchObject({
      kind: "invalid",
      message: "must provide either selectors or non-zero PID, but not both",
    });
  });

  test("malformed selectors are refused", async () => {
    using stream = svids({ selectors: [{ type: "", value: "x" }] });
    expect(await stream.ended).toMatchObject({ kind: "invalid", message: "could not parse provided selectors" });
  });

  test.skipIf(!isRoot)("T-W1 by pid: the process is attested, and the stream ends with it", async () => {
    const socket = endpoint.path;
    await using workload = await startWorkload({ uid: NOBODY, gid: NOBODY, socket });
    using stream = svids({ pid: workload.pid });
    expect(pathsOf(await stream.answer(1))).toEqual(["/nobody"]);
    await workload.order({ do: "exit" });
    expect(await stream.ended).toMatchObject(UNATTESTED);
    await endpoint.accept([nobodys, await issueFor(nobodys)]);
    expect(stream.answers).toHaveLength(1);
  });

  test.skipIf(!isRoot)(
    "T-W1 by pid: a process that runs another program, or becomes another user, gets nothing more",
    async () => {
      for (const command of [
        { do: "exec", program: "/bin/sleep", args: ["60"] },
        { do: "become", uid: NOBODY },
      ] as const) {
        await using workload = await startWorkload({ socket: endpoint.path });
        using stream = svids({ pid: workload.pid });
        expect(pathsOf(await stream.answer(1))).toEqual(["/delegate"]);
        await workload.order(command);
        expect(await stream.ended).toMatchObject(UNATTESTED);
        expect(stream.answers).toHaveLength(1);
      }
    },
  );

  test.each([{ pid: -1 }, { pid: 2_147_483_647 }])("a pid that is nobody's: $pid", async (request) => {
    using stream = svids(request);
    expect(await stream.ended).toMatchObject(UNATTESTED);
  });

  test("T-W2 references by pid leave no descriptor behind", async () => {
    const fetchOne = async () => {
      using stream = svids({ pid: process.pid });
      await stream.answer(1);
    };
    await fetchOne();
    const before = (await endpoint.look()).descriptors;
    for (let round = 0; round < 20; round += 1) await fetchOne();
    await eventually("all are closed", async () => (await endpoint.look()).descriptors <= before);
  });
});

describe("the bundles", () => {
  test("all that are known, own and foreign, with each change", async () => {
    using stream = collect((options) => api().SubscribeToX509Bundles({}, options));
    expect((await stream.answer(1)).ca_certificates).toEqual({
      "spiffe://example.org": Buffer.from(root.der),
      "spiffe://partner.test": Buffer.from(rootB.der),
    });
    await endpoint.accept([web, await issueFor(web)]);
    await endpoint.replace([delegate, web], bundlesOf(root));
    expect((await stream.answer(2)).ca_certificates).toEqual({ "spiffe://example.org": Buffer.from(root.der) });
  });

  test("JWT keys likewise, as JWK Sets by trust domain ID", async () => {
    using stream = collect((options) => api().SubscribeToJWTBundles({}, options));
    const { bundles } = await stream.answer(1);
    expect(Object.keys(bundles).sort()).toEqual(["spiffe://example.org", "spiffe://partner.test"]);
    expect(JSON.parse(bundles["spiffe://example.org"]!.toString())).toEqual({ keys: [] });
  });
});

describe("FetchJWTSVIDs", () => {
  test("needs an audience", async () => {
    await expect(api().FetchJWTSVIDs({ ...WEB, audience: [""] })).rejects.toMatchObject({
      kind: "invalid",
      message: "audience must be specified",
    });
  });

  test("T-W7 has no token for admin and downstream identities", async () => {
    await endpoint.replace([delegate, admin, nested], bundlesOf(root));
    await expect(api().FetchJWTSVIDs({ ...WEB, audience: ["a"] })).rejects.toMatchObject({
      kind: "denied",
      message: "no identity issued",
    });
  });
});

describe("T-W7 T-C5 who may ask", () => {
  const everyMethod = () => [
    svids(WEB),
    collect((options) => channel.client(DelegatedIdentityPartsApi).SubscribeToX509SVIDs(WEB, options)),
    collect((options) => api().SubscribeToX509Bundles({}, options)),
    collect((options) => api().SubscribeToJWTBundles({}, options)),
  ];

  test("a caller whose identities are not among the delegates is refused by every method", async () => {
    await grant({ ...delegate, spiffeId: parseSpiffeId("spiffe://example.org/other") }, web);
    const refused = { kind: "denied", message: "caller not configured as an authorized delegate" };
    for (const stream of everyMethod()) {
      expect(await stream.ended).toMatchObject(refused);
      expect(stream.answers).toEqual([]);
    }
    await expect(api().FetchJWTSVIDs({ ...WEB, audience: ["a"] })).rejects.toMatchObject(refused);
    const parts = channel.client(DelegatedIdentityPartsApi);
    using tokens = collect((options) => parts.FetchJWTSVIDs({ ...WEB, audience: ["a"] }, options));
    expect(await tokens.ended).toMatchObject(refused);
  });

  test("a caller without any identity is refused as by the Workload API", async () => {
    await grant(web);
    for (const stream of everyMethod())
      expect(await stream.ended).toMatchObject({ kind: "denied", message: "no identity issued" });
  });

  test("a delegate that is one no more loses its open streams at once", async () => {
    const streams = everyMethod();
    for (const stream of streams) await stream.answer(1);
    await endpoint.replace([web], bundlesOf(root, rootB));
    for (const stream of streams) expect(await stream.ended).toMatchObject({ kind: "denied" });
  });

  test("T-W1 a delegate that runs another program gets nothing more", async () => {
    const relay = join(endpoint.folder, "delegate-relay.sock");
    await using workload = await startWorkload({ socket: endpoint.adminPath, relay, handOver: true });
    using relayed = dialUnix(relay);
    using stream = collect((options) => relayed.client(DelegatedIdentityApi).SubscribeToX509SVIDs(WEB, options));
    await stream.answer(1);
    await workload.order({ do: "exec", program: "/bin/sleep", args: ["60"] });
    await eventually("the other program runs", async () => {
      using other = collect((options) => relayed.client(DelegatedIdentityApi).SubscribeToX509SVIDs(WEB, options));
      const end = await Promise.race([other.ended, other.answer(1).then(() => undefined)]);
      return (end as Error | undefined)?.message === UNATTESTED.message;
    });
    await endpoint.accept([web, await issueFor(web)]);
    expect(await stream.ended).toMatchObject(UNATTESTED);
    expect(stream.answers).toHaveLength(1);
  });
});
