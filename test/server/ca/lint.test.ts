import "reflect-metadata";
import { Crypto } from "@peculiar/webcrypto";
import * as x509 from "@peculiar/x509";
import { beforeAll, describe, expect, test } from "vitest";
import { type Intent, lintCertificate, lintTemplate, RULES } from "../../../server/ca/lint.ts";
import type { X509SigningAuthority } from "../../../server/ca/slots.ts";
import { leafTemplate, rootTemplate } from "../../../server/ca/template.ts";
import { type Certificate, parseCertificate } from "../../../src/crypto/certificate.ts";
import { type CertificateTemplate, signCertificate } from "../../../src/crypto/certificate-template.ts";
import { EXT_KEY_USAGE } from "../../../src/crypto/extensions.ts";
import { generateKey, subjectKeyId } from "../../../src/crypto/key.ts";
import { parseSpiffeId, type SpiffeId } from "../../../src/spiffe/id.ts";
import { faultOf } from "../../support/faults.ts";
import { id, makeAuthority, START, TD } from "./support.ts";

let authority: X509SigningAuthority;
let leaf: CertificateTemplate;
let root: CertificateTemplate;
let leafIntent: Intent;
let rootIntent: Intent;

beforeAll(async () => {
  authority = await makeAuthority();
  const { publicKey } = await generateKey("ec-p256");
  const moment = { now: START, serialNumber: 77n };
  leaf = leafTemplate({ id: id("/web"), publicKey, ttlSeconds: 3600 }, authority, moment);
  root = rootTemplate({ trustDomain: TD, publicKey, ttlSeconds: 3600, subject: {} }, moment);
  leafIntent = { role: "workload", id: id("/web"), trustDomain: TD, now: START, issuer: authority.certificate };
  rootIntent = {
    role: "authority",
    id: parseSpiffeId("spiffe://example.org"),
    trustDomain: TD,
    now: START,
    issuer: undefined,
  };
});

interface Row {
  /** The rule that refuses. */
  readonly rule: string;
  readonly of: "leaf" | "root";
  readonly what: string;
  readonly change?: () => Partial<CertificateTemplate>;
  readonly intent?: () => Partial<Intent>;
}

/** ID and URI both, as when the server itself had the wrong idea. */
const named = (text: string) => ({
  change: () => ({ uris: [text] }),
  intent: () => ({ id: parseSpiffeId(text) as SpiffeId }),
});

