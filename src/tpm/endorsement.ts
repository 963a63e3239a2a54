import { type Certificate, parseCertificate } from "../crypto/certificate.ts";
import { contextTag, DerReader, readOid, readOnly, TAG } from "../crypto/der.ts";
import { encode, encodeOid, sequence } from "../crypto/der-writer.ts";
import { EXTENSION } from "../crypto/extensions.ts";
import { checkPublicKey } from "../crypto/public-key.ts";
import { tpmMalformed } from "./wire.ts";

/** Who made a TPM, as its endorsement certificate says. Empty where it says nothing. */
export interface TpmMaker {
  /** Such as `id:49424D00`. */
  readonly manufacturer: string;
  readonly model: string;
  readonly version: string;
}

const OLD_HEADER = Buffer.of(0x10, 0x01, 0x00);
const RSAES_OAEP = "1.2.840.113549.1.1.7";
const RSA_ENCRYPTION = sequence(encodeOid("1.2.840.113549.1.1.1"), encode(TAG.null));
const EK_PURPOSE = "2.23.133.8.1";
const ATTRIBUTES: ReadonlyMap<string, keyof TpmMaker> = new Map([
  ["2.23.133.2.1", "manufacturer"],
  ["2.23.133.2.2", "model"],
  ["2.23.133.2.3", "version"],
]);

/** The certificate in an NV index: without the header that old TPMs put before it, and what pads it. Throws `invalid`. */
export function endorsementCertificate(stored: Uint8Array): Uint8Array {
  const data = Buffer.from(stored.buffer, stored.byteOffset, stored.length);
  const der = data.subarray(0, 3).equals(OLD_HEADER) ? data.subarray(5) : data;
  if (der.length < 4 || der[0] !== 0x30 || der[1] !== 0x82)
    throw tpmMalformed("there is no certificate in the NV index");
  return der.subarray(0, 4 + der.readUInt16BE(2));
}

/**
 * A certificate for an endorsement key and nothing else. Some makers say of an RSA key that it is for OAEP; here it is an
 * RSA key like any, as TPMs decrypt by their own rules. Throws `invalid`.
 */
export function parseEndorsement(der: Uint8Array): Certificate {
  const certificate = withPlainKey(parseCertificate(der));
  const { isCa, extKeyUsage } = certificate;
  if (isCa) throw tpmMalformed("the endorsement certificate is an authority's");
  if (extKeyUsage !== undefined && !extKeyUsage.includes(EK_PURPOSE))
    throw tpmMalformed("the certificate is not for an endorsement key");
  return certificate;
}

/** RFC 4055, section 4.1. */
function withPlainKey(certificate: Certificate): Certificate {
  const info = readOnly(certificate.publicKey);
  const algorithm = info.enter();
  if (readOid(algorithm.read(TAG.oid)) !== RSAES_OAEP) return certificate;
  const parameters = algorithm.optional(TAG.sequence);
  algorithm.end();
  if (parameters !== undefined) {
    const reader = new DerReader(parameters.body);
    for (const number of [0, 1, 2]) reader.optional(contextTag(number, true));
    reader.end();
  }
  const publicKey = sequence(RSA_ENCRYPTION, info.read(TAG.bitString).raw);
  info.end();
  return { ...certificate, publicKey, key: () => checkPublicKey(publicKey) };
}

/** From the directory name among the subject's other names. */
export function makerOf({ raw }: Pick<Certificate, "raw">): TpmMaker {
  const found: Record<keyof TpmMaker, string> = { manufacturer: "", model: "", version: "" };
  for (const { tag, body } of alternativeNames(raw)) {
    if (tag !== contextTag(4, true)) continue;
    for (const set of readOnly(body).rest(TAG.set)) {
      for (const pair of new DerReader(set.body).rest(TAG.sequence)) {
        const reader = new DerReader(pair.body);
        const attribute = ATTRIBUTES.get(readOid(reader.read(TAG.oid)));
        if (attribute !== undefined) found[attribute] = Buffer.from(reader.read().body).toString("utf8");
      }
    }
  }
  return found;
}

function alternativeNames(raw: Uint8Array) {
  const certificate = new DerReader(readOnly(raw).read(TAG.sequence).body);
  const fields = [...certificate.rest()];
  const wrapper = fields.find(({ tag }) => tag === contextTag(3, true));
  if (wrapper === undefined) return [];
  for (const element of readOnly(wrapper.body).rest(TAG.sequence)) {
    const extension = new DerReader(element.body);
    if (readOid(extension.read(TAG.oid)) !== EXTENSION.subjectAltName) continue;
    extension.optional(TAG.boolean);
    return [...readOnly(extension.read(TAG.octetString).body).rest()];
  }
  return [];
}
