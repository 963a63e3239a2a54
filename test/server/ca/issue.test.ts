import "reflect-metadata";
import { webcrypto, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Crypto } from "@peculiar/webcrypto";
import * as x509 from "@peculiar/x509";
import { beforeAll, describe, expect, test } from "vitest";
import { Issuer } from "../../../server/ca/issue.ts";
import type { X509SigningAuthority } from "../../../server/ca/slots.ts";
import { generateKey, KEY_TYPES } from "../../../src/crypto/key.ts";
import { encodeName } from "../../../src/crypto/name.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { trustDomainId } from "../../../src/spiffe/id.ts";
import { faultFrom } from "../../support/faults.ts";
import { PROJECT, sourceFiles } from "../../support/imports.ts";
import { dnsNamesOf, read, urisOf } from "./oracle.ts";
import {
  id,
  ManualClock,
  makeAuthority,
  makeEntry,
  makeIssuer,
  opensslText,
  opensslVerify,
  START,
  TD,
} from "./support.ts";

const KEY_USAGE = "2.5.29.15";
const EXTENDED_KEY_USAGE = "2.5.29.37";
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

/** One leaf of each kind that the server issues. */
const LEAVES = [
  { kind: "a workload's", uri: id("/web"), issue: () => issuer.issueWorkload({ entry: makeEntry(), publicKey }) },
  {
    kind: "an agent's",
    uri: id("/spire/agent/join_token/t"),
    issue: () => issuer.issueAgent({ id: id("/spire/agent/join_token/t"), publicKey }),
  },
  { kind: "the server's", uri: id("/spire/server"), issue: () => issuer.issueServer({ publicKey }) },
  {
    kind: "a minted",
    uri: id("/minted"),
    issue: () => issuer.mint({ id: id("/minted"), publicKey, ttlSeconds: 0, dnsNames: [], subject: {} }),
  },
];

describe.each(LEAVES)("$kind certificate", ({ issue, uri }) => {
  let leaf: x509.X509Certificate;
  let der: Uint8Array;
  beforeAll(async () => {
    const { chain } = await issue();
    der = chain[0] ?? new Uint8Array();
    leaf = read(der);
  });

  test("X509-01 has exactly one URI SAN, the registered ID", () => {
    expect(urisOf(leaf)).toEqual([uri]);
    expect(new X509Certificate(der).subjectAltName).toBe(`URI:${uri}`);
  });

  test("X509-05 has an ID with a path", () => {
    expect(new URL(urisOf(leaf)[0] ?? "").pathname.length).toBeGreaterThanOrEqual(2);
  });

  test("X509-11 is signed by a certificate of its own trust domain", () => {
    const above = urisOf(read(authority.certificate.raw))[0] ?? "";
    expect(new URL(above).host).toBe(new URL(urisOf(leaf)[0] ?? "").host);
  });

  test("X509-15 has basic constraints with cA FALSE", () => {
    const constraints = leaf.getExtension(x509.BasicConstraintsExtension);
    expect(constraints?.ca).toBe(false);
    expect(new X509Certificate(der).ca).toBe(false);
  });

  test("X509-17 X509-18 X509-21 X509-23 has a critical key usage for leaves only", () => {
    const usage = leaf.getExtension(x509.KeyUsagesExtension);
    expect(leaf.getExtension(KEY_USAGE)?.critical).toBe(true);
    expect(usage?.usages).toBe(LEAF_BITS);
  });

  test("X509-25 X509-27 T-X7 has serverAuth and clientAuth, and no other purpose", () => {
    const usage = leaf.getExtension(x509.ExtendedKeyUsageExtension);
    expect(leaf.getExtension(EXTENDED_KEY_USAGE)).not.toBeNull();
    expect(usage?.usages).toEqual([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]);
  });

  test("is verified by openssl in strict mode, and by another library", async () => {
    expect(await opensslVerify(der, authority.certificate.raw, START)).toContain("leaf.pem: OK");
    const holds = await leaf.verify({ publicKey: read(authority.certificate.raw).publicKey, signatureOnly: true });
    expect(holds).toBe(true);
  });
});

