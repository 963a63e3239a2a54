import { constants, createHash, createPublicKey, type KeyObject, verify } from "node:crypto";
import { checkPublicKey } from "../crypto/public-key.ts";
import { Fault } from "../runtime/fault.ts";
import { sized, TpmReader, tpmMalformed, u16, u32 } from "./wire.ts";

/** Algorithm numbers. */
export const ALG = {
  rsa: 0x1,
  aes: 0x6,
  sha1: 0x4,
  sha256: 0xb,
  sha384: 0xc,
  sha512: 0xd,
  null: 0x10,
  rsassa: 0x14,
  rsapss: 0x16,
  ecdsa: 0x18,
  ecc: 0x23,
  cfb: 0x43,
} as const;

const HASHES: ReadonlyMap<number, string> = new Map([
  [ALG.sha256, "sha256"],
  [ALG.sha384, "sha384"],
  [ALG.sha512, "sha512"],
]);

/** Bits of TPMA_OBJECT. */
const ATTRIBUTE = {
  fixedTpm: 0x2,
  fixedParent: 0x10,
  sensitiveDataOrigin: 0x20,
  restricted: 0x10000,
  decrypt: 0x20000,
  sign: 0x40000,
} as const;
/** Made in this TPM, and never to leave it. */
const OF_THIS_TPM = ATTRIBUTE.fixedTpm | ATTRIBUTE.fixedParent | ATTRIBUTE.sensitiveDataOrigin;

const CURVES: ReadonlyMap<number, { readonly name: string; readonly bytes: number }> = new Map([
  [3, { name: "P-256", bytes: 32 }],
  [4, { name: "P-384", bytes: 48 }],
]);

interface Scheme {
  readonly algorithm: number;
  readonly hash: number;
}

/** TPMT_PUBLIC of an asymmetric key. */
export interface TpmPublic {
  readonly raw: Uint8Array;
  readonly type: "rsa" | "ecc";
  readonly nameAlg: number;
  readonly attributes: number;
  readonly scheme: Scheme | undefined;
  readonly key: KeyObject;
}

/** Strict: every byte is accounted for, and the key is one that `checkPublicKey` takes. Throws `invalid`. */
export function parsePublic(raw: Uint8Array): TpmPublic {
  const reader = new TpmReader(raw);
  const type = reader.u16();
  const nameAlg = reader.u16();
  const attributes = reader.u32();
  reader.sized();
  if (!HASHES.has(nameAlg)) throw tpmMalformed("unsupported name algorithm");
  if (reader.u16() !== ALG.null) reader.take(4);
  const scheme = readScheme(reader);
  const jwk = type === ALG.rsa ? rsaJwk(reader) : type === ALG.ecc ? eccJwk(reader) : undefined;
  if (jwk === undefined) throw tpmMalformed("unsupported key type");
  reader.end();
  const key = createPublicKey({ key: jwk, format: "jwk" });
  checkPublicKey(key.export({ type: "spki", format: "der" }));
  return { raw, type: type === ALG.rsa ? "rsa" : "ecc", nameAlg, attributes, scheme, key };
}

function readScheme(reader: TpmReader): Scheme | undefined {
  const algorithm = reader.u16();
  if (algorithm === ALG.null) return undefined;
  if (algorithm !== ALG.rsassa && algorithm !== ALG.rsapss && algorithm !== ALG.ecdsa)
    throw tpmMalformed("unsupported signing scheme");
  return { algorithm, hash: reader.u16() };
}

function rsaJwk(reader: TpmReader) {
  const bits = reader.u16();
  const exponent = reader.u32();
  const modulus = reader.sized();
  if (modulus.length * 8 !== bits) throw tpmMalformed("a modulus is not as long as it says");
  const e = u32(exponent === 0 ? 65_537 : exponent);
  return {
    kty: "RSA",
    n: modulus.toString("base64url"),
    e: e.subarray(e.findIndex((byte) => byte !== 0)).toString("base64url"),
  };
}

