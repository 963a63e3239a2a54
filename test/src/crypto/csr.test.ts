import "reflect-metadata";
import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import * as x509 from "@peculiar/x509";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  createCertificateRequest,
  MAX_CSR_BYTES,
  parseCertificateRequest,
  verifyCertificateRequest,
} from "../../../src/crypto/csr.ts";
import { contextTag, TAG } from "../../../src/crypto/der.ts";
import {
  encode,
  encodeBoolean,
  encodeOctets,
  encodeOid,
  encodeUnsigned,
  explicit,
  sequence,
  setOf,
} from "../../../src/crypto/der-writer.ts";
import { EXTENSION } from "../../../src/crypto/extensions.ts";
import { generateKey, KEY_TYPES } from "../../../src/crypto/key.ts";
import { encodeName } from "../../../src/crypto/name.ts";
import { signatureAlgorithm } from "../../../src/crypto/signature.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { faultFrom, faultOf, refusal } from "../../support/faults.ts";
import { openssl } from "../../support/openssl.ts";
import { dnsName, emailName, ipRange, uriName } from "../../support/pki.ts";

const MALFORMED = refusal("invalid", "asn1-malformed");
const BAD_SIGNATURE = { ...refusal("invalid", "csr-signature"), message: "invalid CSR signature" };
const signer = await generateKey("ec-p256");

interface Parts {
  readonly attributes?: Uint8Array;
  readonly publicKey?: Uint8Array;
  readonly version?: bigint;
}

function info({ attributes = new Uint8Array(), publicKey = signer.publicKey, version = 0n }: Parts): Buffer {
  return sequence(encodeUnsigned(version), encodeName({}), publicKey, encode(contextTag(0, true), attributes));
}

async function csr(parts: Parts): Promise<Buffer> {
  const body = info(parts);
  return sequence(body, signatureAlgorithm("ec-p256"), encodeOctets(await signer.sign(body)));
}

function extensionRequest(...extensions: readonly Uint8Array[]): Buffer {
  return sequence(encodeOid("1.2.840.113549.1.9.14"), setOf(sequence(...extensions)));
}

function extension(oid: string, value: Uint8Array): Buffer {
  return sequence(encodeOid(oid), encode(TAG.octetString, value));
}

describe("requests made here", () => {
  test.each(KEY_TYPES)("with %s: openssl and @peculiar/x509 verify them and see the names", async (type) => {
    const key = await generateKey(type);
    const der = await createCertificateRequest({
      signer: key,
      subject: { country: "US", organization: ["SPIRE"] },
      uris: ["spiffe://example.org/web"],
      dnsNames: ["web.example.org"],
    });
    await using directory = await openssl();
    await directory.write("csr.der", der);
    const text = (
      await directory.run("req", "-inform", "DER", "-in", "csr.der", "-noout", "-verify", "-text")
    ).toString();
    expect(text).toContain("Subject: C = US, O = SPIRE");
    expect(text).toContain("DNS:web.example.org, URI:spiffe://example.org/web");
    expect(await new x509.Pkcs10CertificateRequest(new Uint8Array(der)).verify()).toBe(true);
    const request = parseCertificateRequest(der);
    await verifyCertificateRequest(request);
    expect(request).toMatchObject({
      uris: ["spiffe://example.org/web"],
      dnsNames: ["web.example.org"],
      publicKey: key.publicKey,
    });
    expect(request.subject).toEqual(encodeName({ country: "US", organization: "SPIRE" }));
  });

  test("without names there is no request for extensions, as in an agent's CSR", async () => {
    const der = await createCertificateRequest({ signer });
    expect(parseCertificateRequest(der)).toMatchObject({ extensionIds: [], uris: [], dnsNames: [] });
    await using directory = await openssl();
    await directory.write("csr.der", der);
    expect((await directory.run("req", "-inform", "DER", "-in", "csr.der", "-noout", "-text")).toString()).toContain(
      "(none)",
    );
  });
});

