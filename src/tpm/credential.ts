import {
  constants,
  createCipheriv,
  createECDH,
  createHash,
  createHmac,
  type KeyObject,
  publicEncrypt,
  randomBytes,
} from "node:crypto";
import { sized, u32 } from "./wire.ts";

export interface CredentialChallenge {
  /** Without TPM2B lengths. */
  readonly blob: Uint8Array;
  readonly secret: Uint8Array;
}

/** The default endorsement keys name objects, and wrap, with this. */
const HASH = "sha256";
const HASH_BYTES = 32;

/**
 * TPM2_MakeCredential: only the TPM of the endorsement key gets `credential` out, and only while it holds an object of
 * this name. For endorsement keys of the default templates. TPM 2.0 part 1, section 24 and annexes B and C.
 */
export function makeCredential(
  endorsementKey: KeyObject,
  name: Uint8Array,
  credential: Uint8Array,
): CredentialChallenge {
  const { seed, secret } =
    endorsementKey.asymmetricKeyType === "rsa" ? wrapRsa(endorsementKey) : wrapEcc(endorsementKey);
  const cipher = createCipheriv("aes-128-cfb", kdfa(seed, "STORAGE", name, 16), Buffer.alloc(16));
  const encrypted = Buffer.concat([cipher.update(sized(credential)), cipher.final()]);
  const mac = createHmac(HASH, kdfa(seed, "INTEGRITY", Buffer.alloc(0), HASH_BYTES))
    .update(encrypted)
    .update(name);
  return { blob: Buffer.concat([sized(mac.digest()), encrypted]), secret };
}

interface Wrapped {
  readonly seed: Buffer;
  readonly secret: Buffer;
}

function wrapRsa(key: KeyObject): Wrapped {
  const seed = randomBytes(HASH_BYTES);
  const oaepLabel = Buffer.from("IDENTITY\0");
  const secret = publicEncrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: HASH, oaepLabel }, seed);
  return { seed, secret };
}

function wrapEcc(key: KeyObject): Wrapped {
  const { x = "", y = "" } = key.export({ format: "jwk" });
  const [keyX, keyY] = [Buffer.from(x, "base64url"), Buffer.from(y, "base64url")];
  const ephemeral = createECDH("prime256v1");
  const point = ephemeral.generateKeys();
  const shared = ephemeral.computeSecret(Buffer.concat([Buffer.of(4), keyX, keyY]));
  const [ownX, ownY] = [point.subarray(1, 33), point.subarray(33)];
  const seed = createHash(HASH).update(u32(1)).update(shared).update("IDENTITY\0").update(ownX).update(keyX).digest();
  return { seed, secret: Buffer.concat([sized(ownX), sized(ownY)]) };
}

/** KDFa: SP 800-108 in counter mode. */
function kdfa(key: Uint8Array, label: string, context: Uint8Array, bytes: number): Buffer {
  const mac = createHmac(HASH, key)
    .update(u32(1))
    .update(`${label}\0`)
    .update(context)
    .update(u32(bytes * 8));
  return mac.digest().subarray(0, bytes);
}
