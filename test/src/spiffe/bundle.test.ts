import { createPublicKey, generateKeyPairSync } from "node:crypto";
import { describe, expect, test } from "vitest";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import {
  type Bundle,
  encodeBundleDocument,
  MAX_BUNDLE_DOCUMENT_BYTES,
  parseBundleDocument,
  sameAuthorities,
} from "../../../src/spiffe/bundle.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { createCa } from "../../support/pki.ts";

const A = parseTrustDomain("example.org");
const rootA = await createCa();
const rootB = await createCa({ trustDomain: "partner.test" });
const rsaRoot = await createCa({ keyType: "rsa-2048" });
const jwtKey = (await generateKey("ec-p256")).publicKey;
const jwtRsaKey = (await generateKey("rsa-2048")).publicKey;
const witKey = (await generateKey("ec-p384")).publicKey;
const authority = (asn1: Uint8Array) => ({ asn1, tainted: false });
const token = (keyId: string, publicKey: Uint8Array) => ({ keyId, publicKey, expiresAt: 0, tainted: false });

/** The bundle bA of the requirements. */
const BUNDLE: Bundle = {
  trustDomain: A,
  x509Authorities: [authority(rootA.der)],
  jwtAuthorities: [token("ja1", jwtKey)],
  witAuthorities: [token("wa1", witKey)],
  refreshHint: 300,
  sequenceNumber: 7n,
};

type Json = Record<string, unknown>;
interface Document extends Json {
  readonly keys: readonly Json[];
}

const DOCUMENT = JSON.parse(encodeBundleDocument(BUNDLE)) as Document;
const [X509_KEY = {}, JWT_KEY = {}, WIT_KEY = {}] = DOCUMENT.keys;

interface Read {
  readonly bundle: Bundle;
  readonly notices: readonly string[];
}

function read(document: unknown): Read {
  const notices: string[] = [];
  const text = typeof document === "string" ? document : JSON.stringify(document);
  const bundle = parseBundleDocument(A, text, (notice) => notices.push(notice));
  return { bundle, notices };
}

/** How many authorities of each kind a document with these keys gives. */
function counts(...keys: readonly unknown[]): readonly number[] {
  const { x509Authorities, jwtAuthorities, witAuthorities } = read({ keys }).bundle;
  return [x509Authorities.length, jwtAuthorities.length, witAuthorities.length];
}

