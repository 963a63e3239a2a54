import "reflect-metadata";
import { generateKeyPairSync, X509Certificate } from "node:crypto";
import * as x509 from "@peculiar/x509";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { agentRules, svidRules } from "../../../server/api/access.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { parseName } from "../../../src/crypto/name.ts";
import { faultFrom } from "../../support/faults.ts";
import { type Apis, protoId, startServer, type TestServer, type TestSvid } from "../../support/server.ts";
import { csrFor, names, plainCsr, strangeCsr, tamperedCsr } from "./csrs.ts";

const CODE = { ok: 0, invalid: 3, notFound: 5 } as const;

let server: TestServer;
let agentSvid: TestSvid;
let agent: Apis;
beforeAll(async () => {
  server = await startServer();
  agentSvid = await server.attest();
  agent = server.connect(agentSvid.tls);
});
afterAll(async () => {
  agent[Symbol.dispose]();
  await server[Symbol.asyncDispose]();
});

const uris = (...list: readonly string[]) => names(...list.map((value) => ({ type: "url" as const, value })));

let made = 0;
function entryFor(parentId: string, more: Partial<Parameters<TestServer["createEntry"]>[0]> = {}) {
  made += 1;
  return server.createEntry({ spiffeId: `spiffe://example.org/w${made}`, parentId, ...more });
}

async function one(params: { readonly entry_id?: string; readonly csr?: Uint8Array }, apis = agent) {
  const { results } = await apis.svid.BatchNewX509SVID({ params: [params] });
  expect(results).toHaveLength(1);
  return results[0];
}

