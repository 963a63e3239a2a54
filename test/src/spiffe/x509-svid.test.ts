import { describe, expect, test } from "vitest";
import type { Certificate } from "../../../src/crypto/certificate.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { TAG } from "../../../src/crypto/der.ts";
import { encode } from "../../../src/crypto/der-writer.ts";
import { EXT_KEY_USAGE, type KeyUsage } from "../../../src/crypto/extensions.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { encodeBundleDocument, parseBundleDocument } from "../../../src/spiffe/bundle.ts";
import { parseTrustDomain, type TrustDomain, trustDomainOf } from "../../../src/spiffe/id.ts";
import { readUnverifiedX509SvidId, validateX509Svid } from "../../../src/spiffe/x509-svid.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import {
  type CertificateOptions,
  createCa,
  dnsName,
  emailName,
  type Issued,
  nameConstraints,
  uriName,
} from "../../support/pki.ts";

const NOW = systemClock.now();
const HOUR_MS = 3_600_000;
const past = (hours: number): Date => new Date(NOW.getTime() - hours * HOUR_MS);

const A = parseTrustDomain("example.org");
const B = parseTrustDomain("partner.test");
const rootA = await createCa({ trustDomain: A });
const intA = await rootA.intermediate();
const rootB = await createCa({ trustDomain: B });
const leafB = await rootB.issue();

type Bundles = ReadonlyMap<TrustDomain, readonly Certificate[]>;
const BOTH: Bundles = new Map([
  [A, [rootA.certificate]],
  [B, [rootB.certificate]],
]);

function validate(chain: readonly Certificate[], bundles: Bundles = BOTH): string {
  return validateX509Svid({ chain, authorities: (trustDomain) => bundles.get(trustDomain), at: NOW });
}

/** Code of the refusal, or the ID. Runs the unchanged fixture first, so that a broken one cannot pass for a refusal. */
function verdict(chain: readonly Certificate[], bundles: Bundles = BOTH): string {
  expect(validate(good.certificates)).toBe("spiffe://example.org/web");
  try {
    return validate(chain, bundles);
  } catch (error) {
    expect(error).toMatchObject({ kind: "denied" });
    return (error as { code: string }).code;
  }
}

const good = await intA.issue();
const leaf = (options: CertificateOptions): Promise<Issued> => intA.issue(options);
const WEB = "spiffe://example.org/web";