describe("the authority's own certificate", () => {
  test("X509-09 X509-10 has one URI SAN, the trust domain without a path", () => {
    expect(urisOf(read(authority.certificate.raw))).toEqual([trustDomainId(TD)]);
  });

  test("X509-14 has cA TRUE and no path length", () => {
    const constraints = read(authority.certificate.raw).getExtension(x509.BasicConstraintsExtension);
    expect([constraints?.ca, constraints?.pathLength, constraints?.critical]).toEqual([true, undefined, true]);
  });

  test("X509-17 X509-18 X509-19 X509-24 has a critical key usage of keyCertSign and cRLSign alone", () => {
    const root = read(authority.certificate.raw);
    expect(root.getExtension(KEY_USAGE)?.critical).toBe(true);
    expect(root.getExtension(x509.KeyUsagesExtension)?.usages).toBe(CA_BITS);
  });

  test("X509-39 is self-signed and verifies itself", async () => {
    const root = read(authority.certificate.raw);
    expect(root.issuer).toBe(root.subject);
    expect(await root.isSelfSigned()).toBe(true);
    expect(await opensslVerify(authority.certificate.raw, authority.certificate.raw, START)).toContain("OK");
  });

  test("has SPIRE's subject, its serial number in it, and no authority key identifier", async () => {
    const root = read(authority.certificate.raw);
    const serial = BigInt(`0x${root.serialNumber}`).toString();
    expect(root.subject).toBe(`C=US, O=SPIFFE, 2.5.4.5=${serial}`);
    expect(root.getExtension(x509.AuthorityKeyIdentifierExtension)).toBeNull();
    const named = await makeAuthority({ subject: { country: ["DE"], organization: ["Acme"], commonName: "root" } });
    expect(read(named.certificate.raw).subject).toMatch(/^C=DE, O=Acme, CN=root, 2\.5\.4\.5=\d+$/);
  });
});

test.each(KEY_TYPES)("an authority with a key of type %s signs what openssl verifies", async (keyType) => {
  const own = await makeAuthority({ keyType });
  const svid = await makeIssuer(own).issueWorkload({ entry: makeEntry(), publicKey });
  const text = await opensslText(svid.chain[0] ?? new Uint8Array());
  const algorithm = {
    "ec-p256": "ecdsa-with-SHA256",
    "ec-p384": "ecdsa-with-SHA384",
    "rsa-2048": "sha256WithRSAEncryption",
    "rsa-4096": "sha256WithRSAEncryption",
  }[keyType];
  expect(text).toContain(`Signature Algorithm: ${algorithm}`);
  expect(await opensslVerify(svid.chain[0] ?? new Uint8Array(), own.certificate.raw, START)).toContain("OK");
});