describe("BatchNewX509SVID", () => {
  test("takes ID, DNS names and lifetime from the entry, and the key from the CSR", async () => {
    const entry = await entryFor(agentSvid.id, { dns_names: ["b.test", "a.test"], x509_svid_ttl: 120 });
    const signer = await generateKey("ec-p384");
    const before = Math.floor(Date.now() / 1000);
    const result = await one({
      entry_id: entry.id,
      csr: await createCertificateRequest({ signer, dnsNames: ["evil.test"] }),
    });
    expect(result?.status).toEqual({ code: CODE.ok, message: "OK" });
    expect(result?.svid?.id).toEqual(entry.spiffe_id);
    const leaf = parseCertificate(result?.svid?.cert_chain[0] ?? new Uint8Array());
    expect(leaf).toMatchObject({
      uris: [`spiffe://example.org${entry.spiffe_id?.path}`],
      dnsNames: ["b.test", "a.test"],
      isCa: false,
    });
    expect(parseName(leaf.subject)).toMatchObject({ country: ["US"], organization: ["SPIRE"], commonName: "b.test" });
    expect(Buffer.from(leaf.publicKey)).toEqual(Buffer.from(signer.publicKey));
    expect(Number(result?.svid?.expires_at)).toBe(leaf.notAfter.getTime() / 1000);
    expect(Number(result?.svid?.expires_at) - before).toBeGreaterThanOrEqual(120);
    expect(Number(result?.svid?.expires_at) - before).toBeLessThan(125);
    await server.untilLogged("Signed X509 SVID", {
      entry_id: entry.id,
      serial_num: leaf.serialNumber,
      caller_id: agentSvid.id,
    });
  });

  test("answers in order, every item with a status", async () => {
    const [first, second] = [await entryFor(agentSvid.id), await entryFor(agentSvid.id)];
    const csr = await plainCsr();
    const params = [
      { entry_id: second.id, csr },
      { entry_id: "", csr },
      { entry_id: first.id, csr: new Uint8Array() },
      { entry_id: "no-such-entry", csr },
      { entry_id: first.id, csr: Buffer.from("x") },
      { entry_id: first.id, csr: await tamperedCsr() },
      { entry_id: first.id, csr },
    ];
    const { results } = await agent.svid.BatchNewX509SVID({ params });
    expect(results.map(({ status }) => status)).toEqual([
      { code: CODE.ok, message: "OK" },
      { code: CODE.invalid, message: "missing entry ID" },
      { code: CODE.invalid, message: "missing CSR" },
      { code: CODE.notFound, message: "entry not found or not authorized" },
      { code: CODE.invalid, message: expect.stringMatching(/^malformed CSR: /) },
      { code: CODE.invalid, message: "invalid CSR signature" },
      { code: CODE.ok, message: "OK" },
    ]);
    expect(results.map(({ svid }) => svid?.id?.path)).toEqual([
      second.spiffe_id?.path,
      undefined,
      undefined,
      undefined,
      undefined,
      undefined,
      first.spiffe_id?.path,
    ]);
  });

  test("refuses a call without parameters", async () => {
    expect(await faultFrom(agent.svid.BatchNewX509SVID({}))).toMatchObject({
      kind: "invalid",
      message: "missing parameters",
    });
  });

  test("never signs more than 500 in one call", async () => {
    const csr = await plainCsr();
    const params = Array.from({ length: 501 }, () => ({ entry_id: "x", csr }));
    expect(await faultFrom(agent.svid.BatchNewX509SVID({ params }))).toMatchObject({
      kind: "exhausted",
      message: "rejecting request due to certificate signing rate limiting: rate (501) exceeds burst size (500)",
    });
    expect((await agent.svid.BatchNewX509SVID({ params: params.slice(0, 500) })).results).toHaveLength(500);
  });

  test("signs more at once when the limit is switched off", async () => {
    await using unlimited = await startServer({ server: { ratelimit: { signing: false } } });
    using apis = unlimited.connect((await unlimited.attest()).tls);
    const csr = await plainCsr();
    const params = Array.from({ length: 501 }, () => ({ entry_id: "x", csr }));
    expect((await apis.svid.BatchNewX509SVID({ params })).results).toHaveLength(501);
  });

  test("shares its limit with everything else that the X.509 authority signs on demand", () => {
    const limited = [svidRules.BatchNewX509SVID, svidRules.NewDownstreamX509CA, agentRules.RenewAgent];
    expect(limited.map(({ limit }) => limit?.bucket)).toEqual(["x509Signing", "x509Signing", "x509Signing"]);
  });

  test.each([
    { what: "RSA of 1024 bits", key: () => generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey },
    { what: "P-224", key: () => generateKeyPairSync("ec", { namedCurve: "secp224r1" }).publicKey },
    { what: "secp256k1", key: () => generateKeyPairSync("ec", { namedCurve: "secp256k1" }).publicKey },
  ])("T-X6 refuses a key of $what", async ({ key }) => {
    const entry = await entryFor(agentSvid.id);
    const csr = await csrFor(key().export({ type: "spki", format: "der" }));
    expect((await one({ entry_id: entry.id, csr }))?.status).toMatchObject({
      code: CODE.invalid,
      message: expect.stringMatching(/^malformed CSR: /),
    });
  });

  test("T-X6 refuses a CSR whose sender does not hold the key", async () => {
    const entry = await entryFor(agentSvid.id);
    const csr = await csrFor((await generateKey("ec-p256")).publicKey);
    expect((await one({ entry_id: entry.id, csr }))?.status).toEqual({
      code: CODE.invalid,
      message: "invalid CSR signature",
    });
  });
});

describe("T-C1 an agent gets what its entries say, whatever it asks for", () => {
  test("no agent gets an SVID of an entry that is another's, and cannot tell it from one that is not there", async () => {
    const agents = [agentSvid, await server.attest(), await server.attest()];
    const entries = await Promise.all(agents.map(({ id }) => entryFor(id)));
    const csr = await plainCsr();
    const missing = (await one({ entry_id: "no-such-entry", csr }))?.status;
    for (const [index, svid] of agents.entries()) {
      using apis = server.connect(svid.tls);
      for (const [owner, entry] of entries.entries()) {
        const result = await one({ entry_id: entry.id, csr }, apis);
        if (owner === index) expect(result?.svid?.id).toEqual(entry.spiffe_id);
        else expect(result).toEqual({ status: missing, svid: null });
      }
    }
  });

  test("the ID in the CSR is of no consequence, also when it is another agent's, the server's or an administrator's", async () => {
    const entry = await entryFor(agentSvid.id);
    for (const wish of ["spiffe://example.org/spire/server", agentSvid.id, "spiffe://other.test/w", "not even an ID"]) {
      const result = await one({ entry_id: entry.id, csr: await strangeCsr(uris(wish)) });
      expect(new X509Certificate(result?.svid?.cert_chain[0] ?? "").subjectAltName).toBe(
        `URI:spiffe://example.org${entry.spiffe_id?.path}`,
      );
    }
  });

  test("an entry that was deleted, moved to another parent or has ended is refused with the next call", async () => {
    const csr = await plainCsr();
    const [gone, moved, short] = [
      await entryFor(agentSvid.id),
      await entryFor(agentSvid.id),
      await entryFor(agentSvid.id, { expires_at: 1 }),
    ];
    await server.admin.entry.BatchDeleteEntry({ ids: [gone.id] });
    await server.admin.entry.BatchUpdateEntry({
      entries: [{ id: moved.id, parent_id: protoId("spiffe://example.org/other") }],
      input_mask: { parent_id: true },
    });
    for (const { id } of [gone, moved, short])
      expect((await one({ entry_id: id, csr }))?.status?.code).toBe(CODE.notFound);
  });
});

