import { constants, type KeyObject, verify } from "node:crypto";
import { TAG } from "./der.ts";
import { encode, encodeOid, encodeUnsigned, explicit, sequence } from "./der-writer.ts";
import type { KeyType } from "./key.ts";

interface Algorithm {
  readonly keyType: "ec" | "rsa" | "ed25519";
  /** OpenSSL name; null where the scheme has its own. */
  readonly hash: string | null;
  readonly pssSaltLength?: number;
}

const HASHES = [
  {
    hash: "sha256",
    oid: "2.16.840.1.101.3.4.2.1",
    ecdsa: "1.2.840.10045.4.3.2",
    rsa: "1.2.840.113549.1.1.11",
    length: 32,
  },
  {
    hash: "sha384",
    oid: "2.16.840.1.101.3.4.2.2",
    ecdsa: "1.2.840.10045.4.3.3",
    rsa: "1.2.840.113549.1.1.12",
    length: 48,
  },
  {
    hash: "sha512",
    oid: "2.16.840.1.101.3.4.2.3",
    ecdsa: "1.2.840.10045.4.3.4",
    rsa: "1.2.840.113549.1.1.13",
    length: 64,
  },
] as const;

const NULL = encode(TAG.null);
const ED25519 = sequence(encodeOid("1.3.101.112"));

function ecdsa(oid: string): Uint8Array {
  return sequence(encodeOid(oid));
}

function rsa(oid: string): Uint8Array {
  return sequence(encodeOid(oid), NULL);
}

/** RSASSA-PSS with MGF1 over the same hash and a salt as long as it; other parameters are not accepted. RFC 4055. */
function rsaPss(hashOid: string, saltLength: number): Uint8Array {
  const hash = sequence(encodeOid(hashOid), NULL);
  const mask = sequence(encodeOid("1.2.840.113549.1.1.8"), hash);
  const parameters = sequence(explicit(0, hash), explicit(1, mask), explicit(2, encodeUnsigned(BigInt(saltLength))));
  return sequence(encodeOid("1.2.840.113549.1.1.10"), parameters);
}

/** Whole AlgorithmIdentifiers, so that no parameter goes unread. SHA-1 and older are absent on purpose. */
const ALGORITHMS: ReadonlyMap<string, Algorithm> = new Map([
  ...HASHES.flatMap(({ hash, oid, ecdsa: ec, rsa: pkcs1, length }): [string, Algorithm][] => [
    [keyOf(ecdsa(ec)), { keyType: "ec", hash }],
    [keyOf(rsa(pkcs1)), { keyType: "rsa", hash }],
    [keyOf(rsaPss(oid, length)), { keyType: "rsa", hash, pssSaltLength: length }],
  ]),
  [keyOf(ED25519), { keyType: "ed25519", hash: null }],
]);

const BY_KEY_TYPE: Readonly<Record<KeyType, Uint8Array>> = {
  "ec-p256": ecdsa(HASHES[0].ecdsa),
  "ec-p384": ecdsa(HASHES[1].ecdsa),
  "rsa-2048": rsa(HASHES[0].rsa),
  "rsa-4096": rsa(HASHES[0].rsa),
};

function keyOf(der: Uint8Array): string {
  return Buffer.from(der.buffer, der.byteOffset, der.length).toString("latin1");
}

/** AlgorithmIdentifier, DER, of what a signer of this key type makes. */
export function signatureAlgorithm(keyType: KeyType): Uint8Array {
  return BY_KEY_TYPE[keyType];
}

export interface SignedData {
  readonly signed: Uint8Array;
  /** AlgorithmIdentifier, DER. */
  readonly signatureAlgorithm: Uint8Array;
  readonly signature: Uint8Array;
}

function verifyInput(data: SignedData, key: KeyObject) {
  const algorithm = ALGORITHMS.get(keyOf(data.signatureAlgorithm));
  if (algorithm === undefined || algorithm.keyType !== key.asymmetricKeyType) return undefined;
  const { hash, pssSaltLength: saltLength } = algorithm;
  return {
    hash,
    key: saltLength === undefined ? { key } : { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength },
  };
}

/** False for a wrong signature, and for an algorithm that is unknown, weak or of another key type. */
export function signatureHolds(data: SignedData, key: KeyObject): boolean {
  const input = verifyInput(data, key);
  return input !== undefined && verify(input.hash, data.signed, input.key, data.signature);
}

/** As `signatureHolds`, off the event loop. */
export async function signatureHoldsAsync(data: SignedData, key: KeyObject): Promise<boolean> {
  const input = verifyInput(data, key);
  if (input === undefined) return false;
  return new Promise((resolve, reject) => {
    verify(input.hash, data.signed, input.key, data.signature, (error, holds) =>
      error === null ? resolve(holds) : reject(error),
    );
  });
}
