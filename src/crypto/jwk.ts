import { createPublicKey } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import { checkPublicKey } from "./public-key.ts";

/** The public members of a JSON Web Key. RFC 7517, RFC 7518. */
export interface PublicJwk {
  readonly kty: string;
  readonly crv?: string;
  readonly x?: string;
  readonly y?: string;
  readonly n?: string;
  readonly e?: string;
}

/** Members that hold private or symmetric key material. */
export const PRIVATE_JWK_MEMBERS = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] as const;

const KEY_MEMBERS: ReadonlyMap<unknown, readonly string[]> = new Map([
  ["EC", ["crv", "x", "y"]],
  ["RSA", ["n", "e"]],
]);
/** Larger than the modulus of an RSA key of 4096 bits. */
const MAX_MEMBER_CHARACTERS = 1024;
const MEMBER = /^[A-Za-z0-9_-]+$/;

/** In the usual order of members. Throws `invalid` for a key that `checkPublicKey` refuses. */
export function jwkFromPublicKey(spki: Uint8Array): PublicJwk {
  const { kty = "", crv, ...members } = checkPublicKey(spki).export({ format: "jwk" });
  return { kty, ...(crv === undefined ? {} : { crv }), ...members };
}

/**
 * SubjectPublicKeyInfo, DER, of an elliptic curve or RSA key. Throws `invalid` for other key types, and for a key
 * that `checkPublicKey` refuses. Members beyond those of the key are not looked at.
 */
export function publicKeyFromJwk(jwk: Readonly<Record<string, unknown>>): Uint8Array {
  const names = KEY_MEMBERS.get(jwk["kty"]);
  if (names === undefined) throw malformed("unsupported key type");
  const members = names.map((name) => [name, memberOf(jwk, name)]);
  try {
    const key = { kty: String(jwk["kty"]), ...Object.fromEntries(members) };
    const spki = createPublicKey({ key, format: "jwk" }).export({ type: "spki", format: "der" });
    checkPublicKey(spki);
    return spki;
  } catch (cause) {
    throw cause instanceof Fault ? cause : malformed("malformed JWK", cause);
  }
}

function memberOf(jwk: Readonly<Record<string, unknown>>, name: string): string {
  const value = jwk[name];
  if (typeof value === "string" && value.length <= MAX_MEMBER_CHARACTERS && MEMBER.test(value)) return value;
  throw malformed(`JWK member "${name}" is missing or malformed`);
}

function malformed(message: string, cause?: unknown): Fault {
  return new Fault("invalid", message, { code: "jwk-malformed", ...(cause === undefined ? {} : { cause }) });
}