describe("published documents", () => {
  test("X509-35 X509-36 X509-37 X509-38 an X.509 authority is one certificate in standard base64, without a key ID", () => {
    expect(X509_KEY["use"]).toBe("x509-svid");
    expect("kid" in X509_KEY).toBe(false);
    const x5c = X509_KEY["x5c"] as readonly string[];
    expect(x5c).toHaveLength(1);
    expect(x5c[0]).toMatch(/^[A-Za-z0-9+/]+={0,2}$/);
    expect(Buffer.from(x5c[0] ?? "", "base64")).toEqual(Buffer.from(rootA.der));
    const { use: _, x5c: __, ...jwk } = X509_KEY;
    expect(createPublicKey({ key: jwk, format: "jwk" }).export({ format: "der", type: "spki" })).toEqual(
      Buffer.from(rootA.certificate.publicKey),
    );
  });

  test("X509-38 two roots are two entries", () => {
    const document = JSON.parse(
      encodeBundleDocument({ ...BUNDLE, x509Authorities: [authority(rootA.der), authority(rsaRoot.der)] }),
    ) as Document;
    const entries = document.keys.filter(({ use }) => use === "x509-svid");
    expect(entries.map(({ kty }) => kty)).toEqual(["EC", "RSA"]);
    expect(entries.every(({ x5c }) => (x5c as readonly string[]).length === 1)).toBe(true);
  });

  test("X509-39 what is published for a self-managed CA is self-signed", () => {
    const { issuer, subject } = parseCertificate(
      Buffer.from((X509_KEY["x5c"] as readonly string[])[0] ?? "", "base64"),
    );
    expect(issuer).toEqual(subject);
  });

  test("TDB-15 TDB-16 TDB-18 the members are those that the standard names, and no private ones", () => {
    const document = JSON.parse(
      encodeBundleDocument({ ...BUNDLE, jwtAuthorities: [token("ja1", jwtKey), token("ja2", jwtRsaKey)] }),
    ) as Document;
    expect(document.keys.map((key) => Object.keys(key))).toEqual([
      ["use", "kty", "crv", "x", "y", "x5c"],
      ["use", "kty", "kid", "crv", "x", "y"],
      ["use", "kty", "kid", "n", "e"],
      ["use", "kty", "kid", "crv", "x", "y"],
    ]);
    expect(document.keys.map(({ use }) => use)).toEqual(["x509-svid", "jwt-svid", "jwt-svid", "wit-svid"]);
  });

  test("TDB-06 TDB-10 TDB-11 sequence and refresh hint are there, and the hint is whole seconds", () => {
    expect(DOCUMENT).toMatchObject({ spiffe_sequence: 7, spiffe_refresh_hint: 300 });
    expect(JSON.parse(encodeBundleDocument({ ...BUNDLE, refreshHint: 1.5 }))).toMatchObject({ spiffe_refresh_hint: 2 });
    expect(JSON.parse(encodeBundleDocument({ ...BUNDLE, refreshHint: 0, sequenceNumber: 0n }))).not.toHaveProperty(
      "spiffe_refresh_hint",
    );
    expect(JSON.parse(encodeBundleDocument({ ...BUNDLE, refreshHint: 0, sequenceNumber: 0n }))).toHaveProperty(
      "spiffe_sequence",
      0,
    );
  });

  test("TDB-08 equal bundles give equal bytes, in SPIRE's indentation", () => {
    expect(encodeBundleDocument({ ...BUNDLE })).toBe(encodeBundleDocument(BUNDLE));
    expect(encodeBundleDocument(BUNDLE)).not.toBe(encodeBundleDocument({ ...BUNDLE, sequenceNumber: 8n }));
    expect(encodeBundleDocument(BUNDLE)).toMatch(/^\{\n {4}"keys": \[\n {8}\{\n {12}"use": "x509-svid",/);
  });

  test("what is published is read back, and tainted authorities stay until they are revoked", () => {
    const tainted = { ...BUNDLE, x509Authorities: [{ asn1: rootA.der, tainted: true }] };
    const { bundle, notices } = read(encodeBundleDocument(tainted));
    expect(sameAuthorities(bundle, BUNDLE)).toBe(true);
    expect(bundle).toMatchObject({ trustDomain: A, refreshHint: 300, sequenceNumber: 7n });
    expect(notices).toEqual([]);
  });
});

describe("TDB-09 sequence numbers keep 64 bits", () => {
  test.each(["0", "1", "9007199254740993", "9223372036854775807", "18446744073709551615"])(
    "%s survives reading and writing",
    (digits) => {
      const { bundle, notices } = read(`{"keys":[],"spiffe_sequence":${digits}}`);
      expect(bundle.sequenceNumber).toBe(BigInt(digits));
      expect(encodeBundleDocument(bundle)).toContain(`"spiffe_sequence": ${digits}`);
      expect(notices).toEqual([]);
    },
  );

  test.each(['"7"', "7.5", "-1", "1e3", "18446744073709551616", "null", "true", "[7]", `1${"0".repeat(400)}`])(
    "%s is ignored, with a notice",
    (value) => {
      const { bundle, notices } = read(`{"keys":[],"spiffe_sequence":${value}}`);
      expect(bundle.sequenceNumber).toBe(0n);
      expect(notices).toEqual([expect.stringContaining("spiffe_sequence")]);
    },
  );

  test("a member of that name elsewhere changes nothing", () => {
    expect(read(`{"keys":[{"spiffe_sequence":9007199254740993}],"spiffe_sequence":8}`).bundle.sequenceNumber).toBe(8n);
  });
});

describe("TDB-11 refresh hints", () => {
  test.each([
    { value: "300", expected: 300, notices: 0 },
    { value: "0", expected: 0, notices: 0 },
    { value: "1e12", expected: 604_800, notices: 0 },
    { value: '"300"', expected: 0, notices: 1 },
    { value: "-1", expected: 0, notices: 1 },
    { value: "1.5", expected: 0, notices: 1 },
    { value: "null", expected: 0, notices: 1 },
  ])("$value is read as $expected", ({ value, expected, notices }) => {
    const result = read(`{"keys":${JSON.stringify(DOCUMENT.keys)},"spiffe_refresh_hint":${value}}`);
    expect(result.bundle.refreshHint).toBe(expected);
    expect(result.notices).toHaveLength(notices);
    expect(result.bundle.x509Authorities).toHaveLength(1);
  });
});

describe("TDB-03 TDB-12 what is no bundle document is refused", () => {
  test.each([
    { what: "an array", text: "[]" },
    { what: "a string", text: '"keys"' },
    { what: "null", text: "null" },
    { what: "nothing", text: "" },
    { what: "bytes after the document", text: '{"keys":[]} x' },
    { what: "UTF-16", text: Buffer.from('{"keys":[]}', "utf16le").toString("latin1") },
    { what: "a byte order mark", text: '\ufeff{"keys":[]}' },
    { what: "no keys", text: "{}" },
    { what: "keys that are null", text: '{"keys":null}' },
    { what: "keys that are an object", text: '{"keys":{}}' },
    { what: "T-F4 100,000 levels of nesting", text: `{"keys":${"[".repeat(100_000)}` },
    { what: "T-F4 the same, closed", text: `{"keys":[],"x":${"[".repeat(100_000)}${"]".repeat(100_000)}}` },
  ])("$what", ({ text }) => {
    expect(faultOf(() => parseBundleDocument(A, text))).toMatchObject(refusal("invalid", "bundle-malformed"));
  });

  test("T-F1 more than 4 MiB, before it is parsed", () => {
    const text = `{"keys":[],"x":"${"a".repeat(MAX_BUNDLE_DOCUMENT_BYTES)}"}`;
    expect(faultOf(() => parseBundleDocument(A, text))).toMatchObject({
      ...refusal("invalid", "bundle-malformed"),
      message: expect.stringContaining("4 MiB"),
    });
    const wide = `{"keys":[],"x":"${"ü".repeat(MAX_BUNDLE_DOCUMENT_BYTES / 2)}"}`;
    expect(faultOf(() => parseBundleDocument(A, wide)).message).toContain("4 MiB");
  });

  test("T-F4 more than 1000 keys", () => {
    expect(counts(...new Array(999).fill({}), X509_KEY)).toEqual([1, 0, 0]);
    expect(faultOf(() => counts(...new Array(1001).fill({})))).toMatchObject({ kind: "invalid" });
  });
});

test("TDB-01 the trust domain is the caller's, whatever the document says", () => {
  expect(read({ ...DOCUMENT, trust_domain: "partner.test" }).bundle.trustDomain).toBe(A);
});

test("TDB-04 TDB-05 further members are passed over, and those of SPIFFE may be missing", () => {
  expect(sameAuthorities(read({ ...DOCUMENT, x: 1 }).bundle, BUNDLE)).toBe(true);
  const plain = read({ keys: DOCUMENT.keys });
  expect(sameAuthorities(plain.bundle, BUNDLE)).toBe(true);
  expect(plain.bundle).toMatchObject({ refreshHint: 0, sequenceNumber: 0n });
});

test("TDB-19 a document replaces what was there: nothing is remembered between two", () => {
  const first = read({ keys: [X509_KEY, JWT_KEY] }).bundle;
  const second = read({ keys: [JWT_KEY] }).bundle;
  expect(first.x509Authorities).toHaveLength(1);
  expect(second.x509Authorities).toEqual([]);
});

describe("keys of no use are skipped, with a notice, and the others count", async () => {
  const good = [X509_KEY, JWT_KEY, WIT_KEY];
  const certificate = (der: Uint8Array): Json => ({
    ...X509_KEY,
    ...keyMembers(der),
    x5c: [Buffer.from(der).toString("base64")],
  });
  const keyMembers = (der: Uint8Array): Json =>
    createPublicKey({ key: Buffer.from(parseCertificate(der).publicKey), format: "der", type: "spki" }).export({
      format: "jwk",
    }) as Json;
  const without = (key: Json, name: string): Json =>
    Object.fromEntries(Object.entries(key).filter(([member]) => member !== name));
  const weak = generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey.export({ format: "jwk" }) as Json;
  const rows: readonly { what: string; key: unknown }[] = [
    { what: "TDB-13 an unknown key type", key: { ...X509_KEY, kty: "AKP" } },
    { what: "TDB-13 an unknown kind of octet key", key: { kty: "OKP", crv: "X448", use: "jwt-svid", kid: "x" } },
    { what: "TDB-13 an unknown curve", key: { ...JWT_KEY, kid: "x", crv: "P-999" } },
    { what: "TDB-13 an unknown curve beside a certificate", key: { ...X509_KEY, crv: "P-999" } },
    { what: "TDB-15 no key type", key: without(X509_KEY, "kty") },
    { what: "TDB-16 no use", key: without(X509_KEY, "use") },
    { what: "TDB-16 the use sig", key: { ...X509_KEY, use: "sig" } },
    { what: "TDB-16 the use foo-svid", key: { ...X509_KEY, use: "foo-svid" } },
    { what: "TDB-16 a use with a space", key: { ...X509_KEY, use: "x509-svid " } },
    { what: "TDB-17 a use in upper case", key: { ...X509_KEY, use: "X509-SVID" } },
    { what: "TDB-17 a use in mixed case", key: { ...JWT_KEY, kid: "x", use: "Jwt-Svid" } },
    { what: "TDB-18 a private key", key: { ...JWT_KEY, kid: "x", d: "AAAA" } },
    { what: "TDB-18 a private member beside a certificate", key: { ...X509_KEY, p: "AAAA" } },
    { what: "X509-40 no certificate", key: without(X509_KEY, "x5c") },
    { what: "X509-40 an empty list of certificates", key: { ...X509_KEY, x5c: [] } },
    {
      what: "X509-40 a certificate that is not in a list",
      key: { ...X509_KEY, x5c: (X509_KEY["x5c"] as readonly string[])[0] },
    },
    { what: "X509-43 a certificate that is not base64", key: { ...X509_KEY, x5c: ["%%%"] } },
    { what: "X509-43 base64url", key: { ...X509_KEY, x5c: ["-_-_"] } },
    { what: "X509-43 base64 of something else", key: { ...X509_KEY, x5c: ["AAAA"] } },
    { what: "X509-43 a number for a certificate", key: { ...X509_KEY, x5c: [7] } },
    {
      what: "X509-37 a certificate of another key",
      key: { ...X509_KEY, x5c: [Buffer.from(rootB.der).toString("base64")] },
    },
    { what: "X509-37 a certificate that is no authority", key: certificate((await rootA.issue()).der) },
    { what: "JWT-27 no key ID", key: without(JWT_KEY, "kid") },
    { what: "JWT-27 an empty key ID", key: { ...JWT_KEY, kid: "" } },
    { what: "T-F1 a key ID that fills a message", key: { ...JWT_KEY, kid: "x".repeat(1025) } },
    { what: "JWT-27 a key ID that is a number", key: { ...JWT_KEY, kid: 7 } },
    { what: "T-X6 an RSA key of 1024 bits", key: { ...weak, use: "jwt-svid", kid: "x" } },
    { what: "a symmetric key", key: { kty: "oct", use: "jwt-svid", kid: "x", k: "AAAA" } },
    { what: "null", key: null },
    { what: "a string", key: "x509-svid" },
    { what: "an array", key: [] },
  ];
  test.each(rows)("$what", ({ key }) => {
    const { bundle, notices } = read({ keys: [key, ...good] });
    expect(sameAuthorities(bundle, BUNDLE)).toBe(true);
    expect(notices).toHaveLength(1);
    expect(counts(key)).toEqual([0, 0, 0]);
  });

  test("X509-36 a key ID on an X.509 authority is no reason to skip it", () => {
    expect(counts({ ...X509_KEY, kid: "x" })).toEqual([1, 0, 0]);
  });

  test("X509-39 an authority that is not self-signed, and one whose key members are left out", async () => {
    const { der } = await rootA.intermediate();
    expect(counts(certificate(der))).toEqual([1, 0, 0]);
    expect(counts({ kty: "EC", use: "x509-svid", x5c: X509_KEY["x5c"] })).toEqual([1, 0, 0]);
  });

  test("X509-41 of several certificates only the first counts", () => {
    const { bundle } = read({
      keys: [
        { ...X509_KEY, x5c: [...(X509_KEY["x5c"] as readonly string[]), Buffer.from(rootB.der).toString("base64")] },
      ],
    });
    expect(bundle.x509Authorities.map(({ asn1 }) => Buffer.from(asn1))).toEqual([Buffer.from(rootA.der)]);
  });

  test("X509-42 the authorities are the union over all entries, each once", () => {
    const { bundle } = read({ keys: [X509_KEY, certificate(rsaRoot.der), X509_KEY] });
    expect(bundle.x509Authorities.map(({ asn1 }) => Buffer.from(asn1))).toEqual(
      [rootA.der, rsaRoot.der].map((der) => Buffer.from(der)),
    );
  });

  test("TDB-14 an empty document, and one of nothing but unknown keys, give an empty bundle", () => {
    expect(counts()).toEqual([0, 0, 0]);
    expect(counts({ kty: "AKP", use: "x509-svid" }, { kty: "EC", use: "new-svid" })).toEqual([0, 0, 0]);
  });

  test("WIT-39 T-F1 keys that share a key ID are all dropped, of one kind or of two, and the others stay", () => {
    const { bundle, notices } = read({
      keys: [JWT_KEY, { ...WIT_KEY, kid: "ja1" }, X509_KEY, { ...WIT_KEY, kid: "wa1" }],
    });
    expect(bundle.jwtAuthorities).toEqual([]);
    expect(bundle.witAuthorities.map(({ keyId }) => keyId)).toEqual(["wa1"]);
    expect(bundle.x509Authorities).toHaveLength(1);
    expect(notices).toHaveLength(1);
    expect(counts(JWT_KEY, { ...JWT_KEY }, { ...JWT_KEY, kid: "JA1" })).toEqual([0, 1, 0]);
  });
});

describe("the same authorities", () => {
  const shuffled: Bundle = { ...BUNDLE, x509Authorities: [authority(rsaRoot.der), authority(rootA.der)] };
  const rows: readonly { what: string; a?: Bundle; b: Bundle; same: boolean }[] = [
    { what: "the bundle itself", b: BUNDLE, same: true },
    {
      what: "another order",
      a: shuffled,
      b: { ...shuffled, x509Authorities: [...shuffled.x509Authorities].reverse() },
      same: true,
    },
    { what: "another sequence number and hint", b: { ...BUNDLE, sequenceNumber: 99n, refreshHint: 1 }, same: true },
    {
      what: "copies of the bytes",
      b: { ...BUNDLE, x509Authorities: [authority(new Uint8Array(rootA.der))] },
      same: true,
    },
    { what: "one authority more", b: shuffled, same: false },
    { what: "one authority less", b: { ...BUNDLE, x509Authorities: [] }, same: false },
    {
      what: "a tainted authority",
      b: { ...BUNDLE, x509Authorities: [{ asn1: rootA.der, tainted: true }] },
      same: false,
    },
    {
      what: "a token key of another kind",
      b: { ...BUNDLE, jwtAuthorities: [], witAuthorities: [token("ja1", jwtKey), token("wa1", witKey)] },
      same: false,
    },
    { what: "another key under the same ID", b: { ...BUNDLE, jwtAuthorities: [token("ja1", jwtRsaKey)] }, same: false },
    { what: "another end", b: { ...BUNDLE, jwtAuthorities: [{ ...token("ja1", jwtKey), expiresAt: 5 }] }, same: false },
    {
      what: "a tainted token key",
      b: { ...BUNDLE, jwtAuthorities: [{ ...token("ja1", jwtKey), tainted: true }] },
      same: false,
    },
  ];
  test.each(rows)("$what: $same", ({ a = BUNDLE, b, same }) => {
    expect(sameAuthorities(a, b)).toBe(same);
    expect(sameAuthorities(b, a)).toBe(same);
  });
});