const ROWS: readonly Row[] = [
  { rule: "X509-01", of: "leaf", what: "without a URI", change: () => ({ uris: [] }) },
  { rule: "X509-01", of: "leaf", what: "with two URIs", change: () => ({ uris: [id("/web"), id("/b")] }) },
  { rule: "X509-01", of: "leaf", what: "with the same URI twice", change: () => ({ uris: [id("/web"), id("/web")] }) },
  { rule: "X509-01", of: "leaf", what: "with another workload's URI", change: () => ({ uris: [id("/other")] }) },
  { rule: "X509-05", of: "leaf", what: "of the trust domain itself", ...named("spiffe://example.org") },
  { rule: "T-S10", of: "leaf", what: "of a reserved ID", ...named("spiffe://example.org/spire/server") },
  { rule: "X509-11", of: "leaf", what: "of another trust domain", ...named("spiffe://partner.test/web") },
  { rule: "X509-11", of: "root", what: "of another trust domain", ...named("spiffe://partner.test") },
  {
    rule: "X509-10 X509-11",
    of: "leaf",
    what: "under a signing certificate whose ID has a path (T-X1)",
    intent: () => ({ issuer: { ...authority.certificate, uris: [id("/ca")] } }),
  },
  {
    rule: "X509-10 X509-11",
    of: "leaf",
    what: "under a signing certificate of another trust domain",
    intent: () => ({ issuer: { ...authority.certificate, uris: ["spiffe://partner.test"] } }),
  },
  { rule: "X509-15", of: "leaf", what: "with cA TRUE", change: () => ({ kind: "ca" }) },
  { rule: "X509-15", of: "leaf", what: "with a path length", change: () => ({ pathLength: 0 }) },
  { rule: "X509-17", of: "leaf", what: "without key usage", change: () => ({ keyUsage: [] }) },
  { rule: "X509-17", of: "root", what: "without key usage", change: () => ({ keyUsage: [] }) },
  { rule: "X509-21", of: "leaf", what: "without digitalSignature", change: () => ({ keyUsage: ["keyAgreement"] }) },
  {
    rule: "X509-23",
    of: "leaf",
    what: "with keyCertSign",
    change: () => ({ keyUsage: ["digitalSignature", "keyCertSign"] }),
  },
  { rule: "X509-23", of: "leaf", what: "with cRLSign", change: () => ({ keyUsage: ["digitalSignature", "cRLSign"] }) },
  { rule: "X509-27", of: "leaf", what: "without extended key usage", change: () => ({ extKeyUsage: [] }) },
  {
    rule: "X509-27",
    of: "leaf",
    what: "with serverAuth alone",
    change: () => ({ extKeyUsage: [EXT_KEY_USAGE.serverAuth] }),
  },
  {
    rule: "X509-27",
    of: "leaf",
    what: "with clientAuth alone",
    change: () => ({ extKeyUsage: [EXT_KEY_USAGE.clientAuth] }),
  },
  {
    rule: "T-X7",
    of: "leaf",
    what: "for any purpose besides",
    change: () => ({ extKeyUsage: [EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.clientAuth, EXT_KEY_USAGE.any] }),
  },
  {
    rule: "T-X7",
    of: "leaf",
    what: "that may sign code besides",
    change: () => ({ extKeyUsage: [EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.clientAuth, EXT_KEY_USAGE.codeSigning] }),
  },
  { rule: "T-X7", of: "root", what: "for any purpose", change: () => ({ extKeyUsage: [EXT_KEY_USAGE.any] }) },
  { rule: "X509-09", of: "root", what: "without a URI", change: () => ({ uris: [] }) },
  {
    rule: "X509-09",
    of: "root",
    what: "with two URIs",
    change: () => ({ uris: ["spiffe://example.org", "spiffe://example.org"] }),
  },
  { rule: "X509-10", of: "root", what: "of an ID with a path", ...named("spiffe://example.org/ca") },
  { rule: "X509-14", of: "root", what: "with cA FALSE", change: () => ({ kind: "leaf" }) },
  { rule: "X509-19", of: "root", what: "without keyCertSign", change: () => ({ keyUsage: ["cRLSign"] }) },
  {
    rule: "X509-24",
    of: "root",
    what: "with digitalSignature",
    change: () => ({ keyUsage: ["keyCertSign", "digitalSignature"] }),
  },
  { rule: "T-X6", of: "leaf", what: "of a weak key", change: () => ({ publicKey: new Uint8Array([0x30, 0]) }) },
  { rule: "T-S5", of: "leaf", what: "with a DNS name that quotes", change: () => ({ dnsNames: ['a"b.test'] }) },
  { rule: "T-S5", of: "leaf", what: "with an empty DNS name", change: () => ({ dnsNames: [""] }) },
  { rule: "RFC 5280 4.1.2.2", of: "leaf", what: "with serial number 0", change: () => ({ serialNumber: 0n }) },
  {
    rule: "RFC 5280 4.1.2.2",
    of: "leaf",
    what: "with a serial number of 129 bits",
    change: () => ({ serialNumber: 2n ** 128n }),
  },
  {
    rule: "RFC 5280 4.1.2.4",
    of: "leaf",
    what: "under another issuer's name",
    change: () => ({ issuer: { commonName: "x" } }),
  },
  {
    rule: "RFC 5280 4.1.2.4",
    of: "root",
    what: "whose issuer is not its subject",
    change: () => ({ issuer: { commonName: "x" } }),
  },
  { rule: "RFC 5280 4.1.2.5", of: "leaf", what: "that is over already", change: () => ({ notAfter: START }) },
  {
    rule: "RFC 5280 4.1.2.5",
    of: "leaf",
    what: "that starts later",
    change: () => ({ notBefore: new Date(START.getTime() + 1) }),
  },
  {
    rule: "RFC 5280 4.1.2.5",
    of: "leaf",
    what: "that outlives its authority",
    change: () => ({ notAfter: new Date(authority.notAfter.getTime() + 1000) }),
  },
  {
    rule: "RFC 5280 4.2.1.1",
    of: "leaf",
    what: "with another key's identifier",
    change: () => ({ subjectKeyId: new Uint8Array(20) }),
  },
  {
    rule: "RFC 5280 4.2.1.1",
    of: "leaf",
    what: "with another authority's identifier",
    change: () => ({ authorityKeyId: new Uint8Array(20) }),
  },
  {
    rule: "RFC 5280 4.2.1.1",
    of: "root",
    what: "with an authority key identifier",
    change: () => ({ authorityKeyId: new Uint8Array(20) }),
  },
];

