import "reflect-metadata";
import { generateKeyPairSync } from "node:crypto";
import { Crypto } from "@peculiar/webcrypto";
import * as x509 from "@peculiar/x509";
import { beforeAll, describe, expect, test } from "vitest";
import type { Issuer } from "../../../server/ca/issue.ts";
import type { X509SigningAuthority } from "../../../server/ca/slots.ts";
import { createCertificateRequest, parseCertificateRequest } from "../../../src/crypto/csr.ts";
import { TAG } from "../../../src/crypto/der.ts";
import { encode, encodeOctets, encodeOid, encodeUnsigned, sequence } from "../../../src/crypto/der-writer.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { faultFrom } from "../../support/faults.ts";
import { dnsNamesOf, read, urisOf } from "./oracle.ts";
import { id, makeAuthority, makeEntry, makeIssuer } from "./support.ts";

const LEAF_BITS =
  x509.KeyUsageFlags.digitalSignature | x509.KeyUsageFlags.keyEncipherment | x509.KeyUsageFlags.keyAgreement;
const CA_BITS = x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign;

const crypto = new Crypto();
x509.cryptoProvider.set(crypto);

let authority: X509SigningAuthority;
let issuer: Issuer;
let publicKey: Uint8Array;

beforeAll(async () => {
  authority = await makeAuthority();
  issuer = makeIssuer(authority);
  publicKey = (await generateKey("ec-p256")).publicKey;
});

describe("what a CSR asks for", () => {
  test.each([
    { asks: "no URI", names: {} },
    { asks: "another registered ID", names: { uris: ["spiffe://example.org/admin"] } },
    { asks: "two URIs", names: { uris: ["spiffe://example.org/a", "spiffe://example.org/b"] } },
    { asks: "extra DNS names", names: { dnsNames: ["evil.test"] } },
    { asks: "a subject", names: { subject: { commonName: "root" } } },
  ])("T-C1 T-C2 a CSR that asks for $asks gets what the entry says", async ({ names }) => {
    const signer = await generateKey("ec-p256");
    const csr = parseCertificateRequest(await createCertificateRequest({ signer, ...names }));
    const leaf = read((await issuer.issueWorkload({ entry: makeEntry(), publicKey: csr.publicKey })).chain[0]);
    expect([urisOf(leaf), dnsNamesOf(leaf), leaf.subject]).toEqual([[id("/web")], [], "C=US, O=SPIRE"]);
    expect(Buffer.from(leaf.publicKey.rawData).equals(signer.publicKey)).toBe(true);
  });

  test("T-C2 X509-23 a CSR that asks for CA:TRUE, key usages, email, IP and other names gets none of them", async () => {
    const keys = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
    const request = await x509.Pkcs10CertificateRequestGenerator.create({
      name: "CN=root, O=Evil",
      keys,
      signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
      extensions: [
        new x509.BasicConstraintsExtension(true, 9, true),
        new x509.KeyUsagesExtension(CA_BITS, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.codeSigning]),
        new x509.SubjectAlternativeNameExtension([
          { type: "url", value: "spiffe://example.org/spire/server" },
          { type: "url", value: "spiffe://example.org/b" },
          { type: "dns", value: "evil.test" },
          { type: "ip", value: "10.0.0.1" },
          { type: "email", value: "a@b.test" },
          { type: "upn", value: "x@y.test" },
        ]),
      ],
    });
    const csr = parseCertificateRequest(Buffer.from(request.rawData));
    for (const issue of [
      () => issuer.issueWorkload({ entry: makeEntry(), publicKey: csr.publicKey }),
      () => issuer.issueAgent({ id: id("/spire/agent/join_token/t"), publicKey: csr.publicKey }),
    ]) {
      const { chain, id: issued } = await issue();
      const leaf = read(chain[0]);
      const names = leaf.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
      expect(names.map(({ type, value }) => `${type}:${value}`)).toEqual([`url:${issued}`]);
      expect(leaf.getExtension(x509.BasicConstraintsExtension)?.ca).toBe(false);
      expect(leaf.getExtension(x509.KeyUsagesExtension)?.usages).toBe(LEAF_BITS);
      expect(leaf.subject).toBe("C=US, O=SPIRE");
    }
  });

  test.each([
    { key: "RSA of 1024 bits", spki: () => generated("rsa", { modulusLength: 1024 }), says: /RSA key has 1024 bits/ },
    { key: "RSA of 8192 bits", spki: () => rsa(2n ** 8191n + 1n, 65_537n), says: /public key is too large/ },
    { key: "RSA with exponent 1", spki: () => rsa(2n ** 2047n + 1n, 1n), says: /RSA exponent/ },
    { key: "RSA with an even exponent", spki: () => rsa(2n ** 2047n + 1n, 65_536n), says: /RSA exponent/ },
    {
      key: "a key on P-224",
      spki: () => generated("ec", { namedCurve: "secp224r1" }),
      says: /unsupported elliptic curve/,
    },
    {
      key: "a key on secp256k1",
      spki: () => generated("ec", { namedCurve: "secp256k1" }),
      says: /unsupported elliptic curve/,
    },
    { key: "a point that is not on its curve", spki: () => offCurve(publicKey), says: /public key is not valid/ },
    { key: "an Ed25519 point of small order", spki: () => ed25519(1n), says: /small order/ },
    { key: "no key at all", spki: () => new Uint8Array([0x30, 0x00]), says: /ASN\.1|public key/ },
  ])("T-X6 $key is refused before signing, for every kind of leaf", async ({ spki, says }) => {
    const weak = spki();
    const sign = (): Promise<Uint8Array> => Promise.reject(new Error("signed"));
    const strict = makeIssuer({ ...authority, key: { ...authority.key, sign } });
    for (const work of [
      () => strict.issueWorkload({ entry: makeEntry(), publicKey: weak }),
      () => strict.issueAgent({ id: id("/spire/agent/join_token/t"), publicKey: weak }),
      () => strict.mint({ id: id("/m"), publicKey: weak, ttlSeconds: 0, dnsNames: [], subject: {} }),
    ]) {
      const fault = await faultFrom(work());
      expect([fault.kind, fault.message]).toEqual(["invalid", expect.stringMatching(says)]);
    }
  });
});

