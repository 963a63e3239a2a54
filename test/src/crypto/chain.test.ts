import { describe, expect, test } from "vitest";
import { type Certificate, parseCertificate } from "../../../src/crypto/certificate.ts";
import { verifyChain } from "../../../src/crypto/chain.ts";
import { TAG } from "../../../src/crypto/der.ts";
import { encode } from "../../../src/crypto/der-writer.ts";
import { EXT_KEY_USAGE } from "../../../src/crypto/extensions.ts";
import { generateKey, KEY_TYPES, subjectKeyId } from "../../../src/crypto/key.ts";
import { encodeName } from "../../../src/crypto/name.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { opensslVerifies } from "../../support/openssl.ts";
import {
  type CertificateOptions,
  createCa,
  dnsName,
  emailName,
  type Issued,
  nameConstraints,
  type TestCa,
  uriName,
} from "../../support/pki.ts";

const NOW = systemClock.now();
const HOUR_MS = 3_600_000;
const past = (hours: number): Date => new Date(NOW.getTime() - hours * HOUR_MS);
const future = (hours: number): Date => new Date(NOW.getTime() + hours * HOUR_MS);

const root = await createCa();
const other = await createCa();
const int1 = await root.intermediate();
const int2 = await int1.intermediate();
const critical = { oid: "1.2.3.4", critical: true, value: encode(TAG.null) };

interface Case {
  readonly what: string;
  readonly chain: readonly Uint8Array[];
  readonly roots?: readonly Uint8Array[];
  /** Code of the refusal; undefined where the chain holds. */
  readonly code?: string;
  /** Why `openssl verify` rightly says something else. */
  readonly opensslDiffers?: string;
}

/** A leaf below a CA below the root, where the CA is changed. */
async function below(options: CertificateOptions, leaf: CertificateOptions = {}): Promise<readonly Uint8Array[]> {
  return (await (await root.intermediate(options)).issue(leaf)).chain;
}

async function below2(upper: CertificateOptions, lower: CertificateOptions = {}): Promise<readonly Uint8Array[]> {
  return (await (await (await root.intermediate(upper)).intermediate(lower)).issue()).chain;
}

/** A leaf below a root that is changed. */
async function under(
  options: CertificateOptions,
  leaf: CertificateOptions = {},
): Promise<Pick<Case, "chain" | "roots">> {
  const anchor = await createCa(options);
  return { chain: (await anchor.issue(leaf)).chain, roots: [anchor.der] };
}

/** A certificate that the leaf's own key signed. */
async function signedByLeaf(): Promise<readonly Uint8Array[]> {
  const leaf = await int1.issue();
  const forged = await root.issue({ issuerName: leaf.certificate.subject, signedBy: leaf.signer });
  return [forged.der, ...leaf.chain];
}

/** Same subject and key id as the root, another key. */
const impostor = await createCa({
  subject: { country: ["US"], organization: ["SPIFFE"] },
  subjectKeyId: Buffer.from(root.certificate.subjectKeyId, "hex"),
});

async function fromImpostor(): Promise<readonly Uint8Array[]> {
  const leaf = await impostor.issue({ issuerName: root.certificate.subject });
  return [leaf.der];
}

const crossSigned = await other.intermediate({
  signer: int1.signer,
  subject: { country: ["US"], organization: ["CROSS"] },
});
const crossOfInt1 = await issueAs(other, int1);

/** Another CA's certificate for the same name and key. */
async function issueAs(issuer: TestCa, subject: TestCa): Promise<Issued> {
  return issuer.issue({
    signer: subject.signer,
    subject: nameOf(subject),
    id: "spiffe://example.org",
    ca: true,
    keyUsage: ["keyCertSign", "cRLSign"],
    extKeyUsage: null,
  });
}

function nameOf(ca: TestCa): { country: string[]; organization: string[]; serialNumber: string } {
  const text = /example\.org \d+/.exec(Buffer.from(ca.certificate.subject).toString("latin1"))?.[0] ?? "";
  return { country: ["US"], organization: ["SPIFFE"], serialNumber: text };
}

