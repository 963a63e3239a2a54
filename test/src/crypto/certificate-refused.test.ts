import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MAX_CERTIFICATE_BYTES, parseCertificate, parseCertificates } from "../../../src/crypto/certificate.ts";
import { contextTag, TAG } from "../../../src/crypto/der.ts";
import {
  encode,
  encodeBoolean,
  encodeOctets,
  encodeOid,
  encodeUnsigned,
  explicit,
  sequence,
} from "../../../src/crypto/der-writer.ts";
import { EXTENSION } from "../../../src/crypto/extensions.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { signatureAlgorithm, signatureHolds } from "../../../src/crypto/signature.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { createCa, dnsName, nameConstraints, uriName } from "../../support/pki.ts";

const MALFORMED = refusal("invalid", "asn1-malformed");
const leafKey = await generateKey("ec-p256");

describe("T-X5 what is refused", () => {
  const san = (value: Uint8Array) => ({ extensions: [{ oid: EXTENSION.subjectAltName, value }], uris: [] });
  const rows = [
    {
      what: "X509-02 two extensions of names",
      options: { extensions: [{ oid: EXTENSION.subjectAltName, value: sequence(uriName("spiffe://example.org/x")) }] },
    },
    { what: "a name of an unknown kind", options: san(sequence(encode(contextTag(9), Buffer.from("x")))) },
    { what: "a URI beyond ASCII", options: san(sequence(encode(contextTag(6), Buffer.from("spiffe://ü/x")))) },
    { what: "an IP address of five octets", options: san(sequence(encode(contextTag(7), Buffer.alloc(5)))) },
    { what: "bytes after the names", options: san(Buffer.concat([sequence(dnsName("x")), Buffer.from([0])])) },
    { what: "a path length in a leaf", options: { pathLength: 1 } },
    { what: "an empty extended key usage", options: { extKeyUsage: [] } },
    {
      what: "a key usage that is no BIT STRING",
      options: { keyUsage: null, extensions: [{ oid: EXTENSION.keyUsage, value: encodeUnsigned(1n) }] },
    },
    {
      what: "name constraints with a mangled range",
      options: { extensions: [nameConstraints({ permitted: [encode(contextTag(7), Buffer.alloc(5))] })] },
    },
    {
      what: "more than 256 name constraints",
      options: { extensions: [nameConstraints({ permitted: Array.from({ length: 257 }, () => dnsName("x")) })] },
    },
    {
      what: "bytes after the certificate",
      options: { tamper: (der: Buffer) => Buffer.concat([der, Buffer.from([0])]) },
    },
    { what: "a certificate that is cut off", options: { tamper: (der: Buffer) => der.subarray(0, -1) } },
  ];
  test.each(rows)("$what", async ({ options }) => {
    const { der } = await (await createCa()).issue(options);
    expect(faultOf(() => parseCertificate(der))).toMatchObject(MALFORMED);
  });

  test("more than 16 KiB, however sound", async () => {
    const ca = await createCa();
    const padded = (length: number) =>
      ca.issue({ extensions: [{ oid: "1.2.3.4", value: encode(TAG.octetString, new Uint8Array(length)) }] });
    const base = (await padded(10_000)).der.length - 10_000;
    const most = await padded(MAX_CERTIFICATE_BYTES - base - 8);
    expect(most.der.length).toBeLessThanOrEqual(MAX_CERTIFICATE_BYTES);
    expect(most.certificate.uris).toEqual(["spiffe://example.org/web"]);
    const { der } = await padded(MAX_CERTIFICATE_BYTES);
    expect(faultOf(() => parseCertificate(der))).toMatchObject(refusal("invalid", "certificate-too-large"));
    const many = Buffer.alloc(4 * 1024 * 1024 + 1);
    expect(faultOf(() => parseCertificates(many))).toMatchObject(refusal("invalid", "certificate-too-large"));
  });

  test("signature algorithms that differ inside and outside", async () => {
    const { certificate } = await (await createCa()).issue();
    const other = signatureAlgorithm("ec-p384");
    const der = sequence(certificate.signed, other, encodeOctets(certificate.signature));
    expect(faultOf(() => parseCertificate(der))).toMatchObject(MALFORMED);
  });

  const tbs = (version: Uint8Array, serial: Uint8Array, tail: readonly Uint8Array[]) => {
    const algorithm = signatureAlgorithm("ec-p256");
    const time = encode(TAG.utcTime, Buffer.from("250101000000Z"));
    const body = sequence(
      version,
      serial,
      algorithm,
      sequence(),
      sequence(time, time),
      sequence(),
      leafKey.publicKey,
      ...tail,
    );
    return sequence(body, algorithm, encodeOctets(Buffer.alloc(64)));
  };
  const v3 = explicit(0, encodeUnsigned(2n));
  const nothing = new Uint8Array();
  const bare = explicit(3, sequence());
  const boolean = (value: Uint8Array) =>
    explicit(3, sequence(sequence(encodeOid("1.2.3"), value, encode(TAG.octetString))));
  test("the frame of these cases is sound", () => {
    expect(parseCertificate(tbs(v3, encodeUnsigned(0n), [bare]))).toMatchObject({
      serialNumber: "0",
      extensionIds: [],
    });
    expect(parseCertificate(tbs(nothing, encodeUnsigned(1n), []))).toMatchObject({ serialNumber: "1" });
    expect(parseCertificate(tbs(v3, encodeUnsigned(1n), [boolean(encodeBoolean(true))]))).toMatchObject({
      unknownCritical: ["1.2.3"],
    });
  });
  test.each([
    { what: "a negative serial", der: tbs(v3, encode(TAG.integer, Buffer.from([0x80])), [bare]) },
    { what: "a serial with a needless zero", der: tbs(v3, encode(TAG.integer, Buffer.from([0, 1])), [bare]) },
    { what: "a serial of 41 octets", der: tbs(v3, encode(TAG.integer, Buffer.alloc(41, 1)), [bare]) },
    { what: "extensions in version 1", der: tbs(nothing, encodeUnsigned(1n), [bare]) },
    { what: "version 1 written out", der: tbs(explicit(0, encodeUnsigned(0n)), encodeUnsigned(1n), []) },
    { what: "version 4", der: tbs(explicit(0, encodeUnsigned(3n)), encodeUnsigned(1n), [bare]) },
    { what: "something after the extensions", der: tbs(v3, encodeUnsigned(1n), [bare, encodeUnsigned(1n)]) },
    {
      what: "a critical flag that is neither true nor false",
      der: tbs(v3, encodeUnsigned(1n), [boolean(encode(TAG.boolean, Buffer.from([1])))]),
    },
  ])("$what", ({ der }) => {
    expect(faultOf(() => parseCertificate(der))).toMatchObject(MALFORMED);
  });

  test.each([
    {
      what: "an SSH certificate",
      text: "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29t",
    },
    { what: "a JWE", text: "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.AAAA.AAAA.AAAA.AAAA" },
    { what: "a PASETO", text: "v4.public.AAAA" },
    { what: "a SAML assertion", text: "<saml:Assertion xmlns:saml='urn:oasis:names:tc:SAML:2.0:assertion'/>" },
    { what: "PEM instead of DER", text: "-----BEGIN CERTIFICATE-----" },
  ])("ID-27 $what is no X509-SVID", ({ text }) => {
    expect(faultOf(() => parseCertificate(Buffer.from(text)))).toMatchObject(MALFORMED);
  });
});

