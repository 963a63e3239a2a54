import "reflect-metadata";
import { generateKeyPairSync, X509Certificate } from "node:crypto";
import * as x509 from "@peculiar/x509";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey, localSigner } from "../../../src/crypto/key.ts";
import { parseName } from "../../../src/crypto/name.ts";
import { faultFrom } from "../../support/faults.ts";
import { protoId, startServer, type TestServer } from "../../support/server.ts";
import { names, plainCsr, strangeCsr, tamperedCsr } from "./csrs.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

describe("MintX509SVID", () => {
  async function mint(
    options: { readonly uris?: readonly string[]; readonly dnsNames?: readonly string[]; readonly commonName?: string },
    ttl = 0,
  ) {
    const { uris = ["spiffe://example.org/minted"], dnsNames = [], commonName } = options;
    const signer = await generateKey("ec-p256");
    const csr = await createCertificateRequest({
      signer,
      uris,
      dnsNames,
      ...(commonName === undefined ? {} : { subject: { organization: "Org", commonName } }),
    });
    return server.admin.svid.MintX509SVID({ csr, ttl });
  }

  test("honours URI, DNS names, subject and lifetime of the CSR, and nothing else", async () => {
    const csr = await strangeCsr(
      names({ type: "url", value: "spiffe://example.org/minted" }, { type: "email", value: "a@evil.test" }),
      new x509.BasicConstraintsExtension(true, 1, true),
    );
    const { svid } = await server.admin.svid.MintX509SVID({ csr, ttl: 60 });
    const leaf = parseCertificate(svid?.cert_chain[0] ?? new Uint8Array());
    expect(svid?.id).toEqual(protoId("spiffe://example.org/minted"));
    expect(leaf).toMatchObject({ uris: ["spiffe://example.org/minted"], dnsNames: [], isCa: false });
    expect(parseName(leaf.subject)).toMatchObject({ organization: ["Evil"], commonName: "evil" });
    expect(leaf.notAfter.getTime()).toBeLessThanOrEqual(Date.now() + 61_000);
    expect(new X509Certificate(leaf.raw).subjectAltName).toBe("URI:spiffe://example.org/minted");
  });

  test("the first DNS name becomes the common name", async () => {
    const { svid } = await mint({ dnsNames: ["b.test", "a.test"], commonName: "other" });
    const leaf = parseCertificate(svid?.cert_chain[0] ?? new Uint8Array());
    expect(leaf.dnsNames).toEqual(["b.test", "a.test"]);
    expect(parseName(leaf.subject)).toMatchObject({ commonName: "b.test" });
  });

  test.each(['a", "admin": "true', "{{ .Subject }}", "line\nbreak", "a,CN=b+OU=c", "\u202eevil", "é"])(
    "T-S5 the common name %j is a value and nothing more",
    async (commonName) => {
      const { svid } = await mint({ commonName });
      const leaf = parseCertificate(svid?.cert_chain[0] ?? new Uint8Array());
      expect(parseName(leaf.subject)).toEqual({ organization: ["Org"], commonName });
      expect(leaf.uris).toEqual(["spiffe://example.org/minted"]);
    },
  );

  test("a lifetime longer than the authority's ends with the authority", async () => {
    const { svid } = await mint({}, 2 ** 31 - 1);
    const { x509_authorities } = await server.admin.bundle.GetBundle({});
    const ends = x509_authorities.map(({ asn1 }) => parseCertificate(asn1).notAfter.getTime() / 1000);
    expect(ends).toContain(Number(svid?.expires_at));
  });

  test.each([
    { what: "no URI", options: { uris: [] }, message: "CSR URI SAN is required" },
    {
      what: "two URIs",
      options: { uris: ["spiffe://example.org/a", "spiffe://example.org/b"] },
      message: "only one URI SAN is expected",
    },
    {
      what: "the same URI twice",
      options: { uris: ["spiffe://example.org/a", "spiffe://example.org/a"] },
      message: "only one URI SAN is expected",
    },
    {
      what: "another scheme",
      options: { uris: ["https://example.org/a"] },
      message: /^CSR URI SAN is invalid: scheme is missing or invalid/,
    },
    {
      what: "another trust domain",
      options: { uris: ["spiffe://other.test/a"] },
      message: /^CSR URI SAN is invalid: .* is not a member/,
    },
    {
      what: "no path",
      options: { uris: ["spiffe://example.org"] },
      message: /^CSR URI SAN is invalid: .*path is empty$/,
    },
    {
      what: "T-S10 the server's ID",
      options: { uris: ["spiffe://example.org/spire/server"] },
      message: /^CSR URI SAN is invalid: .*reserved namespace$/,
    },
    {
      what: "T-S10 an agent's ID",
      options: { uris: ["spiffe://example.org/spire/agent/join_token/x"] },
      message: /^CSR URI SAN is invalid: .*reserved namespace$/,
    },
    {
      what: "T-S10 an encoded reserved ID",
      options: { uris: ["spiffe://example.org/%73pire/server"] },
      message: /^CSR URI SAN is invalid: path segment characters/,
    },
    {
      what: "T-S10 a walk into the reserved namespace",
      options: { uris: ["spiffe://example.org/x/../spire/server"] },
      message: /^CSR URI SAN is invalid: path cannot contain dot segments/,
    },
    { what: "a malformed DNS name", options: { dnsNames: ["a b"] }, message: /^CSR DNS name is invalid: / },
    {
      what: "a wildcard that covers another name",
      options: { dnsNames: ["*.a.test", "b.a.test"] },
      message: /^CSR DNS name contains a wildcard that covers another non-wildcard name: /,
    },
  ])("refuses $what", async ({ options, message }) => {
    expect(await faultFrom(mint(options))).toMatchObject({
      kind: "invalid",
      message: typeof message === "string" ? message : expect.stringMatching(message),
    });
  });

  test.each([
    { what: "no CSR", csr: async () => new Uint8Array(), ttl: 0, message: "missing CSR" },
    { what: "no DER", csr: async () => Buffer.from("x"), ttl: 0, message: /^malformed CSR: / },
    { what: "a bad signature", csr: tamperedCsr, ttl: 0, message: /^failed to verify CSR signature/ },
    { what: "a negative lifetime", csr: plainCsr, ttl: -1, message: "ttl must not be negative" },
  ])("refuses $what", async ({ csr, ttl, message }) => {
    expect(await faultFrom(server.admin.svid.MintX509SVID({ csr: await csr(), ttl }))).toMatchObject({
      kind: "invalid",
      message: typeof message === "string" ? message : expect.stringMatching(message),
    });
  });

  test("an RSA key of 2048 bits is signed", async () => {
    const signer = localSigner(generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey);
    const csr = await createCertificateRequest({ signer, uris: ["spiffe://example.org/rsa"] });
    const { svid } = await server.admin.svid.MintX509SVID({ csr });
    expect(Buffer.from(parseCertificate(svid?.cert_chain[0] ?? new Uint8Array()).publicKey)).toEqual(
      Buffer.from(signer.publicKey),
    );
  });
});
