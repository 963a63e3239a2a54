import { constants, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { describe, expect, test } from "vitest";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { encodeOid, sequence } from "../../../src/crypto/der-writer.ts";
import { signatureAlgorithm, signatureHolds, signatureHoldsAsync } from "../../../src/crypto/signature.ts";
import { openssl } from "../../support/openssl.ts";

describe("T-N5 T-N8 certificates that openssl signs", () => {
  const EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
  const RSA = ["-newkey", "rsa:2048"];
  const PSS = [...RSA, "-sigopt", "rsa_padding_mode:pss"];
  test.each([
    { name: "ECDSA with SHA-256", args: [...EC, "-sha256"], holds: true },
    { name: "ECDSA with SHA-384", args: [...EC, "-sha384"], holds: true },
    { name: "ECDSA with SHA-512", args: [...EC, "-sha512"], holds: true },
    { name: "RSA with SHA-256", args: [...RSA, "-sha256"], holds: true },
    { name: "RSA with SHA-384", args: [...RSA, "-sha384"], holds: true },
    { name: "RSA with SHA-512", args: [...RSA, "-sha512"], holds: true },
    { name: "RSA-PSS with SHA-256", args: [...PSS, "-sha256", "-sigopt", "rsa_pss_saltlen:32"], holds: true },
    { name: "RSA-PSS with SHA-384", args: [...PSS, "-sha384", "-sigopt", "rsa_pss_saltlen:48"], holds: true },
    { name: "RSA-PSS with SHA-512", args: [...PSS, "-sha512", "-sigopt", "rsa_pss_saltlen:64"], holds: true },
    { name: "Ed25519", args: ["-newkey", "ed25519"], holds: true },
    { name: "ECDSA with SHA-1", args: [...EC, "-sha1"], holds: false },
    { name: "RSA with SHA-1", args: [...RSA, "-sha1"], holds: false },
    { name: "RSA with MD5", args: [...RSA, "-md5"], holds: false },
    { name: "ECDSA with SHA-224", args: [...EC, "-sha224"], holds: false },
    { name: "RSA-PSS with a short salt", args: [...PSS, "-sha256", "-sigopt", "rsa_pss_saltlen:16"], holds: false },
  ])("$name: $holds", async ({ args, holds }) => {
    await using directory = await openssl();
    const der = await directory.run(
      "req",
      "-x509",
      "-nodes",
      ...args,
      "-keyout",
      "key.pem",
      "-subj",
      "/O=x",
      "-days",
      "1",
      "-outform",
      "DER",
    );
    const certificate = parseCertificate(der);
    expect(signatureHolds(certificate, certificate.key())).toBe(holds);
    expect(await signatureHoldsAsync(certificate, certificate.key())).toBe(holds);
    const changed = { ...certificate, signed: Buffer.concat([certificate.signed, Buffer.from([0])]) };
    expect(signatureHolds(changed, certificate.key())).toBe(false);
  });
});

describe("an algorithm has to fit the key", () => {
  const signed = Buffer.from("data");
  const ec = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const ed = generateKeyPairSync("ed25519");
  const rows: readonly { what: string; algorithm: Uint8Array; key: KeyObject; signature: Buffer; holds: boolean }[] = [
    {
      what: "ECDSA by an EC key",
      algorithm: signatureAlgorithm("ec-p256"),
      key: ec.publicKey,
      signature: sign("sha256", signed, ec.privateKey),
      holds: true,
    },
    {
      what: "an RSA signature called ECDSA",
      algorithm: signatureAlgorithm("ec-p256"),
      key: rsa.publicKey,
      signature: sign("sha256", signed, rsa.privateKey),
      holds: false,
    },
    {
      what: "an ECDSA signature called RSA",
      algorithm: signatureAlgorithm("rsa-2048"),
      key: ec.publicKey,
      signature: sign("sha256", signed, ec.privateKey),
      holds: false,
    },
    {
      what: "an Ed25519 signature called ECDSA",
      algorithm: signatureAlgorithm("ec-p256"),
      key: ed.publicKey,
      signature: sign(null, signed, ed.privateKey),
      holds: false,
    },
    {
      what: "a PSS signature called PKCS#1",
      algorithm: signatureAlgorithm("rsa-2048"),
      key: rsa.publicKey,
      signature: sign("sha256", signed, {
        key: rsa.privateKey,
        padding: constants.RSA_PKCS1_PSS_PADDING,
        saltLength: 32,
      }),
      holds: false,
    },
    {
      what: "an algorithm that nobody knows",
      algorithm: sequence(encodeOid("1.2.3")),
      key: ec.publicKey,
      signature: sign("sha256", signed, ec.privateKey),
      holds: false,
    },
    {
      what: "the raw form of ECDSA",
      algorithm: signatureAlgorithm("ec-p256"),
      key: ec.publicKey,
      signature: sign("sha256", signed, { key: ec.privateKey, dsaEncoding: "ieee-p1363" }),
      holds: false,
    },
  ];
  test.each(rows)("$what: $holds", async ({ algorithm, key, signature, holds }) => {
    const data = { signed, signatureAlgorithm: algorithm, signature };
    expect(signatureHolds(data, key)).toBe(holds);
    expect(await signatureHoldsAsync(data, key)).toBe(holds);
  });
});
