import { beforeAll, describe, expect, test } from "vitest";
import { derOfBer } from "../../../src/crypto/ber.ts";
import { readSignedMessage, signerCertificate, verifiedContent } from "../../../src/crypto/cms.ts";
import { contextTag, TAG } from "../../../src/crypto/der.ts";
import { encode, encodeOid, encodeUnsigned, sequence } from "../../../src/crypto/der-writer.ts";
import {
  attribute,
  CMS_OID,
  type CmsSigner,
  cmsSigner,
  contentTypeAttribute,
  digestAttribute,
  opensslSigned,
  signedData,
  signerInfo,
} from "../../support/cms.ts";
import { faultOf } from "../../support/faults.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";

const CONTENT = Buffer.from('{\n  "accountId" : "123456789012"\n}');

let ca: TestCa;
let issued: Issued;
let signer: CmsSigner;
let stranger: Issued;

beforeAll(async () => {
  ca = await createCa({ uris: [], keyType: "rsa-2048" });
  issued = await ca.issue({ uris: [], keyType: "rsa-2048" });
  stranger = await ca.issue({ uris: [], keyType: "rsa-2048" });
  signer = cmsSigner(issued);
});

const content = (message: Uint8Array): string =>
  Buffer.from(verifiedContent(readSignedMessage(message), issued.certificate)).toString();

describe("a signed message", () => {
  test.each([
    { what: "in DER", options: [] },
    { what: "in BER of indefinite lengths, the content in pieces", options: ["-stream"] },
    { what: "without signed attributes", options: ["-stream", "-noattr"] },
    { what: "without its certificate", options: ["-nocerts"] },
    { what: "with SHA-512", options: ["-md", "sha512"] },
  ])("of OpenSSL holds, $what", async ({ options }) => {
    expect(content(await opensslSigned(issued, CONTENT, ...options))).toBe(CONTENT.toString());
  });

  test("longer than one piece holds", async () => {
    const long = Buffer.alloc(9000, "{}");
    expect(content(await opensslSigned(issued, long, "-stream"))).toBe(long.toString());
  });

  test("that Azure has published as an example is read", () => {
    const message = readSignedMessage(Buffer.from(AZURE_EXAMPLE, "base64"));
    expect(JSON.parse(Buffer.from(message.content).toString())).toMatchObject({ nonce: "1234566766", vmId: "" });
    const [der] = message.certificates;
    expect(message.certificates).toHaveLength(1);
    // Its key has 1024 bits, and it is signed with MD5.
    expect(() => verifiedContent(message, signerCertificate(message))).toThrow("RSA key has 1024 bits");
    expect(der?.length).toBeGreaterThan(500);
  });
});

interface Forged {
  readonly reason: string;
  readonly make: () => Uint8Array;
}

const honestSigner = (): Buffer => signerInfo(signer, CONTENT);
const one = (...signers: readonly Buffer[]): Buffer => signedData({ content: CONTENT, signers });

