import "reflect-metadata";
import { X509Certificate } from "node:crypto";
import * as x509 from "@peculiar/x509";
import { describe, expect, test } from "vitest";
import { parseCertificate, parseCertificates } from "../../../src/crypto/certificate.ts";
import { type CertificateTemplate, signCertificate } from "../../../src/crypto/certificate-template.ts";
import { TAG } from "../../../src/crypto/der.ts";
import { encode, encodeOid, sequence } from "../../../src/crypto/der-writer.ts";
import { EXT_KEY_USAGE, EXTENSION } from "../../../src/crypto/extensions.ts";
import { generateKey, hexOf, KEY_TYPES, subjectKeyId } from "../../../src/crypto/key.ts";
import { encodeName } from "../../../src/crypto/name.ts";
import { signatureHolds } from "../../../src/crypto/signature.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { openssl } from "../../support/openssl.ts";
import { createCa } from "../../support/pki.ts";

const MALFORMED = refusal("invalid", "asn1-malformed");
const leafKey = await generateKey("ec-p256");
const caKey = await generateKey("ec-p256");

const TEMPLATE: CertificateTemplate = {
  serialNumber: 2n ** 128n - 1n,
  subject: { country: ["US"], organization: ["SPIRE"], commonName: "web.example.org" },
  issuer: { country: ["US"], organization: ["SPIFFE"], serialNumber: "1" },
  notBefore: new Date("2025-01-02T03:04:05Z"),
  notAfter: new Date("2055-01-02T03:04:05Z"),
  publicKey: leafKey.publicKey,
  kind: "leaf",
  uris: ["spiffe://example.org/web"],
  dnsNames: ["web.example.org", "*.web.example.org"],
  keyUsage: ["digitalSignature", "keyEncipherment", "keyAgreement"],
  extKeyUsage: [EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.clientAuth],
  subjectKeyId: subjectKeyId(leafKey.publicKey),
  authorityKeyId: subjectKeyId(caKey.publicKey),
};