describe("the form of the leaf", () => {
  const rows: readonly { what: string; options: CertificateOptions; verdict: string }[] = [
    {
      what: "X509-02 a second SPIFFE ID",
      options: { uris: [WEB, "spiffe://example.org/other"] },
      verdict: "several-uri-sans",
    },
    {
      what: "X509-02 a second URI of another scheme",
      options: { uris: [WEB, "https://x/"] },
      verdict: "several-uri-sans",
    },
    { what: "X509-02 the same URI twice", options: { uris: [WEB, WEB] }, verdict: "several-uri-sans" },
    { what: "X509-02 no URI but a DNS name", options: { uris: [], dnsNames: ["web.local"] }, verdict: "no-uri-san" },
    { what: "X509-02 no names at all", options: { uris: [] }, verdict: "no-uri-san" },
    { what: "X509-03 a DNS name", options: { dnsNames: ["web.local"] }, verdict: WEB },
    { what: "X509-03 an IP address", options: { ipAddresses: [Buffer.from([10, 0, 0, 1])] }, verdict: WEB },
    { what: "X509-03 an email address", options: { emailAddresses: ["web@example.org"] }, verdict: WEB },
    {
      what: "X509-03 50 DNS names",
      options: { dnsNames: Array.from({ length: 50 }, (_, i) => `${i}.web.local`) },
      verdict: WEB,
    },
    {
      what: "X509-06 names that are critical, with an empty subject",
      options: { subject: {}, sanCritical: true },
      verdict: WEB,
    },
    { what: "X509-06 names that are critical, with a subject", options: { sanCritical: true }, verdict: WEB },
    { what: "X509-32 the scheme sparfe", options: { id: "sparfe://example.org/web" }, verdict: "spiffe-id-scheme" },
    { what: "X509-32 the scheme https", options: { id: "https://example.org/web" }, verdict: "spiffe-id-scheme" },
    {
      what: "X509-32 ID-20 the scheme in upper case",
      options: { id: "SPIFFE://example.org/web" },
      verdict: "spiffe-id-scheme",
    },
    { what: "X509-33 no path", options: { id: "spiffe://example.org" }, verdict: "no-path" },
    { what: "X509-33 only a slash", options: { id: "spiffe://example.org/" }, verdict: "spiffe-id-path" },
    {
      what: "T-X1 a trust domain in upper case",
      options: { id: "spiffe://Example.org/web" },
      verdict: "trust-domain-characters",
    },
    { what: "T-X1 a port", options: { id: "spiffe://example.org:443/web" }, verdict: "trust-domain-characters" },
    { what: "T-X1 a user", options: { id: "spiffe://user@example.org/web" }, verdict: "trust-domain-characters" },
    { what: "T-X1 a query", options: { id: "spiffe://example.org/web?x=1" }, verdict: "spiffe-id-path" },
    { what: "T-X1 a dot segment", options: { id: "spiffe://example.org/a/../web" }, verdict: "spiffe-id-path" },
    { what: "T-X1 an encoded slash", options: { id: "spiffe://example.org/a%2Fweb" }, verdict: "spiffe-id-path" },
    {
      what: "T-X3 a NUL in the ID",
      options: { id: "spiffe://example.org/web\0.partner.test" },
      verdict: "spiffe-id-path",
    },
    {
      what: "T-X3 an ID with a list inside",
      options: { id: "spiffe://example.org/web, URI:spiffe://example.org/admin" },
      verdict: "spiffe-id-path",
    },
    {
      what: "T-X3 a DNS name that prints like an ID",
      options: { dnsNames: ["x, URI:spiffe://example.org/admin"] },
      verdict: WEB,
    },
    {
      what: "ID-18 an ID of 2049 bytes",
      options: { id: `spiffe://example.org/${"a".repeat(2049 - 21)}` },
      verdict: "spiffe-id-too-long",
    },
    { what: "X509-30 a leaf that is a CA", options: { ca: true }, verdict: "leaf-is-ca" },
    { what: "X509-30 no basic constraints", options: { basicConstraints: null }, verdict: WEB },
    { what: "X509-25 no extended key usage", options: { extKeyUsage: null }, verdict: WEB },
    { what: "X509-26 a critical extended key usage", options: { extKeyUsageCritical: true }, verdict: WEB },
    { what: "T-X7 serverAuth alone", options: { extKeyUsage: [EXT_KEY_USAGE.serverAuth] }, verdict: "ext-key-usage" },
    { what: "T-X7 clientAuth alone", options: { extKeyUsage: [EXT_KEY_USAGE.clientAuth] }, verdict: "ext-key-usage" },
    { what: "T-X7 code signing", options: { extKeyUsage: [EXT_KEY_USAGE.codeSigning] }, verdict: "ext-key-usage" },
    { what: "T-X7 any usage, in a leaf", options: { extKeyUsage: [EXT_KEY_USAGE.any] }, verdict: "ext-key-usage" },
    {
      what: "T-X7 both and a third",
      options: { extKeyUsage: [EXT_KEY_USAGE.clientAuth, EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.codeSigning] },
      verdict: WEB,
    },
    {
      what: "X509-29 an unknown critical extension",
      options: { extensions: [{ oid: "1.2.3.4", critical: true, value: encode(TAG.null) }] },
      verdict: "unknown-critical-extension",
    },
    {
      what: "X509-29 an unknown extension that is not critical",
      options: { extensions: [{ oid: "1.2.3.4", value: encode(TAG.null) }] },
      verdict: WEB,
    },
    {
      what: "X509-29 an expired leaf",
      options: { notBefore: past(2), notAfter: past(1) },
      verdict: "certificate-expired",
    },
    {
      what: "X509-29 a leaf that is not yet valid",
      options: { notBefore: past(-1), notAfter: past(-2) },
      verdict: "certificate-not-yet-valid",
    },
    {
      what: "X509-29 the signature of another authority",
      options: { signedBy: rootB.signer },
      verdict: "certificate-signature",
    },
  ];
  test.each(rows)("$what: $verdict", async ({ options, verdict: expected }) => {
    expect(verdict((await leaf(options)).certificates)).toBe(expected);
  });
});

