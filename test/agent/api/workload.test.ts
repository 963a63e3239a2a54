import { createPrivateKey } from "node:crypto";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { CachedEntry } from "../../../agent/cache/entry.ts";
import { parseCertificates } from "../../../src/crypto/certificate.ts";
import type { X509SVIDResponse__Output } from "../../../src/rpc/gen/X509SVIDResponse.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { bundlesOf, cachedEntry, Endpoint } from "../../support/endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { RawClient } from "../../support/raw-client.ts";
import { isRoot, NOBODY, startWorkload } from "../../support/workload.ts";

const PARTNER = parseTrustDomain("partner.test");
const NO_IDENTITY = { code: 7, message: "no identity issued" };
const mine = [`unix:uid:${process.getuid?.()}`];

const web = cachedEntry({ id: "web", selectors: mine, hint: "internal", createdAt: 1 });
const ext = cachedEntry({ id: "web-ext", selectors: mine, hint: "external", createdAt: 2, federatesWith: [PARTNER] });
const nobodys = cachedEntry({ id: "nobody", selectors: [`unix:uid:${NOBODY}`], createdAt: 3 });

let root: TestCa;
let middle: TestCa;
let rootB: TestCa;
beforeAll(async () => {
  root = await createCa({ trustDomain: "example.org" });
  middle = await root.intermediate();
  rootB = await createCa({ trustDomain: "partner.test" });
});

let endpoint: Endpoint;
let client: RawClient;
beforeAll(async () => {
  endpoint = await Endpoint.start({ bundles: bundlesOf(root) });
  client = new RawClient(endpoint.path);
});
beforeEach(() => endpoint.replace([], bundlesOf(root)));
afterAll(async () => {
  await client[Symbol.asyncDispose]();
  await endpoint[Symbol.asyncDispose]();
});

const issueFor = ({ spiffeId }: CachedEntry): Promise<Issued> => middle.issue({ id: spiffeId });

/** Entries as they are after a sync, each with an SVID. */
async function grant(...entries: readonly CachedEntry[]): Promise<ReadonlyMap<string, Issued>> {
  const issued = await Promise.all(entries.map(async (entry) => [entry, await issueFor(entry)] as const));
  await endpoint.replace(entries, bundlesOf(root, rootB));
  await endpoint.accept(...issued);
  return new Map(issued.map(([{ id }, svid]) => [id, svid]));
}

const idsOf = ({ svids }: X509SVIDResponse__Output): readonly string[] => svids.map(({ spiffe_id }) => spiffe_id);