const FORGED: Readonly<Record<string, Forged>> = {
  "T-N1 no content of its own": {
    reason: "does not hold the content",
    make: () => signedData({ content: undefined, signers: [honestSigner()] }),
  },
  "T-N1 two contents": {
    reason: "trailing data",
    make: () => signedData({ content: CONTENT, moreContent: [Buffer.from("{}")], signers: [honestSigner()] }),
  },
  "T-N1 the content of somebody else": {
    reason: "the signed digest is that of another content",
    make: () => signedData({ content: Buffer.from("{}"), signers: [honestSigner()] }),
  },
  "T-N1 something after it": {
    reason: "trailing data",
    make: () => Buffer.concat([one(honestSigner()), Buffer.from([0])]),
  },
  "T-N2 no signer": { reason: "has 0 signers", make: () => one() },
  "T-N2 two signers": {
    reason: "has 2 signers",
    make: () => one(honestSigner(), signerInfo(cmsSigner(stranger), CONTENT)),
  },
  "T-N2 the honest signer twice": { reason: "has 2 signers", make: () => one(honestSigner(), honestSigner()) },
  "T-N2 another signer": {
    reason: "signed by another certificate",
    make: () => one(signerInfo(cmsSigner(stranger), CONTENT)),
  },
  "T-N2 the name of the signer over the key of another": {
    reason: "the signature does not verify",
    make: () => one(signerInfo({ ...signer, key: cmsSigner(stranger).key }, CONTENT)),
  },
  "T-N2 no digest among the attributes": {
    reason: "do not hold the digest",
    make: () => one(signerInfo(signer, CONTENT, { attributes: [contentTypeAttribute()] })),
  },
  "T-N2 no type among the attributes": {
    reason: "do not hold the type",
    make: () => one(signerInfo(signer, CONTENT, { attributes: [digestAttribute(CONTENT)] })),
  },
  "T-N2 another type among the attributes": {
    reason: "do not hold the type",
    make: () => {
      const other = attribute(CMS_OID.contentType, encodeOid(CMS_OID.signedData));
      return one(signerInfo(signer, CONTENT, { attributes: [other, digestAttribute(CONTENT)] }));
    },
  },
  "T-N2 two digests": {
    reason: "appears twice",
    make: () => {
      const attributes = [contentTypeAttribute(), digestAttribute(CONTENT), digestAttribute(Buffer.from("{}"))];
      return one(signerInfo(signer, CONTENT, { attributes }));
    },
  },
  "T-N2 a digest of two values": {
    reason: "trailing data",
    make: () => {
      const values = [CONTENT, Buffer.from("{}")].map((each) => encode(TAG.octetString, each));
      const digest = attribute(CMS_OID.messageDigest, ...values);
      return one(signerInfo(signer, CONTENT, { attributes: [contentTypeAttribute(), digest] }));
    },
  },
  "T-N2 attributes that nobody signed": {
    reason: "the signature does not verify",
    make: () => one(signerInfo(signer, CONTENT, { signed: CONTENT })),
  },
  "T-N2 no attributes where they were signed": {
    reason: "the signature does not verify",
    make: () => {
      const signed = encode(TAG.set, digestAttribute(CONTENT), contentTypeAttribute());
      return one(signerInfo(signer, CONTENT, { attributes: null, signed }));
    },
  },
  "T-N8 an empty signature": {
    reason: "the signature does not verify",
    make: () => one(signerInfo(signer, CONTENT, { signature: Buffer.alloc(0) })),
  },
  "T-N8 a signature of zeros": {
    reason: "the signature does not verify",
    make: () => one(signerInfo(signer, CONTENT, { signature: Buffer.alloc(256) })),
  },
  "T-N8 SHA-1": {
    reason: "an algorithm that is not accepted",
    make: () => one(signerInfo(signer, CONTENT, { digestOid: "1.3.14.3.2.26" })),
  },
  "T-N8 a hash that is not that of the signature": {
    reason: "an algorithm that is not accepted",
    make: () => one(signerInfo(signer, CONTENT, { signatureOid: "1.2.840.113549.1.1.13" })),
  },
  "T-N8 an algorithm that nobody knows": {
    reason: "an algorithm that is not accepted",
    make: () => one(signerInfo(signer, CONTENT, { signatureOid: "1.2.3" })),
  },
  "T-X5 deep nesting": { reason: "nested too deeply", make: () => Buffer.alloc(60_000, Buffer.from([0x30, 0x80])) },
  "T-X5 more bytes than anybody needs": { reason: "larger than 64 KiB", make: () => Buffer.alloc(64 * 1024 + 1) },
};

describe("what is no signed message", () => {
  test.each(Object.entries(FORGED))("%s", (_, { reason, make }) => {
    const { kind, message } = faultOf(() => content(make()));
    expect(message).toContain(reason);
    expect(kind).toMatch(/^(invalid|denied)$/);
  });

  test("T-N2 the signer's certificate is found among others, in any order, and only the signer's", () => {
    const bag = (...certificates: readonly Uint8Array[]) =>
      readSignedMessage(signedData({ content: CONTENT, certificates, signers: [honestSigner()] }));
    for (const order of [
      [issued.der, stranger.der, ca.der],
      [stranger.der, ca.der, issued.der],
      [issued.der, issued.der],
      [sequence(encodeUnsigned(1n)), issued.der],
    ])
      expect(Buffer.from(signerCertificate(bag(...order)).raw)).toEqual(Buffer.from(issued.der));
    expect(() => signerCertificate(bag(stranger.der, ca.der))).toThrow("the one certificate of its signer");
    expect(() => signerCertificate(bag())).toThrow("the one certificate of its signer");
  });

  test("T-N2 another certificate of the signer's name and number is not taken for it", async () => {
    const { issuer, serialNumber } = issued.certificate;
    const twin = await ca.issue({ uris: [], issuerName: issuer, serialNumber: BigInt(serialNumber) });
    const certificates = [twin.der, issued.der];
    const message = readSignedMessage(signedData({ content: CONTENT, certificates, signers: [honestSigner()] }));
    expect(() => signerCertificate(message)).toThrow("the one certificate of its signer");
  });
});