function eccJwk(reader: TpmReader) {
  const curve = CURVES.get(reader.u16());
  if (curve === undefined) throw tpmMalformed("unsupported curve");
  if (reader.u16() !== ALG.null) throw tpmMalformed("unexpected key derivation");
  const [x, y] = [reader.sized(), reader.sized()];
  const pad = (part: Buffer): string =>
    Buffer.concat([Buffer.alloc(Math.max(0, curve.bytes - part.length)), part]).toString("base64url");
  return { kty: "EC", crv: curve.name, x: pad(x), y: pad(y) };
}

/** The name by which a TPM knows an object: algorithm and digest of its public area. */
export function nameOf({ raw, nameAlg }: Pick<TpmPublic, "raw" | "nameAlg">): Buffer {
  return Buffer.concat([u16(nameAlg), createHash(hashName(nameAlg)).update(raw).digest()]);
}

export function hashName(algorithm: number): string {
  const name = HASHES.get(algorithm);
  if (name === undefined) throw tpmMalformed("unsupported hash algorithm");
  return name;
}

/**
 * Throws `denied` unless the key can only have signed what its TPM made: without `restricted`, its owner could sign a
 * forged attestation.
 */
export function checkAttestationKey({ attributes, scheme }: TpmPublic): void {
  const wanted = OF_THIS_TPM | ATTRIBUTE.restricted | ATTRIBUTE.sign;
  if ((attributes & wanted) !== wanted || (attributes & ATTRIBUTE.decrypt) !== 0 || scheme === undefined)
    throw refused("attestation key is not a restricted signing key of its TPM");
}

/** Throws `denied` unless the key signs and cannot leave its TPM. */
export function checkDeviceKey({ attributes }: TpmPublic): void {
  const wanted = OF_THIS_TPM | ATTRIBUTE.sign;
  if ((attributes & wanted) !== wanted || (attributes & ATTRIBUTE.restricted) !== 0)
    throw refused("DevID key is not an unrestricted signing key that is fixed to its TPM");
}

/** TPMS_ATTEST, the parts that are looked at. */
export interface Attested {
  readonly kind: "certify" | "quote" | "creation";
  readonly extraData: Uint8Array;
  /** Of the object, for `certify` and `creation`. */
  readonly name: Uint8Array;
  readonly creationHash: Uint8Array;
  readonly selection: readonly PcrSelection[];
  readonly pcrDigest: Uint8Array;
}

const KINDS: ReadonlyMap<number, Attested["kind"]> = new Map([
  [0x8017, "certify"],
  [0x8018, "quote"],
  [0x801a, "creation"],
]);
/** What only a TPM puts before what it signs with a restricted key. */
const MAGIC = 0xff544347;

export function parseAttested(raw: Uint8Array): Attested {
  const reader = new TpmReader(raw);
  if (reader.u32() !== MAGIC) throw refused("attested data were not made by a TPM");
  const kind = KINDS.get(reader.u16());
  if (kind === undefined) throw tpmMalformed("unexpected kind of attested data");
  reader.sized();
  const extraData = reader.sized();
  reader.take(8 + 4 + 4 + 1 + 8);
  const selection = kind === "quote" ? readSelections(reader) : [];
  const first = reader.sized();
  const second = kind === "quote" ? Buffer.alloc(0) : reader.sized();
  reader.end();
  const isQuote = kind === "quote";
  return {
    ...{ kind, extraData, selection },
    name: isQuote ? Buffer.alloc(0) : first,
    creationHash: kind === "creation" ? second : Buffer.alloc(0),
    pcrDigest: isQuote ? first : Buffer.alloc(0),
  };
}

/** TPMS_PCR_SELECTION: a bank, and registers in ascending order. */
export interface PcrSelection {
  readonly hash: number;
  readonly pcrs: readonly number[];
}

export function readSelections(reader: TpmReader): readonly PcrSelection[] {
  const count = reader.u32();
  if (count > 16) throw tpmMalformed("too many PCR banks");
  return Array.from({ length: count }, () => {
    const hash = reader.u16();
    const bits = reader.take(reader.u8());
    return { hash, pcrs: Array.from({ length: bits.length * 8 }, (_, at) => at).filter((at) => isSet(bits, at)) };
  });
}