describe("FetchX509SVID", () => {
  test("WAPI-01 WAPI-11 WAPI-25 WAPI-26 answers at once, with one message for each identity and every field set", async () => {
    const issued = await grant(web, ext);
    const call = client.svids();
    const { svids } = await call.x509Svids();
    expect(svids.map(({ spiffe_id, hint }) => [spiffe_id, hint])).toEqual([
      ["spiffe://example.org/web", "internal"],
      ["spiffe://example.org/web-ext", "external"],
    ]);
    for (const [index, entry] of [web, ext].entries()) {
      const svid = svids[index]!;
      expect(svid.x509_svid).toEqual(Buffer.concat(issued.get(entry.id)!.chain));
      expect(parseCertificates(svid.x509_svid)[0]?.uris).toEqual([svid.spiffe_id]);
      expect(svid.x509_svid_key).toEqual(Buffer.from(issued.get(entry.id)!.privateKey));
      expect(svid.bundle).toEqual(Buffer.from(root.der));
    }
    call.cancel();
  });

  test("WAPI-20 WAPI-21 WAPI-22 chain, key and bundles are DER, leaf first, the key an unencrypted PKCS#8", async () => {
    await grant(web, ext);
    const answer = await client.svids().x509Svids();
    const [svid] = answer.svids;
    const chain = parseCertificates(svid!.x509_svid);
    expect(chain.map(({ isCa }) => isCa)).toEqual([false, true]);
    expect(() => createPrivateKey({ key: svid!.x509_svid_key, format: "der", type: "pkcs8" })).not.toThrow();
    const bytes = answer.svids.flatMap((part) => [part.x509_svid, part.x509_svid_key, part.bundle]);
    for (const part of [...bytes, ...Object.values(answer.federated_bundles)])
      expect(part.includes("-----BEGIN")).toBe(false);
    expect(parseCertificates(svid!.bundle)).toHaveLength(1);
  });

  test("WAPI-23 federated bundles have the trust domain's ID as key", async () => {
    await grant(ext);
    const { federated_bundles } = await client.svids().x509Svids();
    expect(federated_bundles).toEqual({ "spiffe://partner.test": Buffer.from(rootB.der) });
  });

  test("a bundle that no entry of the caller federates with is not given", async () => {
    await grant(web);
    expect((await client.svids().x509Svids()).federated_bundles).toEqual({});
  });

  test("WAPI-27 of two entries with one hint the older is delivered; empty hints do not clash", async () => {
    const younger = cachedEntry({ id: "younger", selectors: mine, hint: "internal", createdAt: 9 });
    const plain = ["p1", "p2"].map((id) => cachedEntry({ id, selectors: mine }));
    await grant(younger, web, ...plain);
    const { svids } = await client.svids().x509Svids();
    expect(svids.map(({ spiffe_id, hint }) => [spiffe_id.slice(21), hint])).toEqual([
      ["web", "internal"],
      ["p1", ""],
      ["p2", ""],
    ]);
    const { lines } = await endpoint.look();
    expect(lines).toContainEqual(
      expect.objectContaining({ level: "warn", message: "Ignoring entry with duplicate hint" }),
    );
  });

  test("WAPI-62 the oldest entry comes first, in every message and on every stream", async () => {
    await grant(ext, web);
    const first = client.svids();
    expect(idsOf(await first.x509Svids())).toEqual(["spiffe://example.org/web", "spiffe://example.org/web-ext"]);
    await endpoint.accept([web, await issueFor(web)]);
    expect(idsOf(await first.x509Svids(2))).toEqual(["spiffe://example.org/web", "spiffe://example.org/web-ext"]);
    expect(idsOf(await client.svids().x509Svids())).toEqual(idsOf(await first.x509Svids(2)));
  });

  test("waits for an SVID that is still being signed, and then answers", async () => {
    await endpoint.replace([web], bundlesOf(root));
    const call = client.svids();
    const before = (await endpoint.look()).attestations;
    await eventually("the call is being served", async () => (await endpoint.look()).attestations >= before);
    await endpoint.accept([web, await issueFor(web)]);
    expect(idsOf(await call.x509Svids())).toEqual(["spiffe://example.org/web"]);
    expect(call.messages).toHaveLength(1);
  });

  test("each delivered SVID has a line in the debug log, without its key", async () => {
    await grant(web);
    await client.svids().x509Svids();
    const { lines } = await endpoint.look();
    const line = lines.findLast(({ message }) => message === "Fetched X.509 SVID");
    const fields = { registered: true, count: 1, spiffe_id: "spiffe://example.org/web", pid: process.pid };
    expect(line).toMatchObject({ level: "debug", fields: { ...fields, ttl: expect.any(Number) } });
    expect(JSON.stringify(lines)).not.toMatch(/PRIVATE KEY|x509_svid_key/);
  });

  test("WAPI-04 a field that the request does not know is ignored", async () => {
    await grant(web);
    const unknown = Buffer.from([0, 0, 0, 0, 4, 0x7a, 2, 0x68, 0x69]);
    const call = client.call("/SpiffeWorkloadAPI/FetchX509SVID", { "workload.spiffe.io": "true" }, unknown);
    expect(idsOf(await call.x509Svids())).toHaveLength(1);
  });
});