describe("T-C2 a CSR of any shape", () => {
  const rows: readonly { readonly what: string; readonly csr: () => Promise<Uint8Array> }[] = [
    { what: "no URI", csr: () => strangeCsr() },
    { what: "two URIs", csr: () => strangeCsr(uris("spiffe://example.org/a", "spiffe://example.org/b")) },
    {
      what: "forty URIs",
      csr: () => strangeCsr(uris(...Array.from({ length: 40 }, (_, index) => `spiffe://example.org/${index}`))),
    },
    {
      what: "DNS, IP and e-mail names",
      csr: () =>
        strangeCsr(
          names(
            { type: "dns", value: "evil.test" },
            { type: "ip", value: "127.0.0.1" },
            { type: "email", value: "a@evil.test" },
          ),
        ),
    },
    { what: "another name (UPN)", csr: () => strangeCsr(names({ type: "upn", value: "root@evil.test" })) },
    { what: "CA:TRUE", csr: () => strangeCsr(new x509.BasicConstraintsExtension(true, 3, true)) },
    {
      what: "keyCertSign",
      csr: () =>
        strangeCsr(new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true)),
    },
    {
      what: "an extended key usage of code signing",
      csr: () => strangeCsr(new x509.ExtendedKeyUsageExtension(["1.3.6.1.5.5.7.3.3"], true)),
    },
    {
      what: "an unknown critical extension",
      csr: () => strangeCsr(new x509.Extension("1.2.3.4.5", true, new Uint8Array([5, 0]))),
    },
  ];

  test.each(rows)("with $what gives exactly what the entry says, or nothing", async ({ csr }) => {
    const entry = await entryFor(agentSvid.id, { dns_names: ["good.test"] });
    const result = await one({ entry_id: entry.id, csr: await csr() });
    if (result?.status?.code === CODE.invalid) return expect(result.svid).toBeNull();
    expect(result?.status).toEqual({ code: CODE.ok, message: "OK" });
    const leaf = new x509.X509Certificate(new Uint8Array(result?.svid?.cert_chain[0] ?? []));
    expect(leaf.subject).toBe("C=US, O=SPIRE, CN=good.test");
    expect(leaf.getExtension(x509.SubjectAlternativeNameExtension)?.names.toJSON()).toEqual([
      { type: "dns", value: "good.test" },
      { type: "url", value: `spiffe://example.org${entry.spiffe_id?.path}` },
    ]);
    expect(leaf.getExtension(x509.BasicConstraintsExtension)?.ca).toBe(false);
    expect(leaf.getExtension(x509.KeyUsagesExtension)?.usages).toBe(
      x509.KeyUsageFlags.digitalSignature | x509.KeyUsageFlags.keyEncipherment | x509.KeyUsageFlags.keyAgreement,
    );
    expect(leaf.getExtension(x509.ExtendedKeyUsageExtension)?.usages).toEqual([
      "1.3.6.1.5.5.7.3.1",
      "1.3.6.1.5.5.7.3.2",
    ]);
    expect(leaf.extensions.map(({ type }) => type).sort()).toEqual([
      "2.5.29.14",
      "2.5.29.15",
      "2.5.29.17",
      "2.5.29.19",
      "2.5.29.35",
      "2.5.29.37",
    ]);
  });

  test("most of them are signed all the same, since the key is all that counts", async () => {
    const entry = await entryFor(agentSvid.id);
    const results = await Promise.all(
      rows.slice(0, 4).map(async ({ csr }) => one({ entry_id: entry.id, csr: await csr() })),
    );
    expect(results.map((result) => result?.status?.code)).toEqual([CODE.ok, CODE.ok, CODE.ok, CODE.ok]);
  });
});
