import { createHash, createPublicKey, generateKeyPairSync, type KeyObject, verify } from "node:crypto";
import { describe, expect, test } from "vitest";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { TAG } from "../../../src/crypto/der.ts";
import { encode, encodeOctets, encodeOid, encodeUnsigned, sequence } from "../../../src/crypto/der-writer.ts";
import {
  generateKey,
  hexOf,
  KEY_TYPES,
  localSigner,
  privateKeyFromPkcs8,
  privateKeyToPkcs8,
  SIGNING_HASH,
  subjectKeyId,
} from "../../../src/crypto/key.ts";
import { checkPublicKey } from "../../../src/crypto/public-key.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { openssl } from "../../support/openssl.ts";
import { createCa } from "../../support/pki.ts";

const MESSAGE = Buffer.from("to be signed");
const WEAK = refusal("invalid", "public-key");

describe("generated keys", () => {
  test.each(KEY_TYPES)("%s: has its size, and node:crypto verifies what it signs", async (type) => {
    const signer = await generateKey(type);
    expect(signer.keyType).toBe(type);
    const { asymmetricKeyDetails } = signer.privateKey;
    const sizes = { "ec-p256": "prime256v1", "ec-p384": "secp384r1", "rsa-2048": 2048, "rsa-4096": 4096 };
    expect(asymmetricKeyDetails?.namedCurve ?? asymmetricKeyDetails?.modulusLength).toBe(sizes[type]);
    const key = createPublicKey({ key: Buffer.from(signer.publicKey), format: "der", type: "spki" });
    const signature = await signer.sign(MESSAGE);
    expect(verify(SIGNING_HASH[type], MESSAGE, key, signature)).toBe(true);
    expect(verify(SIGNING_HASH[type], Buffer.from("another"), key, signature)).toBe(false);
  });

  test.each(KEY_TYPES)("%s: survives PKCS#8 and openssl reads it", async (type) => {
    const signer = await generateKey(type);
    const der = privateKeyToPkcs8(signer.privateKey);
    expect(localSigner(privateKeyFromPkcs8(der)).publicKey).toEqual(signer.publicKey);
    await using directory = await openssl();
    await directory.write("key.der", der);
    expect(await directory.run("pkey", "-inform", "DER", "-in", "key.der", "-pubout", "-outform", "DER")).toEqual(
      Buffer.from(signer.publicKey),
    );
  });

  test("two keys are never the same", async () => {
    const [a, b] = await Promise.all([generateKey("ec-p256"), generateKey("ec-p256")]);
    expect(a.publicKey).not.toEqual(b.publicKey);
  });
});

describe("private keys that are refused", () => {
  const unsupported: readonly { name: string; key: KeyObject }[] = [
    { name: "RSA of 1024 bits", key: generateKeyPairSync("rsa", { modulusLength: 1024 }).privateKey },
    { name: "RSA of 3072 bits", key: generateKeyPairSync("rsa", { modulusLength: 3072 }).privateKey },
    { name: "P-521", key: generateKeyPairSync("ec", { namedCurve: "P-521" }).privateKey },
    { name: "Ed25519", key: generateKeyPairSync("ed25519").privateKey },
    { name: "RSA-PSS", key: generateKeyPairSync("rsa-pss", { modulusLength: 2048 }).privateKey },
  ];
  test.each(unsupported)("$name, as a signer of ours", ({ key }) => {
    expect(faultOf(() => localSigner(key))).toMatchObject({
      ...refusal("invalid", "key-type"),
      hint: expect.stringContaining("ec-p256"),
    });
  });

  test.each(["", "3000", "300b020100300506032b657004", "ff".repeat(40)])("bytes that are no PKCS#8: %j", (hex) => {
    expect(faultOf(() => privateKeyFromPkcs8(Buffer.from(hex, "hex")))).toMatchObject(
      refusal("invalid", "private-key-malformed"),
    );
  });

  test("T-J8 the message of a refusal holds nothing of the key", async () => {
    const der = Buffer.from(privateKeyToPkcs8((await generateKey("ec-p256")).privateKey));
    const fault = faultOf(() => privateKeyFromPkcs8(der.subarray(0, -1)));
    const shown = JSON.stringify([fault.message, fault.hint, fault.cause]);
    for (let at = 0; at + 8 <= der.length; at += 1) expect(shown).not.toContain(der.toString("hex", at, at + 8));
  });
});

