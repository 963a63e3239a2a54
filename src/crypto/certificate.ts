import type { KeyObject } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import {
  contextTag,
  type DerElement,
  DerReader,
  derFault,
  readOctets,
  readSmallUnsigned,
  readTime,
  readUnsigned,
  TAG,
} from "./der.ts";
import { type Extensions, readExtensions } from "./extensions.ts";
import { checkName } from "./name.ts";
import { checkPublicKey } from "./public-key.ts";
import type { SignedData } from "./signature.ts";

/** T-X5. */
export const MAX_CERTIFICATE_BYTES = 16 * 1024;
const MAX_CONCATENATED_BYTES = 4 * 1024 * 1024;

/** A parsed certificate. Immutable; its byte fields are views of `raw`. Parsing proves nothing about who signed it. */
export interface Certificate extends Extensions, SignedData {
  readonly raw: Uint8Array;
  /** Decimal. */
  readonly serialNumber: string;
  /** Name, DER. */
  readonly issuer: Uint8Array;
  /** Name, DER. */
  readonly subject: Uint8Array;
  readonly notBefore: Date;
  readonly notAfter: Date;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  /** The public key, checked and ready to verify with. Throws `invalid` for a weak one. */
  key(): KeyObject;
}

/** Strict DER, one certificate and nothing after it, at most 16 KiB. Throws `invalid`. */
export function parseCertificate(der: Uint8Array): Certificate {
  return parse(der);
}

/** As `parseCertificate`, whose `key()` takes RSA keys of up to `maxRsaBits`. */
export function parseCertificateUpTo(der: Uint8Array, maxRsaBits: number): Certificate {
  return parse(der, maxRsaBits);
}

function parse(der: Uint8Array, maxRsaBits?: number): Certificate {
  if (der.length > MAX_CERTIFICATE_BYTES) throw tooLarge("certificate is larger than 16 KiB");
  const outer = new DerReader(der);
  const { raw, body } = outer.read(TAG.sequence);
  outer.end();
  const reader = new DerReader(body);
  const tbs = reader.read(TAG.sequence);
  const signatureAlgorithm = reader.read(TAG.sequence).raw;
  const signature = readOctets(reader.read(TAG.bitString));
  reader.end();
  const { innerAlgorithm, ...fields } = readTbs(tbs);
  if (Buffer.compare(innerAlgorithm, signatureAlgorithm) !== 0)
    throw derFault("signature algorithms inside and outside differ");
  let key: KeyObject | undefined;
  return {
    raw,
    signed: tbs.raw,
    signatureAlgorithm,
    signature,
    ...fields,
    key() {
      key ??= checkPublicKey(fields.publicKey, maxRsaBits);
      return key;
    },
  };
}

function readTbs(tbs: DerElement) {
  const reader = new DerReader(tbs.body);
  const version = readVersion(reader.optional(contextTag(0, true)));
  const serialNumber = readUnsigned(reader.read(TAG.integer)).toString();
  const innerAlgorithm = reader.read(TAG.sequence).raw;
  const issuer = checkName(reader.read(TAG.sequence));
  const validity = reader.enter();
  const notBefore = readTime(validity.read());
  const notAfter = readTime(validity.read());
  validity.end();
  const subject = checkName(reader.read(TAG.sequence));
  const publicKey = reader.read(TAG.sequence).raw;
  reader.optional(contextTag(1));
  reader.optional(contextTag(2));
  const extensions = readWrapped(reader.optional(contextTag(3, true)));
  reader.end();
  if (extensions !== undefined && version !== 2) throw derFault("extensions in a certificate that is not version 3");
  return {
    serialNumber,
    innerAlgorithm,
    issuer,
    subject,
    notBefore,
    notAfter,
    publicKey,
    ...readExtensions(extensions),
  };
}

/** 0 is version 1, the default; 2 is version 3. */
function readVersion(wrapper: DerElement | undefined): number {
  if (wrapper === undefined) return 0;
  const reader = new DerReader(wrapper.body);
  const version = readSmallUnsigned(reader.read(TAG.integer));
  reader.end();
  if (version < 1 || version > 2) throw derFault("unknown certificate version");
  return version;
}

function readWrapped(wrapper: DerElement | undefined): DerElement | undefined {
  if (wrapper === undefined) return undefined;
  const reader = new DerReader(wrapper.body);
  const list = reader.read(TAG.sequence);
  reader.end();
  return list;
}

/** Certificates one after the other, as the Workload API carries them. Empty input gives none. Throws `invalid`. */
export function parseCertificates(concatenated: Uint8Array): Certificate[] {
  if (concatenated.length > MAX_CONCATENATED_BYTES) throw tooLarge("certificates are larger than 4 MiB");
  return Array.from(new DerReader(concatenated).rest(TAG.sequence), ({ raw }) => parseCertificate(raw));
}

function tooLarge(message: string): Fault {
  return new Fault("invalid", message, { code: "certificate-too-large" });
}
