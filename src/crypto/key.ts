import { createPrivateKey, createPublicKey, generateKeyPair, hash, type KeyObject, sign } from "node:crypto";
import { promisify } from "node:util";
import { Fault, messageOf } from "../runtime/fault.ts";
import { readOctets, readOnly, TAG } from "./der.ts";
import { checkPublicKey } from "./public-key.ts";

/** Key types as configuration spells them. */
export const KEY_TYPES = ["ec-p256", "ec-p384", "rsa-2048", "rsa-4096"] as const;
export type KeyType = (typeof KEY_TYPES)[number];

/** A private key somewhere: in memory, on disk, in a module. Signing is asynchronous so that any of them fits. */
export interface Signer {
  readonly keyType: KeyType;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  /** Signs with the key type's own algorithm: ECDSA with SHA-256 or SHA-384 (DER), or RSA PKCS#1 v1.5 with SHA-256. */
  sign(data: Uint8Array): Promise<Uint8Array>;
}

/** A signer whose private key is in this process. */
export interface LocalSigner extends Signer {
  readonly privateKey: KeyObject;
}

/** The hash that each key type signs with, by its OpenSSL name. */
export const SIGNING_HASH = {
  "ec-p256": "sha256",
  "ec-p384": "sha384",
  "rsa-2048": "sha256",
  "rsa-4096": "sha256",
} as const satisfies Record<KeyType, string>;

const generatePair = promisify(generateKeyPair);

export async function generateKey(type: KeyType): Promise<LocalSigner> {
  return localSigner((await generate(type)).privateKey);
}

function generate(type: KeyType): Promise<{ readonly privateKey: KeyObject }> {
  switch (type) {
    case "ec-p256":
      return generatePair("ec", { namedCurve: "P-256" });
    case "ec-p384":
      return generatePair("ec", { namedCurve: "P-384" });
    case "rsa-2048":
      return generatePair("rsa", { modulusLength: 2048 });
    case "rsa-4096":
      return generatePair("rsa", { modulusLength: 4096 });
  }
}

/** Throws `invalid` for a key that is not of one of the key types. */
export function localSigner(privateKey: KeyObject): LocalSigner {
  const keyType = keyTypeOf(privateKey);
  const publicKey = createPublicKey(privateKey).export({ type: "spki", format: "der" });
  checkPublicKey(publicKey);
  const digest = SIGNING_HASH[keyType];
  return {
    keyType,
    publicKey,
    privateKey,
    sign: (data) =>
      new Promise((resolve, reject) => {
        sign(digest, data, privateKey, (error, signature) => (error === null ? resolve(signature) : reject(error)));
      }),
  };
}

function keyTypeOf(key: KeyObject): KeyType {
  const details = key.asymmetricKeyDetails;
  const name =
    key.asymmetricKeyType === "rsa"
      ? `rsa-${details?.modulusLength}`
      : `${key.asymmetricKeyType}-${details?.namedCurve}`;
  const type = TYPE_BY_NAME.get(name);
  if (type !== undefined) return type;
  throw new Fault("invalid", `unsupported private key type "${name}"`, {
    code: "key-type",
    hint: `use one of ${KEY_TYPES.join(", ")}`,
  });
}

const TYPE_BY_NAME: ReadonlyMap<string, KeyType> = new Map([
  ["ec-prime256v1", "ec-p256"],
  ["ec-secp384r1", "ec-p384"],
  ["rsa-2048", "rsa-2048"],
  ["rsa-4096", "rsa-4096"],
]);

/** Throws `invalid`. The message never holds key material. */
export function privateKeyFromPkcs8(der: Uint8Array): KeyObject {
  try {
    return createPrivateKey({ key: Buffer.from(der), format: "der", type: "pkcs8" });
  } catch (cause) {
    throw new Fault("invalid", "malformed PKCS#8 private key", {
      code: "private-key-malformed",
      cause: messageOf(cause),
    });
  }
}

/** PKCS#8 DER, not encrypted. */
export function privateKeyToPkcs8(key: KeyObject): Uint8Array {
  return key.export({ type: "pkcs8", format: "der" });
}

/** SHA-1 of the subjectPublicKey bits: RFC 5280, section 4.2.1.2, method 1. An identifier, not a protection. */
export function subjectKeyId(spki: Uint8Array): Uint8Array {
  const info = readOnly(spki);
  info.read(TAG.sequence);
  const bits = readOctets(info.read(TAG.bitString));
  info.end();
  return hash("sha1", bits, "buffer");
}

/** Lower-case; the form of authority ids. */
export function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex");
}