describe("requests made by others", () => {
  test("openssl, with everything a certificate could hold", async () => {
    await using directory = await openssl();
    await directory.write(
      "openssl.cnf",
      [
        "[req]",
        "distinguished_name=dn",
        "[dn]",
        "[ext]",
        "basicConstraints=critical,CA:TRUE",
        "keyUsage=keyCertSign",
        "subjectAltName=URI:spiffe://example.org/a,URI:spiffe://example.org/b,DNS:x,IP:10.0.0.1,email:a@b",
      ].join("\n"),
    );
    await directory.run("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", "key.pem");
    const der = await directory.run(
      "req",
      "-new",
      "-sha384",
      "-config",
      "openssl.cnf",
      "-reqexts",
      "ext",
      "-key",
      "key.pem",
      "-subj",
      "/CN=admin",
      "-outform",
      "DER",
    );
    const request = parseCertificateRequest(der);
    await verifyCertificateRequest(request);
    expect(request).toMatchObject({
      uris: ["spiffe://example.org/a", "spiffe://example.org/b"],
      dnsNames: ["x"],
      emailAddresses: ["a@b"],
      isCa: true,
      keyUsage: new Set(["keyCertSign"]),
    });
  });

  test("@peculiar/x509, with a challenge password beside the names", async () => {
    const keys = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
    const made = await x509.Pkcs10CertificateRequestGenerator.create({
      keys,
      signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
      attributes: [new x509.ChallengePasswordAttribute("secret")],
      extensions: [new x509.SubjectAlternativeNameExtension([{ type: "url", value: "spiffe://example.org/web" }])],
    });
    const request = parseCertificateRequest(new Uint8Array(made.rawData));
    await verifyCertificateRequest(request);
    expect(request.uris).toEqual(["spiffe://example.org/web"]);
  });
});

describe("T-C2 the names that a CSR asks for are told apart and counted", () => {
  const web = "spiffe://example.org/web";
  test.each([
    { what: "no URI", names: [], expected: { uris: [] } },
    {
      what: "two URIs",
      names: [uriName(web), uriName("spiffe://example.org/admin")],
      expected: { uris: [web, "spiffe://example.org/admin"] },
    },
    {
      what: "the same URI three times",
      names: [uriName(web), uriName(web), uriName(web)],
      expected: { uris: [web, web, web] },
    },
    { what: "a foreign URI", names: [uriName("https://x/")], expected: { uris: ["https://x/"] } },
    {
      what: "a DNS name, an email and an IP",
      names: [uriName(web), dnsName("x"), emailName("a@b"), ipRange(10, 0, 0, 1)],
      expected: { uris: [web], dnsNames: ["x"], emailAddresses: ["a@b"], ipAddresses: [Buffer.from([10, 0, 0, 1])] },
    },
    {
      what: "an otherName",
      names: [uriName(web), explicit(0, encodeOid("1.2.3"), explicit(0, encodeBoolean(true)))],
      expected: { uris: [web], otherNames: 1 },
    },
  ])("$what", async ({ names, expected }) => {
    const request = parseCertificateRequest(
      await csr({ attributes: extensionRequest(extension(EXTENSION.subjectAltName, sequence(...names))) }),
    );
    expect(request).toMatchObject(expected);
    await verifyCertificateRequest(request);
  });

  test("cA and key usages are seen", async () => {
    const ca = extension(EXTENSION.basicConstraints, sequence(encodeBoolean(true)));
    expect(parseCertificateRequest(await csr({ attributes: extensionRequest(ca) }))).toMatchObject({ isCa: true });
  });

  test.each([
    {
      what: "two extensions of names",
      attributes: extensionRequest(
        extension(EXTENSION.subjectAltName, sequence(uriName(web))),
        extension(EXTENSION.subjectAltName, sequence(uriName(web))),
      ),
    },
    { what: "two requests for extensions", attributes: Buffer.concat([extensionRequest(), extensionRequest()]) },
    {
      what: "two values in one request",
      attributes: sequence(encodeOid("1.2.840.113549.1.9.14"), encode(TAG.set, sequence(), sequence())),
    },
    { what: "an attribute without a value set", attributes: sequence(encodeOid("1.2.3")) },
  ])("$what are refused", async ({ attributes }) => {
    const der = await csr({ attributes });
    expect(faultOf(() => parseCertificateRequest(der))).toMatchObject(MALFORMED);
  });
});