/** A CA of path length 0 that certifies a new key of its own, and a leaf below that. */
async function rolledOver(): Promise<readonly Uint8Array[]> {
  const old = await root.intermediate({ pathLength: 0 });
  const signer = await generateKey("ec-p256");
  const ca: CertificateOptions = { ca: true, keyUsage: ["keyCertSign"], extKeyUsage: null };
  const rolled = await old.issue({ ...ca, signer, subject: nameOf(old) });
  const leaf = await old.issue({ signedBy: signer, authorityKeyId: subjectKeyId(signer.publicKey) });
  return [leaf.der, rolled.der, old.der];
}

const leaf0 = await root.issue();
const leaf1 = await int1.issue();
const leaf2 = await int2.issue();
const constrained = (...names: readonly Uint8Array[]): CertificateOptions => ({
  extensions: [nameConstraints({ permitted: names })],
});
const excluding = (...names: readonly Uint8Array[]): CertificateOptions => ({
  extensions: [nameConstraints({ excluded: names })],
});
const partner: CertificateOptions = { id: "spiffe://partner.test/x" };

const CASES: readonly Case[] = [
  { what: "X509-29 a leaf below the root", chain: leaf0.chain },
  { what: "X509-29 one intermediate", chain: leaf1.chain },
  { what: "X509-12 two intermediates", chain: leaf2.chain },
  { what: "X509-29 shuffled intermediates", chain: [leaf2.der, int1.der, int2.der] },
  { what: "X509-29 an unrelated certificate in between", chain: [leaf1.der, other.der, leaf0.der, int1.der] },
  { what: "X509-29 the root sent along", chain: [...leaf1.chain, root.der] },
  {
    what: "X509-29 a cross-signed intermediate, with the anchor of either side",
    chain: [leaf1.der, crossOfInt1.der],
    roots: [other.der],
  },
  {
    what: "X509-29 both certificates of a cross-signed intermediate",
    chain: [leaf1.der, crossOfInt1.der, int1.der],
    roots: [root.der],
    opensslDiffers: "it keeps to the first issuer it meets",
  },
  { what: "X509-29 an anchor that is not self-signed", chain: leaf1.chain.slice(0, 1), roots: [int1.der] },
  { what: "X509-29 the right anchor among others", chain: leaf1.chain, roots: [other.der, impostor.der, root.der] },
  { what: "X509-09 authorities without names", ...(await under({ uris: [] })) },
  { what: "X509-13 path length 0 right above the leaf", chain: await below({ pathLength: 0 }) },
  { what: "X509-13 path length 1 with one CA below", chain: await below2({ pathLength: 1 }, { pathLength: 0 }) },
  { what: "X509-20 an authority without cRLSign", chain: await below({ keyUsage: ["keyCertSign"] }) },
  {
    what: "X509-24 an authority with digitalSignature",
    chain: await below({ keyUsage: ["digitalSignature", "keyCertSign"] }),
  },
  { what: "X509-07 an authority without a key usage", chain: await below({ keyUsage: null }) },
  { what: "X509-30 a leaf without basic constraints", chain: (await int1.issue({ basicConstraints: null })).chain },
  { what: "X509-16 a leaf inside the URI constraint", chain: await below(constrained(uriName("example.org"))) },
  {
    what: "T-X2 a leaf inside the DNS constraint",
    chain: await below(constrained(dnsName("example.org")), { dnsNames: ["web.example.org"] }),
  },
  {
    what: "a self-issued certificate, which does not count for the path length",
    chain: await rolledOver(),
  },
  {
    what: "a certificate without key ids",
    chain: await below({ subjectKeyId: null, authorityKeyId: null }, { authorityKeyId: null }),
  },
  { what: "a critical extended key usage", chain: (await int1.issue({ extKeyUsageCritical: true })).chain },

  { what: "X509-29 an intermediate that is missing", chain: [leaf2.der, int1.der], code: "unknown-authority" },
  { what: "X509-29 no anchor at all", chain: leaf1.chain, roots: [], code: "unknown-authority" },
  { what: "X509-29 another root", chain: leaf1.chain, roots: [other.der], code: "unknown-authority" },
  {
    what: "T-C4 an impostor root with the same subject and key id",
    chain: await fromImpostor(),
    code: "certificate-signature",
  },
  {
    what: "X509-29 an issuer with another name",
    chain: (await int1.issue({ issuerName: encodeName({ organization: "x" }) })).chain,
    code: "unknown-authority",
  },
  {
    what: "X509-29 an expired leaf",
    chain: (await int1.issue({ notBefore: past(2), notAfter: past(1) })).chain,
    code: "certificate-expired",
  },
  {
    what: "X509-29 a leaf that is not yet valid",
    chain: (await int1.issue({ notBefore: future(1), notAfter: future(2) })).chain,
    code: "certificate-not-yet-valid",
  },
  {
    what: "X509-29 an expired intermediate",
    chain: await below({ notBefore: past(2), notAfter: past(1) }),
    code: "certificate-expired",
  },
  {
    what: "X509-29 an intermediate that is not yet valid",
    chain: await below({ notBefore: future(1), notAfter: future(2) }),
    code: "certificate-not-yet-valid",
  },
  {
    what: "X509-29 an expired root",
    ...(await under({ notBefore: past(2), notAfter: past(1) })),
    code: "certificate-expired",
  },
  {
    what: "X509-29 a signature by another key",
    chain: (await int1.issue({ signedBy: other.signer })).chain,
    code: "certificate-signature",
  },
  {
    what: "X509-29 an unknown critical extension in the leaf",
    chain: (await int1.issue({ extensions: [critical] })).chain,
    code: "unknown-critical-extension",
  },
  {
    what: "X509-29 an unknown critical extension in an intermediate",
    chain: await below({ extensions: [critical] }),
    code: "unknown-critical-extension",
  },
  {
    what: "X509-29 an unknown critical extension in the root",
    ...(await under({ extensions: [critical] })),
    code: "unknown-critical-extension",
  },
  { what: "X509-13 path length 0 with a CA below", chain: await below2({ pathLength: 0 }), code: "path-length" },
  {
    what: "X509-13 path length 0 in the root with a CA below",
    ...(await underRootOf({ pathLength: 0 })),
    code: "path-length",
  },
  {
    what: "X509-07 an intermediate without keyCertSign",
    chain: await below({ keyUsage: ["cRLSign"] }),
    code: "missing-key-cert-sign",
  },
  {
    what: "X509-18 the same in a key usage that is not critical",
    chain: await below({ keyUsage: ["cRLSign"], keyUsageCritical: false }),
    code: "missing-key-cert-sign",
  },
  { what: "X509-07 keyCertSign without cA", chain: await below({ ca: false }), code: "not-a-ca" },
  {
    what: "X509-07 an intermediate without basic constraints",
    chain: await below({ basicConstraints: null }),
    code: "not-a-ca",
  },
  { what: "T-C4 a leaf that acts as a CA", chain: await signedByLeaf(), code: "not-a-ca" },
  {
    what: "T-C8 a leaf among the anchors, vouching for itself",
    chain: [leaf1.der],
    roots: [leaf1.der],
    code: "unknown-authority",
    opensslDiffers: "with partial chains a trusted leaf is its own anchor",
  },
  {
    what: "T-C8 a leaf among the anchors, vouching for another",
    chain: (await signedByLeaf()).slice(0, 1),
    roots: [leaf1.der],
    code: "not-a-ca",
  },
  {
    what: "X509-16 a leaf outside the URI constraint",
    chain: await below(constrained(uriName("example.org")), partner),
    code: "name-constraint",
  },
  {
    what: "X509-16 a leaf in an excluded URI",
    chain: await below(excluding(uriName("partner.test")), partner),
    code: "name-constraint",
  },
  {
    what: "X509-16 a leaf outside the constraint of the root",
    ...(await under(constrained(uriName("example.org")), partner)),
    code: "name-constraint",
  },
  {
    what: "T-X2 a DNS name outside the constraint",
    chain: await below(constrained(dnsName("example.org")), { dnsNames: ["partner.test"] }),
    code: "name-constraint",
  },
  {
    what: "T-X2 a wildcard that covers an excluded name",
    chain: await below(excluding(dnsName("secret.example.org")), { dnsNames: ["*.example.org"] }),
    code: "name-constraint",
    opensslDiffers: "it compares the wildcard as text",
  },
  {
    what: "X509-16 a constraint of a kind that is not understood",
    chain: await below(constrained(emailName("example.org"))),
    code: "name-constraint",
    opensslDiffers: "the leaf has no email name to hold against it",
  },
  {
    what: "X509-16 the same, not critical",
    chain: await below({ extensions: [nameConstraints({ permitted: [emailName("x")], critical: false })] }),
    code: "name-constraint",
    opensslDiffers: "the leaf has no email name to hold against it",
  },
];

