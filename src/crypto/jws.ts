import { constants, type KeyObject, type SignKeyObjectInput, sign, verify } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import { parseUniqueJson } from "../runtime/json.ts";
import { integerBytes, readOnly, TAG } from "./der.ts";
import type { KeyType, Signer } from "./key.ts";

/** A longer token is refused before it is looked at. T-J4. */
const MAX_JWS_CHARACTERS = 16 * 1024;

/** Signature algorithms of SPIFFE's tokens: JWT-SVID, section 2.1; WIT-SVID, section 2.3. */
export const JWS_ALGORITHMS = [
  "RS256",
  "RS384",
  "RS512",
  "ES256",
  "ES384",
  "ES512",
  "PS256",
  "PS384",
  "PS512",
] as const;
export type JwsAlgorithm = (typeof JWS_ALGORITHMS)[number];

type JsonObject = Readonly<Record<string, unknown>>;

/** A token taken apart. Nothing about its signature is known. */
export interface Jws {
  readonly algorithm: JwsAlgorithm;
  readonly header: JsonObject;
  readonly payload: JsonObject;
  /** The bytes that the signature covers. */
  readonly signed: Uint8Array;
  readonly signature: Uint8Array;
}

/** What signs a token: one key with one algorithm. */
export interface JwsSigner {
  readonly algorithm: JwsAlgorithm;
  /** RSA signature, or r and s of ECDSA end to end. */
  sign(data: Uint8Array): Promise<Uint8Array>;
}

const HASHES: Readonly<Record<string, string>> = { "256": "sha256", "384": "sha384", "512": "sha512" };
/** RFC 7518, section 3.4: each algorithm has its one curve, and a signature has twice the length of a coordinate. */
const CURVES: Readonly<Record<string, { readonly name: string; readonly bytes: number }>> = {
  "256": { name: "prime256v1", bytes: 32 },
  "384": { name: "secp384r1", bytes: 48 },
  "512": { name: "secp521r1", bytes: 66 },
};
const OWN_ALGORITHMS: Readonly<Record<KeyType, JwsAlgorithm>> = {
  "ec-p256": "ES256",
  "ec-p384": "ES384",
  "rsa-2048": "RS256",
  "rsa-4096": "RS256",
};
const BASE64URL = /^[A-Za-z0-9_-]+$/;

/** RFC 7515, section 7.1. Both objects go out as they are, members in their order. */
export async function signJws(header: JsonObject, payload: JsonObject, signer: JwsSigner): Promise<string> {
  const signed = `${encodeJson(header)}.${encodeJson(payload)}`;
  const token = `${signed}.${base64url(await signer.sign(Buffer.from(signed, "ascii")))}`;
  if (token.length > MAX_JWS_CHARACTERS) throw malformed("token is larger than 16 KiB");
  return token;
}

/** With the key's own algorithm: RS256, ES256 or ES384. */
export function jwsSigner({ keyType, sign: signDer }: Signer): JwsSigner {
  const algorithm = OWN_ALGORITHMS[keyType];
  const isEc = algorithm.startsWith("ES");
  return {
    algorithm,
    sign: async (data) => {
      const signature = await signDer(data);
      return isEc ? rawFromDer(signature, curveOf(algorithm).bytes) : signature;
    },
  };
}

/** With the algorithm asked for. Throws `invalid` when the key doesn't fit it. */
export function jwsSignerOf(algorithm: JwsAlgorithm, privateKey: KeyObject): JwsSigner {
  if (!keyFits(algorithm, privateKey)) throw unfitting(algorithm);
  return {
    algorithm,
    sign: (data) =>
      new Promise((resolve, reject) => {
        sign(hashOf(algorithm), data, signatureInput(algorithm, privateKey), (error, signature) =>
          error === null ? resolve(signature) : reject(error),
        );
      }),
  };
}

/** True for an RSA key and an RS or PS algorithm, and for a key on the one curve of an ES algorithm. */
export function keyFits(algorithm: JwsAlgorithm, key: KeyObject): boolean {
  if (!algorithm.startsWith("ES")) return key.asymmetricKeyType === "rsa";
  return key.asymmetricKeyType === "ec" && key.asymmetricKeyDetails?.namedCurve === curveOf(algorithm).name;
}

/** False for a wrong signature, and for a key of another type than the algorithm's. */
export async function jwsHolds(
  { algorithm, signed, signature }: Pick<Jws, "algorithm" | "signed" | "signature">,
  key: KeyObject,
): Promise<boolean> {
  if (!keyFits(algorithm, key)) return false;
  if (algorithm.startsWith("ES") && signature.length !== 2 * curveOf(algorithm).bytes) return false;
  return new Promise((resolve, reject) => {
    verify(hashOf(algorithm), signed, signatureInput(algorithm, key), signature, (error, holds) =>
      error === null ? resolve(holds) : reject(error),
    );
  });
}

