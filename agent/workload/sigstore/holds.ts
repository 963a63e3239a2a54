import { type KeyObject, verify } from "node:crypto";

/** Whether the signature of these bytes is the key's: over SHA-256, or Ed25519's own. */
export function holds(key: KeyObject, signed: Uint8Array, signature: Uint8Array): boolean {
  return verify(key.asymmetricKeyType === "ed25519" ? null : "sha256", signed, key, signature);
}