describe("T-X6 proof of possession", async () => {
  const good = await csr({});
  const request = parseCertificateRequest(good);
  const other = await generateKey("ec-p256");
  const body = info({});
  const rows: readonly { what: string; der: Uint8Array }[] = [
    {
      what: "the signature of another key",
      der: sequence(body, signatureAlgorithm("ec-p256"), encodeOctets(await other.sign(body))),
    },
    {
      what: "the signature of another request",
      der: sequence(
        info({ attributes: extensionRequest() }),
        signatureAlgorithm("ec-p256"),
        encodeOctets(request.signature),
      ),
    },
    { what: "no signature", der: sequence(body, signatureAlgorithm("ec-p256"), encodeOctets(new Uint8Array())) },
    {
      what: "a signature of zeros",
      der: sequence(body, signatureAlgorithm("ec-p256"), encodeOctets(Buffer.from("3006020100020100", "hex"))),
    },
    {
      what: "the name of another hash",
      der: sequence(body, signatureAlgorithm("ec-p384"), encodeOctets(request.signature)),
    },
    {
      what: "the name of another kind of key",
      der: sequence(body, signatureAlgorithm("rsa-2048"), encodeOctets(request.signature)),
    },
    {
      what: "an unknown algorithm",
      der: sequence(body, sequence(encodeOid("1.2.3")), encodeOctets(request.signature)),
    },
    {
      what: "ECDSA with SHA-1",
      der: sequence(
        body,
        sequence(encodeOid("1.2.840.10045.4.1")),
        encodeOctets(sign("sha1", body, signer.privateKey)),
      ),
    },
    {
      what: "parameters where none belong",
      der: sequence(
        body,
        sequence(encodeOid("1.2.840.10045.4.3.2"), encode(TAG.null)),
        encodeOctets(request.signature),
      ),
    },
  ];
  test("the unchanged request verifies", async () => {
    await verifyCertificateRequest(request);
  });
  test.each(rows)("$what is refused", async ({ der }) => {
    const parsed = parseCertificateRequest(der);
    expect(await faultFrom(verifyCertificateRequest(parsed))).toMatchObject(BAD_SIGNATURE);
  });
});

describe("T-X6 weak keys are refused before the signature is looked at", () => {
  const pairs: readonly { name: string; publicKey: KeyObject }[] = [
    { name: "RSA of 1024 bits", ...generateKeyPairSync("rsa", { modulusLength: 1024 }) },
    { name: "RSA of 4104 bits", ...generateKeyPairSync("rsa", { modulusLength: 4104 }) },
    { name: "P-224", ...generateKeyPairSync("ec", { namedCurve: "secp224r1" }) },
    { name: "secp256k1", ...generateKeyPairSync("ec", { namedCurve: "secp256k1" }) },
  ];
  test.each(pairs)("$name", async ({ publicKey }) => {
    const der = await csr({ publicKey: publicKey.export({ format: "der", type: "spki" }) });
    expect(faultOf(() => parseCertificateRequest(der))).toMatchObject(refusal("invalid", "public-key"));
  });

  test("a point that is not on the curve", async () => {
    const publicKey = Buffer.from(signer.publicKey);
    publicKey[90] = (publicKey[90] ?? 0) ^ 1;
    const der = await csr({ publicKey });
    expect(faultOf(() => parseCertificateRequest(der))).toMatchObject(refusal("invalid", "public-key"));
  });
});

describe("T-X5 shape", () => {
  test("more than 16 KiB is refused", async () => {
    const padding = sequence(encodeOid("1.2.3"), setOf(encode(TAG.octetString, new Uint8Array(MAX_CSR_BYTES))));
    const der = await csr({ attributes: padding });
    expect(faultOf(() => parseCertificateRequest(der))).toMatchObject(refusal("invalid", "csr-too-large"));
  });

  test("another version is refused", async () => {
    const der = await csr({ version: 1n });
    expect(faultOf(() => parseCertificateRequest(der))).toMatchObject(MALFORMED);
  });

  test("mutations parse or are refused, and never verify once changed", async () => {
    const good = Buffer.from(
      await createCertificateRequest({
        signer,
        subject: { organization: "SPIRE" },
        uris: ["spiffe://example.org/web"],
        dnsNames: ["x"],
      }),
    );
    const edit = fc.record({ at: fc.nat(1000), remove: fc.nat(3), insert: fc.uint8Array({ maxLength: 3 }) });
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 3 }), async (edits) => {
        let mutant: Buffer = good;
        for (const { at, remove, insert } of edits) {
          const from = at % (mutant.length + 1);
          mutant = Buffer.concat([mutant.subarray(0, from), insert, mutant.subarray(from + remove)]);
        }
        fc.pre(!mutant.equals(good));
        try {
          const request = parseCertificateRequest(mutant);
          expect(await faultFrom(verifyCertificateRequest(request))).toMatchObject(BAD_SIGNATURE);
        } catch (error) {
          expect(error).toBeInstanceOf(Fault);
          expect(error).toMatchObject({ kind: "invalid" });
        }
      }),
      { numRuns: 3000 },
    );
  });
});
