import { generateKey, type LocalSigner, privateKeyToPkcs8 } from "../crypto/key.ts";
import type { ExportingKeyManager, ManagedKey } from "./keys.ts";

/** Keys that end with the process. */
export function openMemoryKeys(): ExportingKeyManager {
  const signers = new Map<string, LocalSigner>();
  return {
    async generate(id, type) {
      const signer = await generateKey(type);
      signers.set(id, signer);
      return managedKey(id, signer);
    },
    find: async (id) => findIn(signers, id),
    list: async () => listOf(signers),
    exportPrivateKey: async (id) => exportFrom(signers, id),
    async [Symbol.asyncDispose]() {
      signers.clear();
    },
  };
}

/** The signer under its name, without the private key. */
export function managedKey(id: string, { keyType, publicKey, sign }: LocalSigner): ManagedKey {
  return { id, keyType, publicKey, sign };
}

export function findIn(signers: ReadonlyMap<string, LocalSigner>, id: string): ManagedKey | undefined {
  const signer = signers.get(id);
  return signer === undefined ? undefined : managedKey(id, signer);
}

/** Sorted by id. */
export function listOf(signers: ReadonlyMap<string, LocalSigner>): readonly ManagedKey[] {
  return [...signers].sort(([a], [b]) => (a < b ? -1 : 1)).map(([id, signer]) => managedKey(id, signer));
}

/** PKCS#8 DER. */
export function exportFrom(signers: ReadonlyMap<string, LocalSigner>, id: string): Uint8Array | undefined {
  const signer = signers.get(id);
  return signer === undefined ? undefined : privateKeyToPkcs8(signer.privateKey);
}
