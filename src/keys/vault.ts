import { createHash, randomUUID } from "node:crypto";
import { type KeyType, SIGNING_HASH } from "../crypto/key.ts";
import { decodePem } from "../crypto/pem.ts";
import { checkPublicKey } from "../crypto/public-key.ts";
import type { Clock } from "../runtime/clock.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import type { KeyManager, ManagedKey } from "./keys.ts";
import { VaultClient, type VaultConfig } from "./vault-client.ts";

export interface VaultKeysOptions {
  readonly vault: VaultConfig;
  /** Where the transit engine is mounted. */
  readonly mount: string;
  /** Goes before the names of keys, so that servers can share an engine. */
  readonly serverId: string;
  readonly clock: Pick<Clock, "monotonic">;
}

const TRANSIT_TYPE: Readonly<Record<KeyType, string>> = {
  "ec-p256": "ecdsa-p256",
  "ec-p384": "ecdsa-p384",
  "rsa-2048": "rsa-2048",
  "rsa-4096": "rsa-4096",
};
const HASH_NAME = { sha256: "sha2-256", sha384: "sha2-384" } as const;
const UUID_AND_ID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}-(.+)$/;
/** Names in a URL; the ids that a server uses are far inside of it. */
const KEY_ID = /^[A-Za-z0-9][A-Za-z0-9_-]*$/;
const SIGNATURE = /^vault:v[0-9]+:([A-Za-z0-9+/]+={0,2})$/;

interface VaultKey {
  readonly name: string;
  readonly id: string;
  readonly keyType: KeyType;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  readonly createdAt: string;
}

/**
 * Keys in the transit engine of Vault or OpenBao, under the names that SPIRE gives them: `<server id>-<uuid>-<key id>`.
 * They never leave it. Throws `unavailable` while it is away.
 */
export function openVaultKeys(options: VaultKeysOptions): KeyManager {
  const engine = new Transit(options);
  const find = async (id: string): Promise<ManagedKey | undefined> => {
    const newest = (await engine.keys()).findLast((key) => key.id === id);
    return newest === undefined ? undefined : managed(engine, newest);
  };
  return {
    find,
    async generate(id, type) {
      const before = (await engine.keys()).filter((key) => key.id === id);
      const made = await engine.create(id, type);
      // The one before may be about to sign still.
      for (const { name } of before.slice(0, -1)) await engine.delete(name);
      return managed(engine, made);
    },
    async list() {
      const newest = new Map((await engine.keys()).map((key) => [key.id, key]));
      return [...newest.values()].sort((a, b) => (a.id < b.id ? -1 : 1)).map((key) => managed(engine, key));
    },
    async [Symbol.asyncDispose]() {},
  };
}

function managed(engine: Transit, { id, name, keyType, publicKey }: VaultKey): ManagedKey {
  return { id, keyType, publicKey, sign: (data) => engine.sign(name, keyType, data) };
}

class Transit {
  readonly #client: VaultClient;
  readonly #mount: string;
  readonly #serverId: string;

  constructor({ vault, mount, serverId, clock }: VaultKeysOptions) {
    this.#client = new VaultClient(vault, clock);
    this.#mount = mount;
    this.#serverId = serverId;
  }

  /** Those of this server, the newest last. */
  async keys(): Promise<readonly VaultKey[]> {
    const names = await this.#names();
    const found = await Promise.all(
      names.filter((name) => this.#idIn(name) !== undefined).map((name) => this.#read(name)),
    );
    return found
      .filter((key) => key !== undefined)
      .sort((a, b) => Date.parse(a.createdAt) - Date.parse(b.createdAt) || (a.createdAt < b.createdAt ? -1 : 1));
  }

  async create(id: string, type: KeyType): Promise<VaultKey> {
    if (!KEY_ID.test(id)) throw new Fault("invalid", `${JSON.stringify(id)} is no name for a key in Vault`);
    const name = `${this.#serverId}-${randomUUID()}-${id}`;
    const body = { type: TRANSIT_TYPE[type], exportable: false, auto_rotate_period: 0 };
    await this.#client.call("POST", `${this.#mount}/keys/${name}`, body);
    const made = await this.#read(name);
    if (made === undefined) throw unexpected("it has lost the key that it just made");
    return made;
  }

  async delete(name: string): Promise<void> {
    await this.#client.call("POST", `${this.#mount}/keys/${name}/config`, { deletion_allowed: true });
    await this.#client.call("DELETE", `${this.#mount}/keys/${name}`);
  }

  async sign(name: string, keyType: KeyType, data: Uint8Array): Promise<Uint8Array> {
    const hash = SIGNING_HASH[keyType];
    const input = createHash(hash).update(data).digest("base64");
    const scheme = keyType.startsWith("rsa") ? { signature_algorithm: "pkcs1v15" } : {};
    const body = { input, prehashed: true, marshaling_algorithm: "asn1", ...scheme };
    const { signature } = await this.#client.call("POST", `${this.#mount}/sign/${name}/${HASH_NAME[hash]}`, body);
    const found = typeof signature === "string" ? SIGNATURE.exec(signature)?.[1] : undefined;
    if (found === undefined) throw unexpected("it holds no signature");
    return Buffer.from(found, "base64");
  }

  async #names(): Promise<readonly string[]> {
    try {
      const { keys } = await this.#client.call("GET", `${this.#mount}/keys?list=true`);
      return Array.isArray(keys) ? keys.filter((name) => typeof name === "string") : [];
    } catch (error) {
      // That is how it says that there are none.
      if (isFault(error, "not_found")) return [];
      throw error;
    }
  }

  /** Undefined for a key of somebody else. */
  #idIn(name: string): string | undefined {
    const prefix = `${this.#serverId}-`;
    return name.startsWith(prefix) ? UUID_AND_ID.exec(name.slice(prefix.length))?.[1] : undefined;
  }

  /** Undefined for one that was deleted meanwhile. */
  async #read(name: string): Promise<VaultKey | undefined> {
    try {
      const { type, keys } = await this.#client.call("GET", `${this.#mount}/keys/${name}`);
      const versions = Object.values((keys ?? {}) as Readonly<Record<string, Readonly<Record<string, unknown>>>>);
      const { public_key: pem, creation_time: createdAt } = versions.at(-1) ?? {};
      const keyType = (Object.keys(TRANSIT_TYPE) as KeyType[]).find((known) => TRANSIT_TYPE[known] === type);
      const [publicKey] = typeof pem === "string" ? decodePem(pem, "PUBLIC KEY") : [];
      const id = this.#idIn(name);
      if (keyType === undefined || publicKey === undefined || id === undefined || typeof createdAt !== "string")
        throw unexpected(`key ${name} is not of a kind that signs here`);
      checkPublicKey(publicKey);
      return { name, id, keyType, publicKey, createdAt };
    } catch (error) {
      if (isFault(error, "not_found")) return undefined;
      throw error;
    }
  }
}

function unexpected(reason: string): Fault {
  return new Fault("unavailable", `unexpected answer of Vault: ${reason}`, { code: "vault-answer" });
}