describe("a stream", () => {
  test("WAPI-09 WAPI-10 gets one message with the full state for each change, and none without", async () => {
    await grant(web, ext);
    const call = client.svids();
    await call.x509Svids();

    const rotated = await issueFor(web);
    await endpoint.accept([web, rotated]);
    const second = await call.x509Svids(2);
    expect(idsOf(second)).toHaveLength(2);
    expect(second.svids[0]?.x509_svid).toEqual(Buffer.concat(rotated.chain));
    expect(Object.keys(second.federated_bundles)).toEqual(["spiffe://partner.test"]);

    await endpoint.replace([web, ext], bundlesOf(root));
    expect((await call.x509Svids(3)).federated_bundles).toEqual({});

    const renamed = { ...web, hint: "renamed", revisionNumber: 1 };
    await endpoint.replace([renamed, ext], bundlesOf(root));
    expect((await call.x509Svids(4)).svids.map(({ hint }) => hint)).toEqual(["renamed", "external"]);

    await endpoint.replace([renamed], bundlesOf(root));
    expect(idsOf(await call.x509Svids(5))).toEqual(["spiffe://example.org/web"]);

    // Nothing that the caller would notice: the same state again, and another's entry.
    await endpoint.replace([renamed, nobodys], bundlesOf(root));
    await endpoint.replace([renamed], bundlesOf(root));
    await client.bundles().x509Bundles();
    expect(call.messages).toHaveLength(5);
  });

  test("WAPI-32 ends with PermissionDenied when the caller's last entry is removed, without an empty message", async () => {
    await grant(web);
    const svids = client.svids();
    const bundles = client.bundles();
    await Promise.all([svids.x509Svids(), bundles.x509Bundles()]);
    await endpoint.replace([], bundlesOf(root));
    expect(await Promise.all([svids.status, bundles.status])).toEqual([NO_IDENTITY, NO_IDENTITY]);
    expect([svids.messages.length, bundles.messages.length]).toEqual([1, 1]);
  });

  test("WAPI-12 a thousand open streams do not delay the next one", async () => {
    await grant(web);
    await using busy = new RawClient(endpoint.path);
    const many = Array.from({ length: 1000 }, () => busy.svids());
    await Promise.all(many.map((call) => call.x509Svids()));
    const spans: number[] = [];
    for (let sample = 0; sample < 50; sample += 1) {
      const started = performance.now();
      const call = client.svids();
      await call.first();
      spans.push(performance.now() - started);
      call.cancel();
    }
    spans.sort((a, b) => a - b);
    expect(spans[Math.floor(spans.length / 2)]).toBeLessThan(100);
    await endpoint.accept([web, await issueFor(web)]);
    await Promise.all(many.map((call) => call.x509Svids(2)));
  });
});

describe("FetchX509Bundles", () => {
  test("WAPI-01 WAPI-33 WAPI-23 gives the own bundle and those the caller's entries federate with", async () => {
    await grant(web, ext);
    const { bundles } = await client.bundles().x509Bundles();
    expect(bundles).toEqual({
      "spiffe://example.org": Buffer.from(root.der),
      "spiffe://partner.test": Buffer.from(rootB.der),
    });
  });

  test("WAPI-10 says nothing when only an SVID changes, and once when a bundle does", async () => {
    await grant(web);
    const bundles = client.bundles();
    const svids = client.svids();
    await Promise.all([bundles.x509Bundles(), svids.x509Svids()]);
    await endpoint.accept([web, await issueFor(web)]);
    await svids.x509Svids(2);
    await endpoint.replace([web], {
      ...bundlesOf(root),
      own: {
        ...bundlesOf(root).own,
        x509Authorities: [root, middle].map(({ der }) => ({ asn1: Buffer.from(der), tainted: false })),
      },
    });
    const second = await bundles.x509Bundles(2);
    expect(second.bundles["spiffe://example.org"]).toEqual(Buffer.concat([root.der, middle.der]));
    expect(bundles.messages).toHaveLength(2);
  });
});

describe("a caller without an identity", () => {
  test("WEP-25 WAPI-29 WAPI-34 gets PermissionDenied and no message", async () => {
    await endpoint.replace([nobodys], bundlesOf(root));
    for (const call of [client.svids(), client.bundles()]) {
      expect(await call.status).toEqual(NO_IDENTITY);
      expect(call.messages).toHaveLength(0);
    }
  });

  test("is logged as SPIRE logs it, with its PID and without its selectors", async () => {
    expect(await client.svids().status).toEqual(NO_IDENTITY);
    const { lines } = await endpoint.look();
    const line = lines.findLast(({ message }) => message === "No identity issued");
    expect(line).toMatchObject({
      level: "error",
      fields: { registered: false, pid: process.pid, service: "WorkloadAPI", method: "FetchX509SVID" },
    });
    expect(JSON.stringify(lines)).not.toContain("unix:uid");
  });

  test.skipIf(!isRoot)(
    "WAPI-06 WEP-20 is told by the kernel: the same request of another user has another answer",
    async () => {
      await grant(web, nobodys);
      const relay = join(endpoint.folder, "nobody.sock");
      await using _workload = await startWorkload({ uid: NOBODY, gid: NOBODY, socket: endpoint.path, relay });
      await using other = new RawClient(relay);
      expect(idsOf(await other.svids().x509Svids())).toEqual(["spiffe://example.org/nobody"]);
      expect(idsOf(await client.svids().x509Svids())).toEqual(["spiffe://example.org/web"]);
      await endpoint.replace([web], bundlesOf(root));
      expect(await other.svids().status).toEqual(NO_IDENTITY);
    },
  );
});

