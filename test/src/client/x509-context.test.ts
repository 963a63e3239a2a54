import { createPrivateKey } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { readX509Bundles, readX509Context } from "../../../src/client/x509-context.ts";
import { generateKey, privateKeyToPkcs8 } from "../../../src/crypto/key.ts";
import type { X509BundlesResponse, X509BundlesResponse__Output } from "../../../src/rpc/gen/X509BundlesResponse.ts";
import type { X509SVID } from "../../../src/rpc/gen/X509SVID.ts";
import type { X509SVIDResponse, X509SVIDResponse__Output } from "../../../src/rpc/gen/X509SVIDResponse.ts";
import { WorkloadApi } from "../../../src/rpc/protos.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { makeWorld, svidMessage, svidPart, type World } from "./fixtures.ts";

const A = parseTrustDomain("example.org");
const B = parseTrustDomain("partner.test");

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});

/** As it comes out of the wire. */
function svids(message: X509SVIDResponse): X509SVIDResponse__Output {
  const { FetchX509SVID } = WorkloadApi.methods();
  return FetchX509SVID?.responseDeserialize(
    Buffer.from(FetchX509SVID.responseSerialize(message)),
  ) as X509SVIDResponse__Output;
}

function bundles(message: X509BundlesResponse): X509BundlesResponse__Output {
  const { FetchX509Bundles } = WorkloadApi.methods();
  return FetchX509Bundles?.responseDeserialize(
    Buffer.from(FetchX509Bundles.responseSerialize(message)),
  ) as X509BundlesResponse__Output;
}

const pem = (): Buffer => Buffer.from(world.leafA.pem);
const keyDer = (type: "sec1" | "pkcs8", encrypt = false): Buffer => {
  const key = createPrivateKey({ key: Buffer.from(world.leafA.privateKey), format: "der", type: "pkcs8" });
  if (type === "sec1") return key.export({ format: "der", type });
  return key.export({ format: "der", type, ...(encrypt && { cipher: "aes-256-cbc", passphrase: "x" }) });
};

describe("a sound message", () => {
  test("WAPI-20 gives leaf and intermediates in order, with the key of the leaf", () => {
    const { svids: read } = readX509Context(svids(svidMessage(world)));
    expect(read[0].chain.map(({ raw }) => Buffer.from(raw))).toEqual(world.leafA.chain.map(Buffer.from));
    expect(privateKeyToPkcs8(read[0].privateKey)).toEqual(Buffer.from(world.leafA.privateKey));
    expect(read[0].expiresAt).toEqual(world.leafA.certificate.notAfter);
  });

  test("WAPI-23 gives bundles by trust domain, the own one from the SVID", () => {
    const message = svidMessage(world, { federated_bundles: { "spiffe://partner.test": world.rootB.der } });
    const read = readX509Context(svids(message));
    expect([...read.bundles.keys()].sort()).toEqual([A, B]);
    expect(read.bundles.get(B)?.authorities.map(({ raw }) => Buffer.from(raw))).toEqual([Buffer.from(world.rootB.der)]);
  });

  test("WAPI-22 several certificates in a bundle follow each other without anything between", () => {
    const both = Buffer.concat([world.rootA.der, world.rootB.der]);
    const message = svidMessage(world, { svids: [svidPart(world, world.leafA, { bundle: both })] });
    expect(readX509Context(svids(message)).bundles.get(A)?.authorities).toHaveLength(2);
  });

  test("WAPI-19 the own bundle never comes from the federated ones", () => {
    const message = svidMessage(world, { federated_bundles: { "spiffe://example.org": world.rootB.der } });
    const own = readX509Context(svids(message)).bundles.get(A)?.authorities;
    expect(own?.map(({ raw }) => Buffer.from(raw))).toEqual([Buffer.from(world.rootA.der)]);
  });

  test("WAPI-62 keeps the order: the first is the default identity", async () => {
    const other = await world.intA.issue({ id: "spiffe://example.org/web-ext" });
    const message = svidMessage(world, { svids: [svidPart(world, other), svidPart(world, world.leafA)] });
    const ids = readX509Context(svids(message)).svids.map(({ id }) => id);
    expect(ids).toEqual(["spiffe://example.org/web-ext", "spiffe://example.org/web"]);
  });

  test("WAPI-28 WAPI-27 of a repeated hint the first is taken; empty hints are no hints", async () => {
    const [a, b, c, d] = await Promise.all(
      ["a", "b", "c", "d"].map((name) => world.intA.issue({ id: `spiffe://example.org/${name}` })),
    );
    const parts = [
      svidPart(world, a!, { hint: "h" }),
      svidPart(world, b!, { hint: "h" }),
      svidPart(world, c!),
      svidPart(world, d!),
    ];
    const read = readX509Context(svids({ svids: parts })).svids.map(({ id, hint }) => [id.slice(-1), hint]);
    expect(read).toEqual([
      ["a", "h"],
      ["c", ""],
      ["d", ""],
    ]);
  });

  test("WAPI-65 revocation lists may be missing", () => {
    expect(readX509Context(svids(svidMessage(world))).crls).toEqual([]);
  });
});

