import { constants, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from "node:crypto";
import { checkPublicKey } from "../crypto/public-key.ts";
import { Fault } from "../runtime/fault.ts";
import { SshReader, sshFault, sshMpint, sshString } from "./ssh-wire.ts";

/** Curves by their name in SSH. */
const CURVES: Readonly<Record<string, { readonly jwk: string; readonly bytes: number; readonly hash: string }>> = {
  nistp256: { jwk: "P-256", bytes: 32, hash: "sha256" },
  nistp384: { jwk: "P-384", bytes: 48, hash: "sha384" },
  nistp521: { jwk: "P-521", bytes: 66, hash: "sha512" },
};

const url = (data: Uint8Array): string => Buffer.from(data).toString("base64url");

/** A public key's own fields, after the name of its type (without `-cert-v01@openssh.com`). Throws `invalid`. */
export function readPublicFields(type: string, reader: SshReader): KeyObject {
  return checked(createPublicKey({ key: publicJwk(type, reader), format: "jwk" }));
}

function publicJwk(type: string, reader: SshReader) {
  if (type === "ssh-ed25519") return { kty: "OKP", crv: "Ed25519", x: url(reader.bytes()) };
  if (type === "ssh-rsa") {
    const e = url(reader.mpint());
    return { kty: "RSA", e, n: url(reader.mpint()) };
  }
  const curve = curveOf(type);
  if (reader.text() !== type.slice("ecdsa-sha2-".length)) throw sshFault("the curve is not the key type's");
  const point = reader.bytes();
  if (point.length !== 1 + 2 * curve.bytes || point[0] !== 4) throw sshFault("a point is not uncompressed");
  const [x, y] = [point.subarray(1, 1 + curve.bytes), point.subarray(1 + curve.bytes)];
  return { kty: "EC", crv: curve.jwk, x: url(x), y: url(y) };
}

function curveOf(type: string) {
  const curve = type.startsWith("ecdsa-sha2-") ? CURVES[type.slice("ecdsa-sha2-".length)] : undefined;
  if (curve === undefined) throw sshFault(`key type ${JSON.stringify(type.slice(0, 64))} is not supported`);
  return curve;
}

/** The same gate as for every other foreign key (T-X6). */
function checked(key: KeyObject): KeyObject {
  return checkPublicKey(key.export({ type: "spki", format: "der" }));
}

/** The whole public key in its binary form. Throws `invalid`. */
export function readPublicKey(blob: Uint8Array): KeyObject {
  const reader = new SshReader(blob);
  const key = readPublicFields(reader.text(), reader);
  reader.end();
  return key;
}

/** Keys of an authorized_keys file or list: type, base64, and a comment. Throws `invalid`. */
export function readAuthorities(text: string): readonly Buffer[] {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"))
    .map((line) => {
      const [type = "", base64 = ""] = line.split(/\s+/);
      const blob = Buffer.from(base64, "base64");
      readPublicKey(blob);
      if (new SshReader(blob).text() !== type) throw sshFault("a key is not of the type that its line names");
      return blob;
    });
}

export interface SshSignature {
  readonly format: string;
  readonly blob: Uint8Array;
}

/** SSH's signature blob: format and bytes. Throws `invalid`. */
export function readSignature(data: Uint8Array): SshSignature {
  const reader = new SshReader(data);
  const signature = { format: reader.text(), blob: reader.bytes() };
  reader.end();
  return signature;
}

/** False for a signature that is wrong, of another key type, or of a format that is not in `formats`. */
export function signatureHolds(
  key: KeyObject,
  data: Uint8Array,
  {
    signature: { format, blob },
    allowSha1 = false,
  }: { readonly signature: SshSignature; readonly allowSha1?: boolean },
): boolean {
  if (blob.length === 0) return false;
  if (key.asymmetricKeyType === "ed25519") return format === "ssh-ed25519" && verify(null, data, key, blob);
  if (key.asymmetricKeyType === "ec") return ecdsaHolds(key, data, { format, blob });
  const hash = RSA_HASHES[format];
  if (hash === undefined || (hash === "sha1" && !allowSha1)) return false;
  return verify(hash, data, { key, padding: constants.RSA_PKCS1_PADDING }, blob);
}

const RSA_HASHES: Readonly<Record<string, string>> = {
  "rsa-sha2-256": "sha256",
  "rsa-sha2-512": "sha512",
  "ssh-rsa": "sha1",
};

function ecdsaHolds(key: KeyObject, data: Uint8Array, { format, blob }: SshSignature): boolean {
  const name = sshNameOf(key);
  if (name === undefined || format !== `ecdsa-sha2-${name}`) return false;
  const { bytes, hash } = curveOf(format);
  const reader = new SshReader(blob);
  const [r, s] = [reader.mpint(), reader.mpint()];
  reader.end();
  if (r.length === 0 || s.length === 0 || r.length > bytes || s.length > bytes) return false;
  const signature = Buffer.alloc(2 * bytes);
  signature.set(r, bytes - r.length);
  signature.set(s, 2 * bytes - s.length);
  return verify(hash, data, { key, dsaEncoding: "ieee-p1363" }, signature);
}

function sshNameOf(key: KeyObject): string | undefined {
  const { crv } = key.export({ format: "jwk" });
  return Object.keys(CURVES).find((name) => CURVES[name]?.jwk === crv);
}

/** With the key's own scheme; RSA with SHA-256. */
export function signSsh(privateKey: KeyObject, data: Uint8Array): SshSignature {
  if (privateKey.asymmetricKeyType === "ed25519") return { format: "ssh-ed25519", blob: sign(null, data, privateKey) };
  if (privateKey.asymmetricKeyType === "rsa") return { format: "rsa-sha2-256", blob: sign("sha256", data, privateKey) };
  const format = `ecdsa-sha2-${sshNameOf(createPublicKey(privateKey)) ?? ""}`;
  const { bytes, hash } = curveOf(format);
  const halves = sign(hash, data, { key: privateKey, dsaEncoding: "ieee-p1363" });
  return { format, blob: Buffer.concat([sshMpint(halves.subarray(0, bytes)), sshMpint(halves.subarray(bytes))]) };
}

/** An unencrypted private key: OpenSSH's own form, or any that OpenSSL knows. Throws `invalid`, without the contents. */
export function readPrivateKey(pem: string): KeyObject {
  const own = /-----BEGIN OPENSSH PRIVATE KEY-----([\s\S]+?)-----END OPENSSH PRIVATE KEY-----/.exec(pem);
  try {
    return own === null ? createPrivateKey(pem) : readOpenSshKey(Buffer.from(own[1] ?? "", "base64"));
  } catch (error) {
    const { message } = Fault.from(error);
    throw new Fault("invalid", `not an unencrypted SSH private key: ${own === null ? "unknown form" : message}`, {
      code: "ssh-private-key",
    });
  }
}

const MAGIC = "openssh-key-v1\0";

/** PROTOCOL.key of OpenSSH. */
function readOpenSshKey(data: Buffer): KeyObject {
  if (data.toString("latin1", 0, MAGIC.length) !== MAGIC) throw sshFault("unknown form of private key");
  const outer = new SshReader(data.subarray(MAGIC.length));
  if (outer.text() !== "none" || outer.text() !== "none") throw sshFault("the private key is encrypted");
  outer.bytes();
  if (outer.uint32() !== 1) throw sshFault("expected one private key");
  outer.bytes();
  const inner = new SshReader(outer.bytes());
  const check = inner.uint32();
  if (inner.uint32() !== check) throw sshFault("the check numbers differ");
  return createPrivateKey({ key: privateJwk(inner.text(), inner), format: "jwk" });
}

function privateJwk(type: string, reader: SshReader) {
  if (type === "ssh-ed25519") {
    const x = reader.bytes();
    return { kty: "OKP", crv: "Ed25519", x: url(x), d: url(reader.bytes().subarray(0, 32)) };
  }
  if (type !== "ssh-rsa") {
    const jwk = publicJwk(type, reader);
    const d = reader.mpint();
    const padded = Buffer.concat([Buffer.alloc(curveOf(type).bytes), d]).subarray(-curveOf(type).bytes);
    return { ...jwk, d: url(padded) };
  }
  const [n, e, d, qi, p, q] = [1, 2, 3, 4, 5, 6].map(() => reader.mpint()) as [
    Buffer,
    Buffer,
    Buffer,
    Buffer,
    Buffer,
    Buffer,
  ];
  const [dp, dq] = [p, q].map((prime) => url(remainder(d, prime))) as [string, string];
  return { kty: "RSA", n: url(n), e: url(e), d: url(d), p: url(p), q: url(q), dp, dq, qi: url(qi) };
}

/** d modulo the prime less one. */
function remainder(d: Buffer, prime: Buffer): Buffer {
  const rest = (number(d) % (number(prime) - 1n)).toString(16);
  return Buffer.from(rest.padStart(rest.length + (rest.length % 2), "0"), "hex");
}

function number(data: Buffer): bigint {
  return BigInt(`0x${data.toString("hex")}`);
}

/** The binary form of a public key, or of a private key's public half. */
export function publicBlob(key: KeyObject): Buffer {
  const publicKey = key.type === "private" ? createPublicKey(key) : key;
  const { kty, crv, n = "", e = "", x = "", y = "" } = publicKey.export({ format: "jwk" });
  const part = (text: string): Buffer => Buffer.from(text, "base64url");
  if (kty === "RSA") return Buffer.concat([sshString("ssh-rsa"), sshMpint(part(e)), sshMpint(part(n))]);
  if (crv === "Ed25519") return Buffer.concat([sshString("ssh-ed25519"), sshString(part(x))]);
  const name = Object.keys(CURVES).find((curve) => CURVES[curve]?.jwk === crv) ?? "";
  const point = Buffer.concat([Buffer.of(4), part(x), part(y)]);
  return Buffer.concat([sshString(`ecdsa-sha2-${name}`), sshString(name), sshString(point)]);
}