describe("before signing", () => {
  test("the templates that the rows change are in order", () => {
    expect(() => lintTemplate(leaf, leafIntent)).not.toThrow();
    expect(() => lintTemplate(root, rootIntent)).not.toThrow();
  });

  test.each(ROWS)("$rule refuses a $of $what", ({ rule, of, change, intent }) => {
    const [template, given] = of === "leaf" ? [leaf, leafIntent] : [root, rootIntent];
    const thrown = faultOf(() => lintTemplate({ ...template, ...change?.() }, { ...given, ...intent?.() }));
    expect(thrown.code).toBe("certificate-lint");
    expect(thrown.message).toContain(`(${rule} `);
  });

  test("every rule has a row", () => {
    const untested = RULES.filter(({ name }) => !ROWS.some(({ rule }) => name.startsWith(`${rule} `)));
    expect(untested.map(({ name }) => name)).toEqual([]);
  });
});

describe("after signing", () => {
  let signed: Certificate;
  beforeAll(async () => {
    signed = parseCertificate(await signCertificate(leaf, authority.key));
  });

  test("the certificate that was asked for passes", () => {
    expect(() => lintCertificate(signed, leaf)).not.toThrow();
  });

  test.each<{ readonly change: () => Partial<CertificateTemplate>; readonly says: string }>([
    { says: "serial number", change: () => ({ serialNumber: 78n }) },
    { says: "public key", change: () => ({ publicKey: authority.key.publicKey }) },
    { says: "URI SAN", change: () => ({ uris: [id("/other")] }) },
    { says: "DNS SAN", change: () => ({ dnsNames: ["a.test"] }) },
    { says: "subject", change: () => ({ subject: { commonName: "x" } }) },
    { says: "validity", change: () => ({ notAfter: authority.notAfter }) },
    { says: "basic constraint", change: () => ({ kind: "ca" }) },
    { says: "key usage", change: () => ({ keyUsage: ["digitalSignature"] }) },
    { says: "extended key usage", change: () => ({ extKeyUsage: [] }) },
  ])("one with a wrong $says does not leave", ({ change, says }) => {
    expect(faultOf(() => lintCertificate(signed, { ...leaf, ...change() })).message).toBe(
      `signed certificate has a wrong ${says}`,
    );
  });

  test("X509-06 the SAN is critical when the subject is empty, and need not be otherwise", async () => {
    const anonymous = { ...leaf, subject: {} };
    const certificate = parseCertificate(await signCertificate(anonymous, authority.key));
    const read = new x509.X509Certificate(Buffer.from(certificate.raw));
    expect([read.subject, read.getExtension("2.5.29.17")?.critical]).toEqual(["", true]);
    expect(new x509.X509Certificate(Buffer.from(signed.raw)).getExtension("2.5.29.17")?.critical).toBe(false);
    expect(() => lintCertificate(certificate, anonymous)).not.toThrow();
  });

  test.each([
    { rule: "X509-06", says: "SAN criticality", san: false, usage: true },
    { rule: "X509-18", says: "key usage criticality", san: true, usage: false },
  ])("$rule a foreign encoder that forgets a critical flag is caught", async ({ rule, says, san, usage }) => {
    const { certificate, template } = await foreign({ san: true, usage: true });
    expect(() => lintCertificate(certificate, template)).not.toThrow();
    const broken = await foreign({ san, usage });
    expect(faultOf(() => lintCertificate(broken.certificate, broken.template)).message).toContain(`${says} (${rule})`);
  });
});

/** A leaf without a subject from another library, and the template that describes it. */
async function foreign(critical: { readonly san: boolean; readonly usage: boolean }) {
  const crypto = new Crypto();
  x509.cryptoProvider.set(crypto);
  const keys = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
  const { KeyUsageFlags: flags, ExtendedKeyUsage: purposes } = x509;
  const made = await x509.X509CertificateGenerator.create({
    serialNumber: "4d",
    subject: "",
    issuer: "CN=ca",
    notBefore: leaf.notBefore,
    notAfter: leaf.notAfter,
    publicKey: keys.publicKey,
    signingKey: keys.privateKey,
    signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
    extensions: [
      new x509.KeyUsagesExtension(flags.digitalSignature | flags.keyEncipherment | flags.keyAgreement, critical.usage),
      new x509.ExtendedKeyUsageExtension([purposes.serverAuth, purposes.clientAuth]),
      new x509.SubjectAlternativeNameExtension([{ type: "url", value: id("/web") }], critical.san),
    ],
  });
  const certificate = parseCertificate(Buffer.from(made.rawData));
  const { publicKey } = certificate;
  const template: CertificateTemplate = { ...leaf, publicKey, subject: {}, subjectKeyId: subjectKeyId(publicKey) };
  return { certificate, template };
}