/**
 * Takes a compact JWS apart, strictly: three parts in unpadded, canonical base64url, both objects in UTF-8 without
 * repeated members, one of the nine algorithms, no critical extensions. The algorithm is looked at before anything
 * else. Throws `invalid`, code `jws-algorithm` or `jws-malformed`.
 */
export function parseJws(token: string): Jws {
  const [protectedHeader, claims, signature] = partsOf(token);
  const header = decodeJson(protectedHeader, "header");
  const algorithm = algorithmOf(header);
  if (Object.hasOwn(header, "crit")) throw malformed("token header has critical extensions, and none is known");
  return {
    algorithm,
    header,
    payload: decodeJson(claims, "payload"),
    signed: Buffer.from(`${protectedHeader}.${claims}`, "ascii"),
    signature: decode(signature, "signature"),
  };
}

/** Looks for dots one by one, so that a token full of them costs nothing. */
function partsOf(token: string): readonly [string, string, string] {
  if (token.length > MAX_JWS_CHARACTERS) throw malformed("token is larger than 16 KiB");
  const first = token.indexOf(".");
  const second = token.indexOf(".", first + 1);
  if (first < 0 || second < 0 || token.includes(".", second + 1))
    throw malformed("token is not a JWS in compact form: it must have three parts");
  return [token.slice(0, first), token.slice(first + 1, second), token.slice(second + 1)];
}

function algorithmOf(header: JsonObject): JwsAlgorithm {
  const found = JWS_ALGORITHMS.find((name) => name === header["alg"]);
  if (found !== undefined) return found;
  const shown = typeof header["alg"] === "string" ? JSON.stringify(header["alg"].slice(0, 32)) : "missing or not text";
  throw new Fault("invalid", `unexpected signature algorithm ${shown}; expected one of ${JWS_ALGORITHMS.join(", ")}`, {
    code: "jws-algorithm",
  });
}

function decodeJson(part: string, what: string): JsonObject {
  const bytes = decode(part, what);
  try {
    const value = parseUniqueJson(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as JsonObject;
  } catch (cause) {
    throw malformed(`token ${what} is not JSON with distinct members`, cause);
  }
  throw malformed(`token ${what} is not a JSON object`);
}

/** Node reads other alphabets, padding and stray bits as well; a second spelling of one token must not pass. */
function decode(part: string, what: string): Uint8Array {
  if (BASE64URL.test(part)) {
    const bytes = Buffer.from(part, "base64url");
    if (base64url(bytes) === part) return bytes;
  }
  throw malformed(`token ${what} is not base64url`);
}

function encodeJson(value: JsonObject): string {
  return base64url(Buffer.from(JSON.stringify(value)));
}

function base64url(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("base64url");
}

function hashOf(algorithm: JwsAlgorithm): string | undefined {
  return HASHES[algorithm.slice(2)];
}

function curveOf(algorithm: JwsAlgorithm): { readonly name: string; readonly bytes: number } {
  const curve = CURVES[algorithm.slice(2)];
  if (curve === undefined) throw unfitting(algorithm);
  return curve;
}

/** RFC 7518, section 3.5: the salt of PSS is as long as the hash. */
function signatureInput(algorithm: JwsAlgorithm, key: KeyObject): SignKeyObjectInput {
  if (algorithm.startsWith("ES")) return { key, dsaEncoding: "ieee-p1363" };
  if (!algorithm.startsWith("PS")) return { key };
  return { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST };
}

/** RFC 7518, section 3.4: r and s, each as long as a coordinate. */
function rawFromDer(signature: Uint8Array, bytes: number): Uint8Array {
  const pair = readOnly(signature);
  const raw = Buffer.alloc(2 * bytes);
  for (const end of [bytes, 2 * bytes]) {
    const integer = integerBytes(pair.read(TAG.integer));
    const magnitude = integer[0] === 0 ? integer.subarray(1) : integer;
    raw.set(magnitude, end - magnitude.length);
  }
  pair.end();
  return raw;
}

function unfitting(algorithm: JwsAlgorithm): Fault {
  return new Fault("invalid", `the key does not fit signature algorithm ${algorithm}`, { code: "jws-algorithm" });
}

function malformed(message: string, cause?: unknown): Fault {
  return new Fault("invalid", message, { code: "jws-malformed", ...(cause === undefined ? {} : { cause }) });
}
