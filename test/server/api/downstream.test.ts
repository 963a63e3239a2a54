import { createPublicKey } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { verifyChain } from "../../../src/crypto/chain.ts";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey, subjectKeyId } from "../../../src/crypto/key.ts";
import { parseName } from "../../../src/crypto/name.ts";
import { faultFrom } from "../../support/faults.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";
import { plainCsr, tamperedCsr } from "./csrs.ts";

const DOWNSTREAM = "spiffe://example.org/downstream";

let server: TestServer;
let below: Apis;
beforeAll(async () => {
  server = await startServer({ server: { ca_ttl: "48h" } });
  const agent = await server.attest();
  await server.createEntry({ spiffeId: DOWNSTREAM, parentId: agent.id, downstream: true });
  below = server.connect((await server.mint(DOWNSTREAM)).tls);
});
afterAll(async () => {
  below[Symbol.dispose]();
  await server[Symbol.asyncDispose]();
});

describe("NewDownstreamX509CA", () => {
  test("X509-08 X509-09 X509-10 X509-14 X509-19 X509-24 signs SPIRE's template: the trust domain's ID, the signer's subject with its depth", async () => {
    const signer = await generateKey("ec-p384");
    const csr = await createCertificateRequest({
      signer,
      uris: ["spiffe://example.org/evil"],
      dnsNames: ["evil.test"],
    });
    const { ca_cert_chain, x509_authorities } = await below.svid.NewDownstreamX509CA({ csr, preferred_ttl: 7200 });
    const roots = x509_authorities.map(parseCertificate);
    const [ca, ...others] = ca_cert_chain.map(parseCertificate);
    const [root] = roots;
    if (ca === undefined || root === undefined) throw new Error("no certificate");
    expect([others, roots.length]).toEqual([[], 1]);
    expect(ca).toMatchObject({
      uris: ["spiffe://example.org"],
      dnsNames: [],
      isCa: true,
      pathLength: undefined,
      authorityKeyId: root.subjectKeyId,
      subjectKeyId: Buffer.from(subjectKeyId(signer.publicKey)).toString("hex"),
    });
    expect([...(ca.keyUsage ?? [])].sort()).toEqual(["cRLSign", "keyCertSign"]);
    expect(ca.extKeyUsage).toBeUndefined();
    expect(parseName(ca.subject)).toEqual({ ...parseName(root.subject), organizationalUnit: ["DOWNSTREAM-1"] });
    expect(Buffer.from(ca.publicKey)).toEqual(Buffer.from(signer.publicKey));
    const life = (ca.notAfter.getTime() - Date.now()) / 1000;
    expect(life).toBeGreaterThan(7100);
    expect(life).toBeLessThan(7210);
    expect(verifyChain({ chain: [ca], roots, at: new Date(Date.now()) })).toHaveLength(2);
  });

  test("without a preferred lifetime it is the signer's own, and never longer than that", async () => {
    const [none, long] = await Promise.all(
      [0, 2 ** 31 - 1].map(async (preferred_ttl) => {
        const answer = await below.svid.NewDownstreamX509CA({ csr: await plainCsr(), preferred_ttl });
        return parseCertificate(answer.ca_cert_chain[0] ?? new Uint8Array()).notAfter;
      }),
    );
    const { x509_authorities } = await below.bundle.GetBundle({});
    const { notAfter } = parseCertificate(x509_authorities[0]?.asn1 ?? new Uint8Array());
    expect([none, long]).toEqual([notAfter, notAfter]);
    await server.untilLogged("Signed X509 CA SVID", { ttl_reason: "the signing authority ends then" });
  });

  test.each([
    { what: "no CSR", csr: async () => new Uint8Array(), message: "malformed CSR" },
    { what: "no request at all", csr: async () => Buffer.from("x"), message: "malformed CSR" },
    { what: "a CSR that its key did not sign", csr: tamperedCsr, message: "invalid CSR signature" },
  ])("$what is refused", async ({ csr, message }) => {
    const fault = await faultFrom(below.svid.NewDownstreamX509CA({ csr: await csr(), preferred_ttl: 0 }));
    expect([fault.kind, fault.message]).toEqual(["invalid", expect.stringContaining(message)]);
  });
});