test("the subject key id is the SHA-1 of the key bits, as openssl computes it", async () => {
  const ca = await createCa();
  await using directory = await openssl();
  await directory.write("key.pem", ca.keyPem);
  const der = await directory.run("req", "-x509", "-new", "-key", "key.pem", "-subj", "/O=x", "-outform", "DER");
  expect(parseCertificate(der).subjectKeyId).toBe(hexOf(subjectKeyId(ca.signer.publicKey)));
  const bits = createHash("sha1").update(ca.signer.publicKey.subarray(26)).digest("hex");
  expect(hexOf(subjectKeyId(ca.signer.publicKey))).toBe(bits);
});

const EC = "1.2.840.10045.2.1";
const P256 = "1.2.840.10045.3.1.7";
const RSA = "1.2.840.113549.1.1.1";
const NULL = encode(TAG.null);

function spki(algorithm: readonly Uint8Array[], key: Uint8Array): Buffer {
  return sequence(sequence(...algorithm), encodeOctets(key));
}

function rsaSpki(modulus: bigint, exponent: bigint): Buffer {
  return spki([encodeOid(RSA), NULL], sequence(encodeUnsigned(modulus), encodeUnsigned(exponent)));
}

function exported(key: KeyObject): Buffer {
  return key.export({ format: "der", type: "spki" });
}

const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 }).publicKey;
const MODULUS = BigInt(`0x${Buffer.from(rsa.export({ format: "jwk" }).n ?? "", "base64url").toString("hex")}`);
const ec = exported(generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey);
const point = ec.subarray(-65);

/** A power of 65537 modulo the product of the first 126 primes, with 2048 bits: the form of the keys of CVE-2017-15361. */
function rocaModulus(): bigint {
  const primes: bigint[] = [];
  for (let n = 2n; primes.length < 126; n += 1n) if (primes.every((prime) => n % prime !== 0n)) primes.push(n);
  const product = primes.reduce((all, prime) => all * prime);
  let power = 1n;
  for (let times = 0; times < 1000; times += 1) power = (power * 65537n) % product;
  const modulus = power + ((2n ** 2047n + 2n ** 1200n) / product) * product;
  return modulus >= 2n ** 2047n ? modulus : modulus + product;
}