function isSet(bits: Uint8Array, at: number): boolean {
  return (((bits[at >> 3] ?? 0) >> (at & 7)) & 1) === 1;
}

export function encodeSelection({ hash, pcrs }: PcrSelection): Buffer {
  const bits = Buffer.alloc(3);
  for (const pcr of pcrs) bits[pcr >> 3] = (bits[pcr >> 3] ?? 0) | (1 << (pcr & 7));
  return Buffer.concat([u32(1), u16(hash), Buffer.of(3), bits]);
}

/** TPMT_SIGNATURE, over `data`, by the key's own scheme and hash: the signature has no say in that. */
export function tpmSignatureHolds({ key, scheme }: TpmPublic, data: Uint8Array, signature: Uint8Array): boolean {
  const reader = new TpmReader(signature);
  const algorithm = reader.u16();
  const hash = reader.u16();
  if (scheme === undefined || algorithm !== scheme.algorithm || hash !== scheme.hash || !HASHES.has(hash)) return false;
  if (algorithm === ALG.ecdsa) {
    const bytes = key.asymmetricKeyDetails?.namedCurve === "secp384r1" ? 48 : 32;
    const [r, s] = [reader.sized(), reader.sized()];
    reader.end();
    if (r.length === 0 || s.length === 0 || r.length > bytes || s.length > bytes) return false;
    const pair = Buffer.alloc(2 * bytes);
    pair.set(r, bytes - r.length);
    pair.set(s, 2 * bytes - s.length);
    return verify(hashName(hash), data, { key, dsaEncoding: "ieee-p1363" }, pair);
  }
  const body = reader.sized();
  reader.end();
  if (body.length === 0) return false;
  const padding = algorithm === ALG.rsapss ? PSS : { padding: constants.RSA_PKCS1_PADDING };
  return verify(hashName(hash), data, { key, ...padding }, body);
}

const PSS = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_AUTO };

function hex(text: string): Buffer {
  return Buffer.from(text.replaceAll(" ", ""), "hex");
}

/** Templates of primary and other keys, byte for byte; tpm.md 2. */
const EK_HEAD =
  "000b 000300b2 0020 837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa 0006 0080 0043 0010";
export const TEMPLATE = {
  ekRsa: Buffer.concat([hex(`0001 ${EK_HEAD} 0800 00000000`), sized(Buffer.alloc(256))]),
  ekEcc: Buffer.concat([hex(`0023 ${EK_HEAD} 0003 0010`), sized(Buffer.alloc(32)), sized(Buffer.alloc(32))]),
  srkRsa: hex("0001000b00030472 0000 000600800043 0010 0800 00000000 0000"),
  srkEcc: hex("0023000b00030472 0000 000600800043 0010 0003 0010 0000 0000"),
  akRsa: hex("0001000b00050072 0000 0010 0014000b 0800 00000000 0000"),
  akEcc: hex("0023000b00050072 0000 0010 0018000b 0003 0010 0000 0000"),
  devidRsa: hex("0001000b00040072 0000 0010 0014000b 0800 00000000 0000"),
  devidEcc: hex("0023000b00040072 0000 0010 0018000b 0003 0010 0000 0000"),
} as const;

/** The public area that the default template gives with this key: what an endorsement key must be. Throws `denied`. */
export function endorsementPublic(key: KeyObject): Buffer {
  const { kty, crv, n = "", e, x = "", y = "" } = key.export({ format: "jwk" });
  const part = (text: string): Buffer => Buffer.from(text, "base64url");
  if (kty === "RSA" && part(n).length === 256 && e === "AQAB")
    return Buffer.concat([hex(`0001 ${EK_HEAD} 0800 00000000`), sized(part(n))]);
  if (kty === "EC" && crv === "P-256")
    return Buffer.concat([hex(`0023 ${EK_HEAD} 0003 0010`), sized(part(x)), sized(part(y))]);
  throw refused("endorsement key is neither RSA with 2048 bits nor ECC on P-256");
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "tpm-refused" });
}