describe("key usage", () => {
  const combinations: readonly { usages: readonly KeyUsage[]; verdict: string }[] = [
    { usages: [], verdict: "leaf-no-digital-signature" },
    { usages: ["digitalSignature"], verdict: WEB },
    { usages: ["keyCertSign"], verdict: "leaf-key-cert-sign" },
    { usages: ["cRLSign"], verdict: "leaf-crl-sign" },
    { usages: ["digitalSignature", "keyCertSign"], verdict: "leaf-key-cert-sign" },
    { usages: ["digitalSignature", "cRLSign"], verdict: "leaf-crl-sign" },
    { usages: ["keyCertSign", "cRLSign"], verdict: "leaf-key-cert-sign" },
    { usages: ["digitalSignature", "keyCertSign", "cRLSign"], verdict: "leaf-key-cert-sign" },
  ];
  test.each(combinations)("X509-31 X509-21 a leaf with $usages: $verdict", async ({ usages, verdict: expected }) => {
    expect(verdict((await leaf({ keyUsage: usages })).certificates)).toBe(expected);
  });

  const others: readonly (readonly KeyUsage[])[] = [
    ["keyEncipherment"],
    ["keyAgreement"],
    ["keyEncipherment", "keyAgreement"],
  ];
  test.each(others)("X509-22 digitalSignature with %s %s is accepted", async (...usages) => {
    const keyUsage: readonly KeyUsage[] = ["digitalSignature", ...usages.filter((usage) => usage !== undefined)];
    expect(verdict((await leaf({ keyUsage })).certificates)).toBe(WEB);
  });

  test("X509-18 X509-21 a key usage that is absent or not critical does not loosen anything", async () => {
    expect(verdict((await leaf({ keyUsage: null })).certificates)).toBe("leaf-no-digital-signature");
    expect(verdict((await leaf({ keyUsage: ["digitalSignature"], keyUsageCritical: false })).certificates)).toBe(WEB);
    expect(
      verdict((await leaf({ keyUsage: ["digitalSignature", "cRLSign"], keyUsageCritical: false })).certificates),
    ).toBe("leaf-crl-sign");
  });
});