describe("an endpoint that lets unauthenticated verifiers in", () => {
  test("WAPI-34 gives them its own bundle, and nothing else", async () => {
    await using open = await Endpoint.start({ bundles: bundlesOf(root), allowUnauthenticatedVerifiers: true });
    await using raw = new RawClient(open.path);
    await open.replace([{ ...nobodys, federatesWith: [PARTNER] }], bundlesOf(root, rootB));
    const bundles = raw.bundles();
    expect((await bundles.x509Bundles()).bundles).toEqual({ "spiffe://example.org": Buffer.from(root.der) });
    expect(await raw.svids().status).toEqual(NO_IDENTITY);
    await open.replace([nobodys], bundlesOf(root, rootB));
    await open.replace([nobodys], bundlesOf(root));
    await raw.bundles().x509Bundles();
    expect(bundles.messages).toHaveLength(1);
  });
});

describe("an endpoint that may log some selectors", () => {
  test("logs those, and no others", async () => {
    await using open = await Endpoint.start({ bundles: bundlesOf(root), logSelectors: ["unix:uid", "unix:us"] });
    await using raw = new RawClient(open.path);
    await open.replace([], bundlesOf(root));
    expect(await raw.svids().status).toEqual(NO_IDENTITY);
    const line = (await open.look()).lines.find(({ message }) => message === "No identity issued");
    expect(line?.fields).toMatchObject({ selectors: mine[0] });
  });
});

describe("an endpoint that cannot answer yet", () => {
  test("WEP-23 says Unavailable before the first sync", async () => {
    await using young = await Endpoint.start({ bundles: bundlesOf(root) });
    await using raw = new RawClient(young.path);
    for (const call of [raw.svids(), raw.bundles()]) expect(await call.status).toMatchObject({ code: 14 });
    expect((await young.look()).attestations).toBe(0);
    await young.replace([], bundlesOf(root));
    expect(await raw.svids().status).toEqual(NO_IDENTITY);
  });

  test("WEP-23 T-W8 says Unavailable when the caller cannot be attested, and nothing of why", async () => {
    await using strict = await Endpoint.start({
      bundles: bundlesOf(root),
      discoverWorkloadPath: true,
      workloadSizeLimit: 1,
    });
    await using raw = new RawClient(strict.path);
    await strict.replace([web], bundlesOf(root));
    for (const call of [raw.svids(), raw.bundles()]) {
      expect(await call.status).toEqual({ code: 14, message: "workload attestation failed" });
      expect(call.messages).toHaveLength(0);
    }
    const { lines } = await strict.look();
    expect(lines).toContainEqual(
      expect.objectContaining({
        level: "error",
        message: "Workload attestation failed",
        fields: expect.objectContaining({ error: expect.stringContaining("exceeds size limit") }),
      }),
    );
  });

  test("T-W2 a thousand failed attestations over the wire leave no descriptor behind", async () => {
    await using strict = await Endpoint.start({
      bundles: bundlesOf(root),
      discoverWorkloadPath: true,
      workloadSizeLimit: 1,
    });
    await using raw = new RawClient(strict.path);
    await strict.replace([web], bundlesOf(root));
    await raw.svids().status;
    const before = (await strict.look()).descriptors;
    for (let round = 0; round < 20; round += 1) {
      const calls = Array.from({ length: 50 }, () => raw.svids());
      for (const call of calls) expect(await call.status).toMatchObject({ code: 14 });
    }
    expect((await strict.look()).descriptors).toBe(before);
  });
});