test("ID-26 a changed bit in name or key breaks the signature, every one of them", async () => {
  const ca = await createCa();
  const { der, certificate } = await ca.issue();
  const at = (needle: Uint8Array): number => Buffer.from(der).indexOf(needle);
  const regions = [
    { from: at(Buffer.from("spiffe://example.org/web")), length: "spiffe://example.org/web".length },
    { from: at(certificate.publicKey), length: certificate.publicKey.length },
  ];
  let parsed = 0;
  for (const { from, length } of regions) {
    for (let bit = 0; bit < length * 8; bit += 1) {
      const changed = Buffer.from(der);
      changed[from + (bit >> 3)] = (changed[from + (bit >> 3)] ?? 0) ^ (1 << (bit & 7));
      try {
        const read = parseCertificate(changed);
        parsed += 1;
        expect(signatureHolds(read, ca.certificate.key())).toBe(false);
      } catch (error) {
        expect(error).toMatchObject(MALFORMED);
      }
    }
  }
  expect(parsed).toBeGreaterThan(500);
  expect(signatureHolds(certificate, ca.certificate.key())).toBe(true);
});

describe("T-X5 mutations of a sound certificate parse or are refused, and nothing else", async () => {
  const ca = await createCa({
    extensions: [nameConstraints({ permitted: [uriName("example.org"), dnsName("example.org")] })],
  });
  const { der } = await ca.issue({ dnsNames: ["web.example.org"] });
  const samples = [der, ca.der].map((sample) => Buffer.from(sample));
  const edit = fc.record({ at: fc.nat(2000), remove: fc.nat(4), insert: fc.uint8Array({ maxLength: 4 }) });
  test.each(samples)("sample %#", (sample) => {
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 4 }), (edits) => {
        let mutant: Buffer = sample;
        for (const { at, remove, insert } of edits) {
          const from = at % (mutant.length + 1);
          mutant = Buffer.concat([mutant.subarray(0, from), insert, mutant.subarray(from + remove)]);
        }
        try {
          const { raw, key } = parseCertificate(mutant);
          expect(raw).toHaveLength(mutant.length);
          key();
        } catch (error) {
          expect(error).toBeInstanceOf(Fault);
          expect(error).toMatchObject({ kind: "invalid" });
        }
      }),
      { numRuns: 4000 },
    );
  });

  test("every single octet replaced by every value of one bit", () => {
    for (let at = 0; at < der.length; at += 1) {
      for (let bit = 0; bit < 8; bit += 1) {
        const mutant = Buffer.from(der);
        mutant[at] = (mutant[at] ?? 0) ^ (1 << bit);
        try {
          parseCertificate(mutant);
        } catch (error) {
          if (!(error instanceof Fault) || error.kind !== "invalid") throw error;
        }
      }
    }
    expect(der.length).toBeGreaterThan(300);
  });
});
