import { constants, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { hexOf } from "../../src/crypto/key.ts";
import type { TokenAuthority } from "../../src/spiffe/bundle.ts";

export type Members = Readonly<Record<string, unknown>>;

/** A pair of an issuer's keys under its id, as a bundle names it. */
export interface TestKey {
  readonly keyId: string;
  readonly privateKey: KeyObject;
  readonly publicKey: KeyObject;
  readonly authority: TokenAuthority;
}

export function testKey(keyId: string, type: "P-256" | "P-384" | "P-521" | "RSA" = "P-256"): TestKey {
  const { privateKey, publicKey } =
    type === "RSA"
      ? generateKeyPairSync("rsa", { modulusLength: 2048 })
      : generateKeyPairSync("ec", { namedCurve: type });
  const spki = publicKey.export({ type: "spki", format: "der" });
  return {
    keyId,
    privateKey,
    publicKey,
    authority: { publicKey: spki, keyId, expiresAt: 0, tainted: false },
  };
}

export function base64url(value: string | Uint8Array): string {
  return Buffer.from(value).toString("base64url");
}

/** Any token at all, signed as its header says: the wrong ones are what tests need. A member that is undefined is left out. */
export function forge(header: Members, claims: Members | string, key: KeyObject): string {
  const payload = typeof claims === "string" ? claims : JSON.stringify(claims);
  return signParts(base64url(JSON.stringify(header)), base64url(payload), { algorithm: String(header["alg"]), key });
}

/** The two first parts as they are given. */
export function signParts(
  header: string,
  payload: string,
  { algorithm, key }: { readonly algorithm: string; readonly key: KeyObject },
): string {
  const signed = `${header}.${payload}`;
  return `${signed}.${base64url(rawSignature(algorithm, Buffer.from(signed), key))}`;
}

function rawSignature(algorithm: string, data: Uint8Array, key: KeyObject): Uint8Array {
  const hash = `sha${/(256|384|512)$/.exec(algorithm)?.[1] ?? "256"}`;
  if (key.asymmetricKeyType === "ed25519") return sign(null, data, key);
  if (key.asymmetricKeyType === "ec") return sign(hash, data, { key, dsaEncoding: "ieee-p1363" });
  return algorithm.startsWith("PS")
    ? sign(hash, data, { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: Number(hash.slice(3)) / 8 })
    : sign(hash, data, key);
}

/** The token with one bit of one of its parts turned round. */
export function flipBit(token: string, part: 0 | 1 | 2, bit: number): string {
  const parts = token.split(".");
  const bytes = Buffer.from(parts[part] ?? "", "base64url");
  const at = bit % (bytes.length * 8);
  bytes.writeUInt8(bytes.readUInt8(at >> 3) ^ (1 << (at & 7)), at >> 3);
  parts[part] = bytes.toString("base64url");
  return parts.join(".");
}

/** For test names. */
export function shown(value: unknown): string {
  return value instanceof Uint8Array ? hexOf(value) : (JSON.stringify(value)?.slice(0, 80) ?? "left out");
}
