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