describe("WAPI-18 a message with a mandatory field unset is refused", () => {
  test.each<{ what: string; part: Partial<X509SVID>; message: RegExp }>([
    { what: "spiffe_id", part: { spiffe_id: "" }, message: /without SPIFFE ID/ },
    { what: "x509_svid", part: { x509_svid: Buffer.alloc(0) }, message: /missing certificate/ },
    { what: "x509_svid_key", part: { x509_svid_key: Buffer.alloc(0) }, message: /missing private key/ },
    { what: "bundle", part: { bundle: Buffer.alloc(0) }, message: /missing bundle/ },
  ])("$what", ({ part, message }) => {
    const read = () => readX509Context(svids({ svids: [svidPart(world, world.leafA, part)] }));
    expect(read).toThrow(message);
    expect(() => readX509Context(svids({ svids: [svidPart(world, world.leafA)] }))).not.toThrow();
  });

  test("svids", () => expect(() => readX509Context(svids({ svids: [] }))).toThrow(/no SVIDs in response/));
  test("bundles", () => expect(() => readX509Bundles(bundles({ bundles: {} }))).toThrow(/no bundles in response/));
});

describe("a message whose parts do not fit is refused", () => {
  test.each<{ what: string; part: () => Partial<X509SVID> | Promise<Partial<X509SVID>> }>([
    {
      what: "WAPI-20 the intermediate before the leaf",
      part: () => ({ x509_svid: Buffer.concat([...world.leafA.chain].reverse()) }),
    },
    { what: "WAPI-20 the certificate of another identity", part: () => ({ spiffe_id: "spiffe://example.org/other" }) },
    { what: "WAPI-21 a PEM key", part: () => ({ x509_svid_key: Buffer.from(world.leafA.keyPem) }) },
    { what: "WAPI-21 a SEC1 key", part: () => ({ x509_svid_key: keyDer("sec1") }) },
    { what: "WAPI-21 an encrypted PKCS#8 key", part: () => ({ x509_svid_key: keyDer("pkcs8", true) }) },
    {
      what: "WAPI-21 the key of another certificate",
      part: async () => ({ x509_svid_key: privateKeyToPkcs8((await generateKey("ec-p256")).privateKey) }),
    },
    { what: "WAPI-22 a PEM certificate", part: () => ({ x509_svid: pem() }) },
    {
      what: "WAPI-22 a byte after the certificates",
      part: () => ({ x509_svid: Buffer.concat([...world.leafA.chain, Buffer.of(0)]) }),
    },
    {
      what: "WAPI-22 a byte between the certificates",
      part: () => ({ x509_svid: Buffer.concat([world.leafA.der, Buffer.of(0), world.intA.der]) }),
    },
    { what: "WAPI-22 a PEM bundle", part: () => ({ bundle: Buffer.from(world.rootA.pem) }) },
    {
      what: "WAPI-22 a byte after the bundle",
      part: () => ({ bundle: Buffer.concat([world.rootA.der, Buffer.of(0)]) }),
    },
    { what: "ID-07 a malformed SPIFFE ID", part: () => ({ spiffe_id: "spiffe://Example.org/web" }) },
  ])("$what", async ({ part }) => {
    const message = svids({ svids: [svidPart(world, world.leafA, await part())] });
    expect(() => readX509Context(message)).toThrow(expect.objectContaining({ name: "Fault" }));
    expect(() => readX509Context(svids(svidMessage(world)))).not.toThrow();
  });

  test.each([
    { key: "spiffe://partner.test", ok: true },
    { key: "partner.test", ok: false },
    { key: "spiffe://partner.test/", ok: false },
    { key: "spiffe://partner.test/x", ok: false },
    { key: "spiffe://Partner.test", ok: false },
    { key: "", ok: false },
  ])("WAPI-23 a bundle key $key is accepted: $ok", ({ key, ok }) => {
    const read = [
      () => readX509Context(svids(svidMessage(world, { federated_bundles: { [key]: world.rootB.der } }))),
      () => readX509Bundles(bundles({ bundles: { [key]: world.rootB.der } })),
    ];
    for (const attempt of read) ok ? expect(attempt).not.toThrow() : expect(attempt).toThrow();
  });

  test("WAPI-65 a revocation list that is none", () => {
    const message = svidMessage(world, { crl: [Buffer.from("garbage")] });
    expect(() => readX509Context(svids(message))).toThrow(expect.objectContaining({ kind: "invalid" }));
  });
});

test("WAPI-24 an X.509 bundle holds certificates and no key of any other use", () => {
  const read = readX509Bundles(bundles({ bundles: { "spiffe://example.org": world.rootA.der } }));
  expect(Object.keys(read.bundles.get(A) ?? {}).sort()).toEqual(["authorities", "trustDomain"]);
});