describe("T-X6 public keys", () => {
  const accepted: readonly { name: string; key: Uint8Array }[] = [
    { name: "P-256", key: ec },
    { name: "P-384", key: exported(generateKeyPairSync("ec", { namedCurve: "P-384" }).publicKey) },
    { name: "P-521", key: exported(generateKeyPairSync("ec", { namedCurve: "P-521" }).publicKey) },
    { name: "RSA of 2048 bits", key: rsaSpki(MODULUS, 65537n) },
    { name: "RSA of 2048 bits with the exponent 3", key: rsaSpki(MODULUS, 3n) },
    { name: "RSA with the largest exponent", key: rsaSpki(MODULUS, 2n ** 31n - 1n) },
    { name: "RSA of 4096 bits", key: exported(generateKeyPairSync("rsa", { modulusLength: 4096 }).publicKey) },
    { name: "Ed25519", key: exported(generateKeyPairSync("ed25519").publicKey) },
  ];
  test.each(accepted)("$name is accepted", ({ key }) => {
    expect(exported(checkPublicKey(key))).toEqual(Buffer.from(key));
  });

  const flipped = Buffer.from(point);
  flipped[64] = (flipped[64] ?? 0) ^ 1;
  const tooLarge = Buffer.concat([Buffer.from([4]), Buffer.alloc(64, 0xff)]);
  const refused: readonly { name: string; key: Uint8Array; code?: string }[] = [
    { name: "RSA of 1024 bits", key: exported(generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey) },
    { name: "RSA of 2047 bits", key: rsaSpki(MODULUS >> 1n, 65537n) },
    { name: "RSA of 4097 bits", key: rsaSpki(2n ** 4096n + 1n, 65537n) },
    { name: "RSA of 16384 bits", key: rsaSpki(2n ** 16384n - 1n, 65537n) },
    { name: "RSA with an even modulus", key: rsaSpki(MODULUS - 1n, 65537n) },
    { name: "RSA with the exponent 1", key: rsaSpki(MODULUS, 1n) },
    { name: "RSA with the exponent 0", key: rsaSpki(MODULUS, 0n) },
    { name: "RSA with an even exponent", key: rsaSpki(MODULUS, 65536n) },
    { name: "RSA as a broken library made it (ROCA)", key: rsaSpki(rocaModulus(), 65537n) },
    { name: "RSA with an exponent beyond 31 bits", key: rsaSpki(MODULUS, 2n ** 31n + 1n) },
    { name: "RSA with an exponent as long as the modulus", key: rsaSpki(MODULUS, MODULUS - 2n) },
    {
      name: "RSA with a negative modulus",
      key: spki(
        [encodeOid(RSA), NULL],
        sequence(Buffer.concat([Buffer.from([2, 0x82, 1, 0]), Buffer.alloc(256, 0x81)]), encodeUnsigned(3n)),
      ),
    },
    { name: "RSA for PSS only", key: exported(generateKeyPairSync("rsa-pss", { modulusLength: 2048 }).publicKey) },
    { name: "P-224", key: exported(generateKeyPairSync("ec", { namedCurve: "secp224r1" }).publicKey) },
    { name: "secp256k1", key: exported(generateKeyPairSync("ec", { namedCurve: "secp256k1" }).publicKey) },
    {
      name: "a curve given by its parameters",
      key: exported(generateKeyPairSync("ec", { namedCurve: "P-256", paramEncoding: "explicit" }).publicKey),
      code: "asn1-malformed",
    },
    { name: "a point that is not on the curve", key: spki([encodeOid(EC), encodeOid(P256)], flipped) },
    { name: "a point with coordinates beyond the field", key: spki([encodeOid(EC), encodeOid(P256)], tooLarge) },
    { name: "the point at infinity", key: spki([encodeOid(EC), encodeOid(P256)], Buffer.from([0])) },
    {
      name: "a point in the hybrid form",
      key: spki([encodeOid(EC), encodeOid(P256)], Buffer.from([6 + ((point[64] ?? 0) & 1), ...point.subarray(1)])),
    },
    {
      name: "a compressed point",
      key: spki([encodeOid(EC), encodeOid(P256)], Buffer.from([2 + ((point[64] ?? 0) & 1), ...point.subarray(1, 33)])),
    },
    { name: "a point of the wrong length", key: spki([encodeOid(EC), encodeOid(P256)], point.subarray(0, 64)) },
    { name: "X25519, which cannot sign", key: exported(generateKeyPairSync("x25519").publicKey) },
    { name: "Ed448", key: exported(generateKeyPairSync("ed448").publicKey) },
    { name: "DSA", key: exported(generateKeyPairSync("dsa", { modulusLength: 2048 }).publicKey) },
    { name: "more than 1 KiB", key: Buffer.alloc(1025, 0x30) },
  ];
  test.each(refused)("$name is refused", ({ key, code = WEAK.code }) => {
    expect(faultOf(() => checkPublicKey(key))).toMatchObject({ kind: "invalid", code });
  });

  const P = 2n ** 255n - 19n;
  const Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022n;
  const smallOrder = [0n, 1n, P - 1n, Y8, P - Y8];
  const notCanonical = [P, P + 1n, 2n ** 255n - 1n];
  const ed25519 = (y: bigint, sign: bigint): Buffer => {
    const key = Buffer.from((y | (sign << 255n)).toString(16).padStart(64, "0"), "hex").reverse();
    return spki([encodeOid("1.3.101.112")], key);
  };
  test.each(
    smallOrder.flatMap((y) => [
      { y, sign: 0n },
      { y, sign: 1n },
    ]),
  )("Ed25519 of small order is refused: y $y, sign $sign", ({ y, sign }) => {
    expect(faultOf(() => checkPublicKey(ed25519(y, sign)))).toMatchObject({
      ...WEAK,
      message: "Ed25519 key has a small order",
    });
  });
  test.each(notCanonical)("Ed25519 beyond the field is refused: y %s", (y) => {
    expect(faultOf(() => checkPublicKey(ed25519(y, 0n)))).toMatchObject({
      ...WEAK,
      message: "Ed25519 key is not canonical",
    });
  });

  test("bytes after the key, or after its parameters, are refused", () => {
    expect(faultOf(() => checkPublicKey(Buffer.concat([ec, Buffer.from([0])])))).toMatchObject(
      refusal("invalid", "asn1-malformed"),
    );
    const stuffed = spki([encodeOid(EC), encodeOid(P256), NULL], point);
    expect(faultOf(() => checkPublicKey(stuffed))).toMatchObject(refusal("invalid", "asn1-malformed"));
  });

  test("T-X6 a key that was accepted a moment ago answers for its own bytes only", () => {
    for (let at = ec.length - 64; at < ec.length; at++) {
      expect(checkPublicKey(ec).export({ format: "der", type: "spki" })).toEqual(Buffer.from(ec));
      const altered = Buffer.from(ec);
      altered[at] = (altered[at] ?? 0) ^ 1;
      expect(faultOf(() => checkPublicKey(altered))).toMatchObject(WEAK);
    }
  });
});