async function underRootOf(options: CertificateOptions): Promise<Pick<Case, "chain" | "roots">> {
  const anchor = await createCa(options);
  return { chain: (await (await anchor.intermediate()).issue()).chain, roots: [anchor.der] };
}

function parsed(ders: readonly Uint8Array[]): readonly Certificate[] {
  return ders.map(parseCertificate);
}

describe("accepted and refused as RFC 5280 has it", () => {
  test.each(CASES)("$what: $code", ({ chain, roots = [root.der], code }) => {
    const verify = (): readonly Certificate[] => verifyChain({ chain: parsed(chain), roots: parsed(roots), at: NOW });
    if (code === undefined) {
      const path = verify();
      expect(path[0]?.raw).toEqual(chain[0]);
      expect(roots.map((der) => Buffer.from(der))).toContainEqual(Buffer.from(path.at(-1)?.raw ?? []));
    } else expect(faultOf(verify)).toMatchObject(refusal("denied", code));
  });

  test.each(CASES)("openssl says the same: $what", async ({ chain, roots = [root.der], code, opensslDiffers }) => {
    const verdict = await opensslVerifies({ chain, roots, at: NOW });
    expect(verdict).toBe((code === undefined) !== (opensslDiffers !== undefined));
  });
});

test("X509-28 what extended key usage a CA has is not this function's matter", async () => {
  const chain = await below({ extKeyUsage: [EXT_KEY_USAGE.codeSigning] });
  expect(verifyChain({ chain: parsed(chain), roots: [root.certificate], at: NOW })).toHaveLength(3);
});