describe("who may vouch", () => {
  test("X509-04 X509-08 an authority is no peer, whether intermediate or in the bundle", async () => {
    expect(verdict([intA.certificate])).toBe("no-path");
    const pathed = await createCa({ id: WEB });
    const bundles = new Map([[A, [pathed.certificate, rootA.certificate]]]);
    expect(verdict([pathed.certificate], bundles)).toBe("leaf-is-ca");
    const posing = await createCa({ id: WEB, ca: false, keyUsage: ["digitalSignature"] });
    expect(verdict([posing.certificate], new Map([[A, [posing.certificate, rootA.certificate]]]))).toBe("not-a-ca");
  });

  test("X509-09 authorities without names serve as well", async () => {
    const root = await createCa({ uris: [] });
    const { certificates } = await (await root.intermediate({ uris: [] })).issue();
    expect(verdict(certificates, new Map([[A, [root.certificate]]]))).toBe(WEB);
  });

  test("X509-12 X509-13 three levels, and a path length that is exceeded", async () => {
    const lower = await intA.intermediate();
    expect(verdict((await lower.issue()).certificates)).toBe(WEB);
    const narrow = await rootA.intermediate({ pathLength: 0 });
    expect(verdict((await narrow.issue()).certificates)).toBe(WEB);
    expect(verdict((await (await narrow.intermediate()).issue()).certificates)).toBe("path-length");
  });

  test("X509-16 T-X2 an authority that is confined to a trust domain or to DNS names", async () => {
    const confined = await rootA.intermediate({
      extensions: [nameConstraints({ permitted: [uriName("example.org"), dnsName("example.org")] })],
    });
    expect(verdict((await confined.issue()).certificates)).toBe(WEB);
    expect(verdict((await confined.issue({ dnsNames: ["partner.test"] })).certificates)).toBe("name-constraint");
    const bundles = new Map([
      [A, [rootA.certificate]],
      [B, [rootA.certificate]],
    ]);
    const outside = (await confined.issue({ id: "spiffe://partner.test/x" })).certificates;
    expect(verdict(outside, bundles)).toBe("name-constraint");
    const email = await rootA.intermediate({ extensions: [nameConstraints({ permitted: [emailName("x")] })] });
    expect(verdict((await email.issue()).certificates)).toBe("name-constraint");
  });

  test("X509-20 X509-24 cRLSign may be missing, and digitalSignature there, in a foreign authority", async () => {
    const ca = await rootA.intermediate({ keyUsage: ["keyCertSign", "digitalSignature"] });
    expect(verdict((await ca.issue()).certificates)).toBe(WEB);
  });

  test.each([
    { purposes: [EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.clientAuth], expected: WEB },
    { purposes: [EXT_KEY_USAGE.any], expected: WEB },
    { purposes: [EXT_KEY_USAGE.codeSigning], expected: "ext-key-usage" },
    { purposes: [EXT_KEY_USAGE.clientAuth], expected: "ext-key-usage" },
  ])("X509-28 T-X7 an intermediate for $purposes: $expected", async ({ purposes, expected }) => {
    const ca = await rootA.intermediate({ extKeyUsage: purposes });
    expect(verdict((await ca.issue()).certificates)).toBe(expected);
  });

  test("T-C4 a leaf signs nothing, and a self-signed namesake is nobody", async () => {
    const below = await intA.issue({
      id: "spiffe://example.org/admin",
      issuerName: good.certificate.subject,
      signedBy: good.signer,
    });
    expect(verdict([below.certificate, ...good.certificates])).not.toBe("spiffe://example.org/admin");
    const selfSigned = await intA.issue({
      signer: good.signer,
      signedBy: good.signer,
      issuerName: good.certificate.subject,
    });
    expect(verdict([selfSigned.certificate, ...good.certificates.slice(1)])).not.toBe(WEB);
    const namesake = await createCa({ subject: {}, signer: good.signer, id: WEB });
    expect(verdict([namesake.certificate])).toBe("leaf-is-ca");
  });

  test("X509-29 a chain without its intermediate, and no chain at all", () => {
    expect(verdict([good.certificate])).toBe("unknown-authority");
    expect(verdict([])).toBe("empty-chain");
  });
});

