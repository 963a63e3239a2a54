import { createPublicKey, type KeyObject } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import { type DerReader, integerBytes, readOctets, readOid, readOnly, TAG } from "./der.ts";

const MIN_RSA_BITS = 2048;
const MAX_RSA_BITS = 4096;
/** What a caller may raise that to. */
export const MOST_RSA_BITS = 8192;
const MAX_RSA_EXPONENT = 2 ** 31 - 1;
/** No accepted key comes near twice its RSA modulus; what is larger is not looked at. */
function maxSpkiBytes(maxRsaBits: number): number {
  return maxRsaBits / 4;
}

/** Named curves and the length of an uncompressed point on each. */
const CURVES: ReadonlyMap<string, number> = new Map([
  ["1.2.840.10045.3.1.7", 65],
  ["1.3.132.0.34", 97],
  ["1.3.132.0.35", 133],
]);

type Check = (parameters: DerReader, key: Uint8Array, maxRsaBits: number) => void;

const CHECKS: ReadonlyMap<string, Check> = new Map([
  ["1.2.840.10045.2.1", checkEc],
  ["1.2.840.113549.1.1.1", checkRsa],
  ["1.3.101.112", checkEd25519],
]);

/**
 * The one gate for foreign public keys: ECDSA on P-256, P-384 or P-521 (named, uncompressed, on the curve), RSA of
 * 2048 to 4096 bits (or up to `maxRsaBits`) with an odd exponent from 3 to 2^31-1, Ed25519 outside the small subgroup.
 * Throws `invalid`. T-X6.
 */
export function checkPublicKey(spki: Uint8Array, maxRsaBits = MAX_RSA_BITS): KeyObject {
  if (spki.length > maxSpkiBytes(maxRsaBits)) throw weak("public key is too large");
  if (maxRsaBits !== MAX_RSA_BITS) return check(spki, maxRsaBits);
  const bytes = Buffer.from(spki.buffer, spki.byteOffset, spki.length).toString("latin1");
  const known = LATELY_CHECKED.get(bytes);
  if (known !== undefined) return known;
  const key = check(spki, maxRsaBits);
  if (LATELY_CHECKED.size >= MOST_LATELY_CHECKED) LATELY_CHECKED.clear();
  LATELY_CHECKED.set(bytes, key);
  return key;
}

/** By all of their bytes. The key of a CSR is checked when it is read, and again before it is signed. */
const LATELY_CHECKED = new Map<string, KeyObject>();
const MOST_LATELY_CHECKED = 256;

function check(spki: Uint8Array, maxRsaBits: number): KeyObject {
  const info = readOnly(spki);
  const algorithm = info.enter();
  const checkKey = CHECKS.get(readOid(algorithm.read(TAG.oid)));
  if (checkKey === undefined) throw weak("unsupported public key algorithm");
  const key = readOctets(info.read(TAG.bitString));
  info.end();
  checkKey(algorithm, key, maxRsaBits);
  algorithm.end();
  try {
    return createPublicKey({ key: Buffer.from(spki), format: "der", type: "spki" });
  } catch (cause) {
    throw weak("public key is not valid", cause);
  }
}

function checkEc(parameters: DerReader, key: Uint8Array): void {
  const size = CURVES.get(readOid(parameters.read(TAG.oid)));
  if (size === undefined) throw weak("unsupported elliptic curve");
  if (key.length !== size || key[0] !== 0x04) throw weak("elliptic curve point is not in the uncompressed form");
}

function checkRsa(parameters: DerReader, key: Uint8Array, maxRsaBits: number): void {
  if (parameters.read(TAG.null).body.length > 0) throw weak("malformed RSA key parameters");
  const pair = readOnly(key);
  const modulus = magnitude(integerBytes(pair.read(TAG.integer)));
  const exponent = magnitude(integerBytes(pair.read(TAG.integer)));
  pair.end();
  const bits = bitLength(modulus);
  if (bits < MIN_RSA_BITS || bits > maxRsaBits)
    throw weak(`RSA key has ${bits} bits; ${MIN_RSA_BITS} to ${maxRsaBits} are allowed`);
  if (isEven(modulus)) throw weak("RSA modulus is even");
  const value =
    bitLength(exponent) > 31 ? Number.POSITIVE_INFINITY : Number.parseInt(Buffer.from(exponent).toString("hex"), 16);
  if (value < 3 || value > MAX_RSA_EXPONENT || isEven(exponent))
    throw weak("RSA exponent must be odd, at least 3 and at most 2^31-1");
  if (isRoca(modulus)) throw weak("RSA key is of the generator whose keys can be factored (ROCA, CVE-2017-15361)");
}

/** Of the primes below 168, those by which the powers of 65537 are told apart from other numbers. */
const ROCA_PRIMES = [11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157];
const ROCA_REMAINDERS = ROCA_PRIMES.map((prime) => [prime, powersOf65537(prime)] as const);

/**
 * Whether TPMs and smart cards of Infineon made the key while their library was broken: Nemec and others, "The Return of
 * Coppersmith's Attack", section 5.1. One in 2^27 of other keys looks like one of these.
 */
function isRoca(modulus: Uint8Array): boolean {
  return ROCA_REMAINDERS.every(([prime, powers]) =>
    powers.has(modulus.reduce((remainder, byte) => (remainder * 256 + byte) % prime, 0)),
  );
}

function powersOf65537(prime: number): ReadonlySet<number> {
  const powers = new Set<number>();
  for (let power = 1; !powers.has(power); power = (power * 65_537) % prime) powers.add(power);
  return powers;
}

function magnitude(integer: Uint8Array): Uint8Array {
  if ((integer[0] ?? 0) >= 0x80) throw weak("RSA key holds a negative number");
  return integer[0] === 0 && integer.length > 1 ? integer.subarray(1) : integer;
}

function bitLength(bytes: Uint8Array): number {
  return bytes.length * 8 - (Math.clz32(bytes[0] ?? 0) - 24);
}

function isEven(bytes: Uint8Array): boolean {
  return ((bytes.at(-1) ?? 0) & 1) === 0;
}

const ED25519_PRIME = 2n ** 255n - 19n;
/** y of the points of order 8; with it and its negative, the y of all points whose order divides 8. */
const ORDER_8_Y = 2707385501144840649318225287225658788936804267575313519463743609750303402022n;
/** Under such a key a signature can hold for any message. */
const SMALL_ORDER_Y: ReadonlySet<bigint> = new Set([0n, 1n, ED25519_PRIME - 1n, ORDER_8_Y, ED25519_PRIME - ORDER_8_Y]);

function checkEd25519(_parameters: DerReader, key: Uint8Array): void {
  if (key.length !== 32) throw weak("Ed25519 key has a wrong length");
  const y = BigInt(`0x${Buffer.from(key).reverse().toString("hex")}`) & (2n ** 255n - 1n);
  if (y >= ED25519_PRIME) throw weak("Ed25519 key is not canonical");
  if (SMALL_ORDER_Y.has(y)) throw weak("Ed25519 key has a small order");
}

function weak(message: string, cause?: unknown): Fault {
  return new Fault("invalid", message, {
    code: "public-key",
    hint: "use an ECDSA key on P-256 or P-384, or an RSA key of 2048 to 4096 bits",
    ...(cause === undefined ? {} : { cause }),
  });
}