describe("BER", () => {
  test.each([
    ["24800402414204014300 00", "0403414243"],
    ["30810302010100", undefined],
    ["3081030201 01", "3003020101"],
    ["3080 3080 0000 0000", "30023000"],
    ["0480 41 0000", undefined],
    ["2480 020101 0000", undefined],
    ["3003 020201 0102", undefined],
    ["3002 020101", undefined],
    ["3080 020101", undefined],
    ["3080 020101 0001", undefined],
    ["1f8101 00", undefined],
    ["3085 0000000001 00", undefined],
  ])("%s becomes %s", (ber, der) => {
    const read = (): string => Buffer.from(derOfBer(Buffer.from(ber.replaceAll(" ", ""), "hex"))).toString("hex");
    if (der === undefined) expect(read).toThrow();
    else expect(read()).toBe(der);
  });

  test("DER stays as it is", () => {
    const der = sequence(encodeUnsigned(300n), encode(contextTag(0, true), Buffer.from(ca.der)));
    expect(Buffer.from(derOfBer(der))).toEqual(der);
  });
});

/** From Microsoft's documentation of the Azure Instance Metadata Service, section "Attested data". */
const AZURE_EXAMPLE =
  "MIIEEgYJKoZIhvcNAQcCoIIEAzCCA/8CAQExDzANBgkqhkiG9w0BAQsFADCBugYJKoZIhvcNAQcBoIGsBIGpeyJub25jZSI6IjEyMzQ1NjY3NjYiLCJwbGFuIjp7Im5hbWUiOiIiLCJwcm9kdWN0IjoiIiwicHVibGlzaGVyIjoiIn0sInRpbWVTdGFtcCI6eyJjcmVhdGVkT24iOiIxMS8yMC8xOCAyMjowNzozOSAtMDAwMCIsImV4cGlyZXNPbiI6IjExLzIwLzE4IDIyOjA4OjI0IC0wMDAwIn0sInZtSWQiOiIifaCCAj8wggI7MIIBpKADAgECAhBnxW5Kh8dslEBA0E2mIBJ0MA0GCSqGSIb3DQEBBAUAMCsxKTAnBgNVBAMTIHRlc3RzdWJkb21haW4ubWV0YWRhdGEuYXp1cmUuY29tMB4XDTE4MTEyMDIxNTc1N1oXDTE4MTIyMDIxNTc1NlowKzEpMCcGA1UEAxMgdGVzdHN1YmRvbWFpbi5tZXRhZGF0YS5henVyZS5jb20wgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGBAML/tBo86ENWPzmXZ0kPkX5dY5QZ150mA8lommszE71x2sCLonzv4/UWk4H+jMMWRRwIea2CuQ5RhdWAHvKq6if4okKNt66fxm+YTVz9z0CTfCLmLT+nsdfOAsG1xZppEapC0Cd9vD6NCKyE8aYI1pliaeOnFjG0WvMY04uWz2MdAgMBAAGjYDBeMFwGA1UdAQRVMFOAENnYkHLa04Ut4Mpt7TkJFfyhLTArMSkwJwYDVQQDEyB0ZXN0c3ViZG9tYWluLm1ldGFkYXRhLmF6dXJlLmNvbYIQZ8VuSofHbJRAQNBNpiASdDANBgkqhkiG9w0BAQQFAAOBgQCLSM6aX5Bs1KHCJp4VQtxZPzXF71rVKCocHy3N9PTJQ9Fpnd+bYw2vSpQHg/AiG82WuDFpPReJvr7Pa938mZqW9HUOGjQKK2FYDTg6fXD8pkPdyghlX5boGWAMMrf7bFkup+lsT+n2tRw2wbNknO1tQ0wICtqy2VqzWwLi45RBwTGB6DCB5QIBATA/MCsxKTAnBgNVBAMTIHRlc3RzdWJkb21haW4ubWV0YWRhdGEuYXp1cmUuY29tAhBnxW5Kh8dslEBA0E2mIBJ0MA0GCSqGSIb3DQEBCwUAMA0GCSqGSIb3DQEBAQUABIGAld1BM/yYIqqv8SDE4kjQo3Ul/IKAVR8ETKcve5BAdGSNkTUooUGVniTXeuvDj5NkmazOaKZp9fEtByqqPOyw/nlXaZgOO44HDGiPUJ90xVYmfeK6p9RpJBu6kiKhnnYTelUk5u75phe5ZbMZfBhuPhXmYAdjc7Nmw97nx8NnprQ=";