describe("trust anchors are those of the leaf's own trust domain", () => {
  test("ID-21 X509-34 an ID of B signed by an authority of A", async () => {
    const { certificates } = await intA.issue({ id: "spiffe://partner.test/x" });
    expect(verdict(certificates)).toBe("unknown-authority");
    const reversed = new Map([...BOTH].reverse());
    expect(verdict(certificates, reversed)).toBe("unknown-authority");
  });

  test("X509-34 a leaf of B where only A's bundle is held", () => {
    expect(verdict(leafB.certificates)).toBe("spiffe://partner.test/web");
    expect(verdict(leafB.certificates, new Map([[A, [rootA.certificate]]]))).toBe("no-bundle");
    expect(faultOf(() => validate(leafB.certificates, new Map())).message).toContain('trust domain "partner.test"');
  });

  test("X509-34 B's root inside A's bundle does not help a leaf of B", () => {
    expect(verdict(leafB.certificates, new Map([[A, [rootA.certificate, rootB.certificate]]]))).toBe("no-bundle");
    const apart = new Map([
      [A, [rootA.certificate, rootB.certificate]],
      [B, [rootA.certificate]],
    ]);
    expect(verdict(leafB.certificates, apart)).toBe("unknown-authority");
  });

  test("X509-34 the authorities of no other trust domain are even asked for", () => {
    const asked: TrustDomain[] = [];
    const authorities = (trustDomain: TrustDomain): readonly Certificate[] | undefined => {
      asked.push(trustDomain);
      return BOTH.get(trustDomain);
    };
    expect(validateX509Svid({ chain: leafB.certificates, authorities, at: NOW })).toBe("spiffe://partner.test/web");
    expect(asked).toEqual([B]);
  });

  test("T-S8 TDB-02 the same path in another trust domain is another identity, even under a shared authority", async () => {
    const shared = new Map([
      [A, [rootA.certificate]],
      [B, [rootA.certificate, rootB.certificate]],
    ]);
    const { certificates } = await intA.issue({ id: "spiffe://partner.test/web" });
    const id = validateX509Svid({ chain: certificates, authorities: (td) => shared.get(td), at: NOW });
    expect(id).toBe("spiffe://partner.test/web");
    expect(trustDomainOf(id)).toBe(B);
    expect(id).not.toBe(validate(good.certificates));
    expect(verdict(certificates)).toBe("unknown-authority");
  });

  test("TDB-14 X509-42 an empty bundle, or one without X.509 authorities, trusts nothing", () => {
    const load = (text: string): Bundles =>
      new Map([[A, parseBundleDocument(A, text).x509Authorities.map(({ asn1 }) => parseCertificate(asn1))]]);
    const document = (x509: readonly Uint8Array[]): string =>
      encodeBundleDocument({
        trustDomain: A,
        x509Authorities: x509.map((asn1) => ({ asn1, tainted: false })),
        jwtAuthorities: [{ publicKey: good.signer.publicKey, keyId: "ja1", expiresAt: 0, tainted: false }],
        witAuthorities: [],
        refreshHint: 0,
        sequenceNumber: 1n,
      });
    expect(verdict(good.certificates, load(document([rootA.der])))).toBe(WEB);
    expect(verdict(good.certificates, load(document([])))).toBe("unknown-authority");
    expect(verdict(good.certificates, load('{"keys":[]}'))).toBe("unknown-authority");
    expect(verdict(good.certificates, load('{"keys":[{"kty":"AKP","use":"x509-svid"}]}'))).toBe("unknown-authority");
  });
});

test("ID-26 ID and key are covered by the signature", async () => {
  const swap = async (tamper: (der: Buffer) => Buffer): Promise<string> =>
    verdict((await leaf({ tamper })).certificates);
  const replaced = (from: Uint8Array, to: Uint8Array) => (der: Buffer) => {
    const changed = Buffer.from(der);
    changed.set(to, changed.indexOf(from));
    return changed;
  };
  expect(await swap(replaced(Buffer.from("/web"), Buffer.from("/wed")))).toBe("certificate-signature");
  const otherKey = good.signer.publicKey;
  const { signer } = await leaf({});
  expect(await swap(replaced(signer.publicKey.subarray(0, 26), signer.publicKey.subarray(0, 26)))).toBe(WEB);
  const swapped = await intA.issue({ signer, tamper: replaced(signer.publicKey, otherKey) });
  expect(verdict(swapped.certificates)).toBe("certificate-signature");
});

test("the unverified ID is read with the rules of form, and nothing else", async () => {
  const expired = await leaf({ notBefore: past(2), notAfter: past(1) });
  expect(readUnverifiedX509SvidId(expired.certificate)).toBe(WEB);
  const none = await leaf({ uris: [] });
  expect(faultOf(() => readUnverifiedX509SvidId(none.certificate))).toMatchObject({
    ...refusal("denied", "no-uri-san"),
    message: "x509svid: certificate contains no URI SAN",
  });
});
