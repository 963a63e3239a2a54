import type { KeyType, Signer } from "../crypto/key.ts";

/** A key that lives in a key manager under a name. */
export interface ManagedKey extends Signer {
  readonly id: string;
}

/** Where private keys live, for server and agent alike. */
export interface KeyManager extends AsyncDisposable {
  /** Makes a new key under `id`, replacing the one there. Resolves when it is durable. */
  generate(id: string, type: KeyType): Promise<ManagedKey>;
  find(id: string): Promise<ManagedKey | undefined>;
  list(): Promise<readonly ManagedKey[]>;
}

/** A key manager whose private keys can leave it: the agent hands its SVID key to TLS. */
export interface ExportingKeyManager extends KeyManager {
  /** PKCS#8 DER. */
  exportPrivateKey(id: string): Promise<Uint8Array | undefined>;
}