describe("IDs that are refused", () => {
  const mint = (text: string) =>
    faultFrom(issuer.mint({ id: parseSpiffeId(text), publicKey, ttlSeconds: 0, dnsNames: [], subject: {} }));

  test.each([
    { text: "spiffe://example.org", says: /path is empty \(X509-05/ },
    { text: "spiffe://example.org/spire", says: /reserved namespace \(T-S10/ },
    { text: "spiffe://example.org/spire/server", says: /reserved namespace \(T-S10/ },
    { text: "spiffe://example.org/spire/agent/join_token/t", says: /reserved namespace \(T-S10/ },
    { text: "spiffe://partner.test/web", says: /not a member of trust domain "example\.org"/ },
  ])("X509-05 T-S10 T-X1 a workload is never $text", async ({ text, says }) => {
    for (const fault of [
      await mint(text),
      await faultFrom(issuer.issueWorkload({ entry: makeEntry({ spiffeId: parseSpiffeId(text) }), publicKey })),
    ]) {
      expect([fault.kind, fault.message]).toEqual(["invalid", expect.stringMatching(says)]);
    }
  });

  test("T-S10 names that only look reserved are workloads", async () => {
    for (const path of ["/spirelike", "/a/spire/server"]) {
      const svid = await issuer.mint({ id: id(path), publicKey, ttlSeconds: 0, dnsNames: [], subject: {} });
      expect(svid.id).toBe(id(path));
    }
  });

  test.each(["/web", "/spire/server", "/spire/agents/x"])("T-S10 an agent is never %s", async (path) => {
    const fault = await faultFrom(issuer.issueAgent({ id: id(path), publicKey }));
    expect([fault.kind, fault.message]).toEqual(["invalid", expect.stringContaining("T-S10")]);
  });
});

function generated(type: "ec", options: { readonly namedCurve: string }): Uint8Array;
function generated(type: "rsa", options: { readonly modulusLength: number }): Uint8Array;
function generated(type: string, options: object): Uint8Array {
  const made = generateKeyPairSync(type as "rsa", options as { modulusLength: number });
  return made.publicKey.export({ type: "spki", format: "der" });
}

function rsa(modulus: bigint, exponent: bigint): Uint8Array {
  const algorithm = sequence(encodeOid("1.2.840.113549.1.1.1"), encode(TAG.null));
  return sequence(algorithm, encodeOctets(sequence(encodeUnsigned(modulus), encodeUnsigned(exponent))));
}

function ed25519(y: bigint): Uint8Array {
  const point = Buffer.from(y.toString(16).padStart(64, "0"), "hex").reverse();
  return sequence(sequence(encodeOid("1.3.101.112")), encodeOctets(point));
}

/** The same point with another y. */
function offCurve(spki: Uint8Array): Uint8Array {
  const changed = Buffer.from(spki);
  changed.writeUInt8((changed.at(-1) ?? 0) ^ 1, changed.length - 1);
  return changed;
}