describe.each(["JWT", "WIT"] as const)("Publish%sAuthority", (kind) => {
  const publish = async (key: object | null) =>
    kind === "JWT"
      ? (await below.bundle.PublishJWTAuthority({ jwt_authority: key })).jwt_authorities
      : (await below.bundle.PublishWITAuthority({ wit_authority: key })).wit_authorities;
  const served = async () => {
    const { jwt_authorities, wit_authorities } = await below.bundle.GetBundle({});
    return kind === "JWT" ? jwt_authorities : wit_authorities;
  };

  test("the key stands in the bundle when the call returns, once, and the answer lists all", async () => {
    const { publicKey } = await generateKey("ec-p256");
    const key = { key_id: `below-${kind}`, public_key: publicKey, expires_at: 4_000_000_000, tainted: true };
    const before = await served();
    const answer = await publish(key);
    expect(answer.map(({ key_id }) => key_id)).toEqual([...before.map(({ key_id }) => key_id), key.key_id]);
    expect(answer.at(-1)).toMatchObject({ expires_at: "4000000000", tainted: false });
    expect(await served()).toEqual(answer);
    expect(await publish(key)).toEqual(answer);
  });

  test("WIT-39 T-X6 no key, no ID, a weak key and an ID of another key are refused", async () => {
    const { publicKey } = await generateKey("ec-p256");
    const other = await generateKey("ec-p256");
    await publish({ key_id: `taken-${kind}`, public_key: publicKey, expires_at: 0 });
    const weak = createPublicKey(WEAK).export({ format: "der", type: "spki" });
    const refused = async (key: object | null) => (await faultFrom(publish(key))).message;
    expect(await refused(null)).toBe(`missing ${kind} authority`);
    expect(await refused({ key_id: "", public_key: publicKey })).toContain("missing key ID");
    expect(await refused({ key_id: "k", public_key: Buffer.from("x") })).toContain(`invalid ${kind} authority`);
    expect(await refused({ key_id: "k", public_key: weak })).toContain("1024 bits");
    expect(await refused({ key_id: `taken-${kind}`, public_key: other.publicKey })).toContain("belongs to another key");
  });

  test("T-F4 T-F1 a key ID that fills a message is refused", async () => {
    const { publicKey } = await generateKey("ec-p256");
    const fault = await faultFrom(publish({ key_id: "k".repeat(1025), public_key: publicKey }));
    expect([fault.kind, fault.message]).toEqual([
      "invalid",
      `invalid ${kind} authority: key ID is longer than 1024 characters`,
    ]);
  });
});

test("T-F4 T-F1 a server below cannot fill the bundle until nobody reads it any more, and publishes again what it has", async () => {
  const { publicKey } = await generateKey("ec-p256");
  const key = (key_id: string) => ({ key_id, public_key: publicKey, expires_at: 4_000_000_000 });
  await below.bundle.PublishJWTAuthority({ jwt_authority: key("mine") });
  const { x509_authorities, jwt_authorities, wit_authorities } = await below.bundle.GetBundle({});
  const held = x509_authorities.length + jwt_authorities.length + wit_authorities.length;
  const others = Array.from({ length: 900 - held }, (_, index) => key(`other-${index}`));
  await server.admin.bundle.AppendBundle({ jwt_authorities: others });
  const fault = await faultFrom(below.bundle.PublishJWTAuthority({ jwt_authority: key("one more") }));
  expect([fault.kind, fault.message]).toEqual([
    "exhausted",
    "failed to publish JWT key: the bundle has no room for another key",
  ]);
  await below.bundle.PublishJWTAuthority({ jwt_authority: key("mine") });
  await server.admin.localAuthority.PrepareJWTAuthority({});
  expect((await below.bundle.GetBundle({})).jwt_authorities.length).toBe(jwt_authorities.length + others.length + 1);
});

const WEAK = `-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDdlatRjRjogo3WojgGHFHYLugd
UWAY9iR3fy4arWNA1KoS8kVw33cJibXr8bvwUAUparCwlvdbH6dvEOfou0/gCFQs
HUfQrSDv+MuSUMAe8jzKE4qW+jK+xQU9a03GUnKHkkle+Q0pX/g6jXZ7r1/xAK5D
o2kQ+X5xK9cipRgEKwIDAQAB
-----END PUBLIC KEY-----`;