describe("times are inclusive at both ends", () => {
  const notBefore = new Date("2030-01-01T00:00:00Z");
  const notAfter = new Date("2030-01-01T01:00:00Z");
  const shifted = (at: Date, ms: number): Date => new Date(at.getTime() + ms);
  test.each([
    { what: "the second before", at: shifted(notBefore, -1), code: "certificate-not-yet-valid" },
    { what: "the first instant", at: notBefore, code: undefined },
    { what: "the last instant", at: notAfter, code: undefined },
    { what: "just after", at: shifted(notAfter, 1), code: "certificate-expired" },
  ])("$what: $code", async ({ at, code }) => {
    const anchor = await createCa({ notBefore: past(1), notAfter: new Date("2050-01-01T00:00:00Z") });
    const { certificates } = await anchor.issue({ notBefore, notAfter });
    const verify = () => verifyChain({ chain: certificates, roots: [anchor.certificate], at });
    if (code === undefined) expect(verify()).toHaveLength(2);
    else expect(faultOf(verify)).toMatchObject(refusal("denied", code));
  });
});

test.each(KEY_TYPES)("a chain of %s keys", async (keyType) => {
  const anchor = await createCa({ keyType });
  const { certificates } = await (await anchor.intermediate({ keyType })).issue({ keyType });
  expect(verifyChain({ chain: certificates, roots: [anchor.certificate], at: NOW })).toHaveLength(3);
});

test("T-X6 an authority with a weak key anchors nothing", async () => {
  const { generateKeyPairSync } = await import("node:crypto");
  const weak = generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey.export({ format: "der", type: "spki" });
  const anchor = await createCa({ publicKey: weak });
  const { certificates } = await anchor.issue();
  expect(faultOf(() => verifyChain({ chain: certificates, roots: [anchor.certificate], at: NOW }))).toMatchObject(
    refusal("denied", "public-key"),
  );
});

test("the path that is returned runs from leaf to root", () => {
  const path = verifyChain({
    chain: parsed([leaf2.der, crossSigned.der, int1.der, int2.der]),
    roots: parsed([other.der, root.der]),
    at: NOW,
  });
  expect(path.map(({ raw }) => Buffer.from(raw))).toEqual(
    [leaf2.der, int2.der, int1.der, root.der].map((der) => Buffer.from(der)),
  );
});

test("X509-29 a path that fails on a constraint does not hide one that holds", async () => {
  const narrow = await createCa({ signer: root.signer, subject: nameOf(root), pathLength: 0 });
  const path = verifyChain({ chain: leaf1.certificates, roots: [narrow.certificate, root.certificate], at: NOW });
  expect(path.at(-1)?.raw).toEqual(root.der);
});