describe("signed certificates", () => {
  test.each(KEY_TYPES)("a leaf signed with %s verifies in node:crypto, @peculiar/x509 and here", async (type) => {
    const signer = await generateKey(type);
    const der = await signCertificate(TEMPLATE, signer);
    const node = new X509Certificate(der);
    const issuerKey = (await createCa({ signer })).certificate.key();
    expect(node.verify(issuerKey)).toBe(true);
    expect(signatureHolds(parseCertificate(der), issuerKey)).toBe(true);
    const peculiar = new x509.X509Certificate(new Uint8Array(der));
    const publicKey = new x509.PublicKey(new Uint8Array(signer.publicKey));
    expect(await peculiar.verify({ publicKey, signatureOnly: true })).toBe(true);
  });

  test("openssl shows exactly what the template holds, in SPIRE's order", async () => {
    await using directory = await openssl();
    await directory.write("leaf.der", await signCertificate(TEMPLATE, caKey));
    const text = (await directory.run("x509", "-inform", "DER", "-in", "leaf.der", "-noout", "-text")).toString();
    const ski = hexOf(TEMPLATE.subjectKeyId)
      .toUpperCase()
      .replace(/..(?=.)/g, "$&:");
    const aki = hexOf(subjectKeyId(caKey.publicKey))
      .toUpperCase()
      .replace(/..(?=.)/g, "$&:");
    const extensions = text.slice(text.indexOf("X509v3 extensions:"), text.lastIndexOf("Signature Algorithm"));
    expect(
      extensions
        .split("\n")
        .map((line) => line.trim())
        .filter((line) => line !== ""),
    ).toEqual([
      "X509v3 extensions:",
      "X509v3 Key Usage: critical",
      "Digital Signature, Key Encipherment, Key Agreement",
      "X509v3 Extended Key Usage:",
      "TLS Web Server Authentication, TLS Web Client Authentication",
      "X509v3 Basic Constraints: critical",
      "CA:FALSE",
      "X509v3 Subject Key Identifier:",
      ski,
      "X509v3 Authority Key Identifier:",
      aki,
      "X509v3 Subject Alternative Name:",
      "DNS:web.example.org, DNS:*.web.example.org, URI:spiffe://example.org/web",
    ]);
    expect(text).toContain("Version: 3 (0x2)");
    expect(text).toContain("Issuer: C = US, O = SPIFFE, serialNumber = 1");
    expect(text).toContain("Subject: C = US, O = SPIRE, CN = web.example.org");
    expect(text).toContain("Not Before: Jan  2 03:04:05 2025 GMT");
    expect(text).toContain("Not After : Jan  2 03:04:05 2055 GMT");
    expect(text.replace(/\s/g, "")).toContain(`SerialNumber:${"ff:".repeat(16).slice(0, -1)}`);
  });

  test("everything of a template is read back", async () => {
    const leaf = parseCertificate(await signCertificate(TEMPLATE, caKey));
    expect(leaf).toMatchObject({
      serialNumber: (2n ** 128n - 1n).toString(),
      notBefore: TEMPLATE.notBefore,
      notAfter: TEMPLATE.notAfter,
      publicKey: leafKey.publicKey,
      uris: TEMPLATE.uris,
      dnsNames: TEMPLATE.dnsNames,
      isCa: false,
      pathLength: undefined,
      keyUsage: new Set(TEMPLATE.keyUsage),
      extKeyUsage: TEMPLATE.extKeyUsage,
      subjectKeyId: hexOf(TEMPLATE.subjectKeyId),
      authorityKeyId: hexOf(subjectKeyId(caKey.publicKey)),
      unknownCritical: [],
    });
    expect(leaf.issuer).toEqual(encodeName({ country: "US", organization: "SPIFFE", serialNumber: "1" }));
    expect(leaf.criticalExtensionIds).toEqual(new Set([EXTENSION.keyUsage, EXTENSION.basicConstraints]));
  });

  test("X509-14 X509-18 a CA has cA, its path length and a critical key usage", async () => {
    const { authorityKeyId: _, ...rest } = TEMPLATE;
    const template: CertificateTemplate = {
      ...rest,
      kind: "ca",
      pathLength: 3,
      keyUsage: ["keyCertSign", "cRLSign"],
      extKeyUsage: [],
    };
    const ca = parseCertificate(await signCertificate(template, caKey));
    expect(ca).toMatchObject({
      isCa: true,
      pathLength: 3,
      keyUsage: new Set(["keyCertSign", "cRLSign"]),
      extKeyUsage: undefined,
      authorityKeyId: "",
    });
    expect(ca.criticalExtensionIds).toEqual(new Set([EXTENSION.keyUsage, EXTENSION.basicConstraints]));
    expect(new X509Certificate(ca.raw).ca).toBe(true);
  });

  test("X509-06 the names are critical exactly when the subject is empty", async () => {
    const named = parseCertificate(await signCertificate(TEMPLATE, caKey));
    const nameless = parseCertificate(await signCertificate({ ...TEMPLATE, subject: {} }, caKey));
    expect(named.criticalExtensionIds.has(EXTENSION.subjectAltName)).toBe(false);
    expect(nameless.criticalExtensionIds.has(EXTENSION.subjectAltName)).toBe(true);
    expect(new X509Certificate(nameless.raw).subject).toBeUndefined();
  });

  test("a Name in DER is taken as it is", async () => {
    const odd = sequence(encode(TAG.set, sequence(encodeOid("2.5.4.3"), encode(TAG.teletexString, Buffer.from("x")))));
    const leaf = parseCertificate(await signCertificate({ ...TEMPLATE, subject: odd }, caKey));
    expect(leaf.subject).toEqual(odd);
  });

  test.each(["spiffe://example.org/ü", "spiffe://example.org/\u2024"])(
    "T-S5 a name beyond ASCII is not written: %s",
    async (uri) => {
      await expect(signCertificate({ ...TEMPLATE, uris: [uri] }, caKey)).rejects.toMatchObject(MALFORMED);
    },
  );
});