describe("the template", () => {
  test("back-dates by 10 s and counts whole seconds", async () => {
    const { chain, notBefore, notAfter } = await issuer.issueWorkload({ entry: makeEntry(), publicKey });
    expect(notBefore).toEqual(new Date("2030-01-02T03:03:55Z"));
    expect(notAfter).toEqual(new Date("2030-01-02T04:04:05Z"));
    expect([read(chain[0]).notBefore, read(chain[0]).notAfter]).toEqual([notBefore, notAfter]);
  });

  test("takes the entry's TTL, else the default; agents have their own", async () => {
    const lifetime = (svid: { notAfter: Date }): number =>
      Math.round((svid.notAfter.getTime() - START.getTime()) / 1000);
    expect(lifetime(await issuer.issueWorkload({ entry: makeEntry({ x509SvidTtl: 60 }), publicKey }))).toBe(59);
    expect(lifetime(await issuer.issueWorkload({ entry: makeEntry(), publicKey }))).toBe(3599);
    expect(lifetime(await issuer.issueAgent({ id: id("/spire/agent/x509pop/1"), publicKey }))).toBe(1799);
    expect(lifetime(await issuer.issueServer({ publicKey }))).toBe(3599);
    expect(lifetime(await issuer.mint({ id: id("/m"), publicKey, ttlSeconds: 7, dnsNames: [], subject: {} }))).toBe(6);
  });

  test("never outlives the authority", async () => {
    const { notAfter } = await issuer.issueWorkload({ entry: makeEntry({ x509SvidTtl: 10 * 86_400 }), publicKey });
    expect(notAfter).toEqual(authority.notAfter);
  });

  test("has SHA-1 key identifiers of its own key and the authority's", async () => {
    const leaf = read((await issuer.issueWorkload({ entry: makeEntry(), publicKey })).chain[0]);
    const own = await webcrypto.subtle.digest("SHA-1", Buffer.from(publicKey).subarray(-65));
    expect(leaf.getExtension(x509.SubjectKeyIdentifierExtension)?.keyId).toBe(Buffer.from(own).toString("hex"));
    expect(leaf.getExtension(x509.AuthorityKeyIdentifierExtension)?.keyId).toBe(authority.id);
    expect(read(authority.certificate.raw).getExtension(x509.SubjectKeyIdentifierExtension)?.keyId).toBe(authority.id);
  });

  test("serial numbers are random, positive and of 128 bits", async () => {
    const serials = await Promise.all(
      Array.from({ length: 64 }, async () => BigInt((await issuer.issueServer({ publicKey })).serialNumber)),
    );
    expect(new Set(serials).size).toBe(64);
    expect(serials.every((serial) => serial > 0n && serial < 2n ** 128n)).toBe(true);
    expect(serials.some((serial) => serial >= 2n ** 120n)).toBe(true);
  });

  test("the first DNS name is the common name, also over a minted subject", async () => {
    const entry = makeEntry({ dnsNames: ["b.example.org", "*.a.example.org"] });
    const leaf = read((await issuer.issueWorkload({ entry, publicKey })).chain[0]);
    expect([leaf.subject, dnsNamesOf(leaf)]).toEqual([
      "C=US, O=SPIRE, CN=b.example.org",
      ["b.example.org", "*.a.example.org"],
    ]);
    const subject = encodeName({ organization: ["Acme"], commonName: "mine" });
    const mint = { id: id("/m"), publicKey, ttlSeconds: 0, subject };
    expect(read((await issuer.mint({ ...mint, dnsNames: [] })).chain[0]).subject).toBe("O=Acme, CN=mine");
    expect(read((await issuer.mint({ ...mint, dnsNames: ["d.test"] })).chain[0]).subject).toBe("O=Acme, CN=d.test");
  });

  test("a chain is the leaf alone below a self-signed root, and the signing certificates below an upstream root", async () => {
    const svid = await issuer.issueServer({ publicKey });
    expect(svid.chain).toHaveLength(1);
    const between = Buffer.from("intermediate");
    const nested = makeIssuer({ ...authority, upstreamAuthorityId: "ab", intermediates: [between] });
    const { chain } = await nested.issueServer({ publicKey });
    expect(chain.slice(1)).toEqual([authority.certificate.raw, between]);
  });
});

describe("the door", () => {
  test("no authority, no signature: the reason reaches the caller", async () => {
    const broken = new Issuer({
      trustDomain: TD,
      authorities: {
        signing: () => {
          throw new Fault("unavailable", "X509 CA is expired", { code: "x509-ca-expired" });
        },
      },
      defaultTtlSeconds: 60,
      agentTtlSeconds: 60,
      caTtlSeconds: 86_400,
      clock: new ManualClock(),
    });
    const fault = await faultFrom(broken.issueServer({ publicKey }));
    expect([fault.kind, fault.code]).toEqual(["unavailable", "x509-ca-expired"]);
  });

  test("a herd waits its turn: never more than four signatures at once, and every one is made", async () => {
    let running = 0;
    let most = 0;
    const sign = async (data: Uint8Array): Promise<Uint8Array> => {
      running += 1;
      most = Math.max(most, running);
      const signature = await authority.key.sign(data);
      running -= 1;
      return signature;
    };
    const slow = makeIssuer({ ...authority, key: { ...authority.key, sign } });
    for (let wave = 0; wave < 3; wave += 1) {
      const svids = await Promise.all(Array.from({ length: 100 }, () => slow.issueServer({ publicKey })));
      expect([svids.length, most, running]).toEqual([100, 4, 0]);
    }
  });

  test("a refused template leaves its turn to the next", async () => {
    const fine = makeIssuer(authority);
    const weak = Array.from({ length: 20 }, () =>
      faultFrom(fine.issueServer({ publicKey: new Uint8Array([0x30, 0]) })),
    );
    const good = fine.issueServer({ publicKey });
    expect((await Promise.all(weak)).every(({ kind }) => kind === "invalid")).toBe(true);
    expect((await good).id).toBe(id("/spire/server"));
  });

  test("nothing outside issue.ts signs a certificate", () => {
    const signers = sourceFiles("server").filter((file) =>
      /\bsignCertificate\(|\.sign\(/.test(readFileSync(join(PROJECT, file), "utf8")),
    );
    expect(signers).toEqual(["server/ca/issue.ts"]);
  });
});