describe("parsing agrees with others", () => {
  test("X509-03 names of every kind, next to node:crypto and @peculiar/x509", async () => {
    const ca = await createCa();
    const dnsNames = Array.from({ length: 50 }, (_, i) => `web-${i}.local`);
    const { certificate, der } = await ca.issue({
      dnsNames,
      emailAddresses: ["a@example.org"],
      ipAddresses: [Buffer.from([10, 0, 0, 1])],
    });
    expect(certificate).toMatchObject({
      uris: ["spiffe://example.org/web"],
      dnsNames,
      emailAddresses: ["a@example.org"],
    });
    expect(certificate.ipAddresses.map((ip) => [...ip])).toEqual([[10, 0, 0, 1]]);
    const node = new X509Certificate(der);
    expect(BigInt(certificate.serialNumber).toString(16)).toBe(BigInt(`0x${node.serialNumber}`).toString(16));
    expect(certificate.notAfter).toEqual(node.validToDate);
    expect(certificate.notBefore).toEqual(node.validFromDate);
    expect(certificate.publicKey).toEqual(node.publicKey.export({ format: "der", type: "spki" }));
    const names = new x509.X509Certificate(new Uint8Array(der))
      .getExtension(x509.SubjectAlternativeNameExtension)
      ?.names.toJSON();
    expect(names?.filter(({ type }) => type === "url").map(({ value }) => value)).toEqual(certificate.uris);
    expect(names?.filter(({ type }) => type === "dns").map(({ value }) => value)).toEqual(dnsNames);
  });

  test("a CA that openssl made, with policies and further extensions", async () => {
    await using directory = await openssl();
    await directory.write(
      "openssl.cnf",
      [
        "[req]",
        "distinguished_name=dn",
        "[dn]",
        "[ext]",
        "basicConstraints=critical,CA:TRUE,pathlen:1",
        "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
        "extendedKeyUsage=critical,serverAuth,clientAuth,OCSPSigning",
        "subjectKeyIdentifier=hash",
        "authorityKeyIdentifier=keyid:always,issuer:always",
        "subjectAltName=critical,URI:spiffe://example.org,DNS:ca.example.org,email:ca@example.org,IP:2001:db8::1,RID:1.2.3.4,dirName:dn_section,otherName:1.2.3;UTF8:x",
        "certificatePolicies=critical,1.2.3.4",
        "nameConstraints=critical,permitted;URI:.example.org,permitted;DNS:example.org,excluded;IP:10.0.0.0/255.0.0.0,permitted;dirName:dn_section",
        "crlDistributionPoints=URI:http://crl.example.org/",
        "authorityInfoAccess=OCSP;URI:http://ocsp.example.org/",
        "[dn_section]",
        "O=SPIFFE",
      ].join("\n"),
    );
    await directory.run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem");
    const der = await directory.run(
      "req",
      "-x509",
      "-new",
      "-config",
      "openssl.cnf",
      "-extensions",
      "ext",
      "-key",
      "key.pem",
      "-subj",
      "/C=US/O=SPIFFE/OU=a+OU=b",
      "-days",
      "30",
      "-outform",
      "DER",
    );
    const ca = parseCertificate(der);
    expect(ca).toMatchObject({
      isCa: true,
      pathLength: 1,
      keyUsage: new Set(["keyCertSign", "cRLSign", "digitalSignature"]),
      extKeyUsage: [EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.clientAuth, "1.3.6.1.5.5.7.3.9"],
      uris: ["spiffe://example.org"],
      dnsNames: ["ca.example.org"],
      emailAddresses: ["ca@example.org"],
      otherNames: 3,
      unknownCritical: [],
    });
    expect(ca.subjectKeyId).toBe(ca.authorityKeyId);
    expect(ca.nameConstraints).toMatchObject({
      unsupported: false,
      permitted: { uris: [".example.org"], dnsNames: ["example.org"] },
    });
    expect(signatureHolds(ca, ca.key())).toBe(true);
  });

  test("a version 1 certificate of openssl", async () => {
    await using directory = await openssl();
    await directory.run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem");
    await directory.run("req", "-new", "-key", "key.pem", "-subj", "/O=old", "-out", "csr.pem");
    const der = await directory.run(
      "x509",
      "-req",
      "-in",
      "csr.pem",
      "-signkey",
      "key.pem",
      "-days",
      "1",
      "-outform",
      "DER",
    );
    expect(parseCertificate(der)).toMatchObject({
      isCa: false,
      keyUsage: undefined,
      extKeyUsage: undefined,
      uris: [],
      subjectKeyId: "",
    });
  });

  test("T-X3 a DNS name that looks like a list of names stays one DNS name", async () => {
    const ca = await createCa();
    const names = ["x, URI:spiffe://example.org/admin", 'y", URI:"spiffe://example.org/admin', "z\0.example.org", ""];
    const { certificate } = await ca.issue({ dnsNames: names });
    expect(certificate.dnsNames).toEqual(names);
    expect(certificate.uris).toEqual(["spiffe://example.org/web"]);
  });

  test("ID-17 an ID of 2048 bytes survives a certificate", async () => {
    const id = `spiffe://example.org/${"a".repeat(2048 - 21)}`;
    const { certificate } = await (await createCa()).issue({ id });
    expect(certificate.uris).toEqual([id]);
    expect(id).toHaveLength(2048);
  });

  test("certificates one after the other", async () => {
    const ca = await createCa();
    const leaf = await (await ca.intermediate()).issue();
    const all = [...leaf.chain, ca.der];
    expect(parseCertificates(Buffer.concat(all)).map(({ raw }) => Buffer.from(raw))).toEqual(
      all.map((der) => Buffer.from(der)),
    );
    expect(parseCertificates(new Uint8Array())).toEqual([]);
    expect(faultOf(() => parseCertificates(Buffer.concat([...all, Buffer.from([0])])))).toMatchObject(MALFORMED);
  });
});
