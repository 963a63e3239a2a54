import { createHash, createPrivateKey, type KeyObject, sign } from "node:crypto";
import { contextTag, TAG } from "../../src/crypto/der.ts";
import { encode, encodeOid, encodeUnsigned, explicit, sequence, setOf } from "../../src/crypto/der-writer.ts";
import { encodePem } from "../../src/crypto/pem.ts";
import { openssl } from "./openssl.ts";
import type { Issued } from "./pki.ts";

const NULL = encode(TAG.null);
const algorithm = (oid: string): Buffer => sequence(encodeOid(oid), NULL);

/** Who signs. */
export interface CmsSigner {
  readonly key: KeyObject;
  /** Who the signer says that it is. */
  readonly certificate: Issued["certificate"];
}

export interface CmsSignerOptions {
  /** Instead of a digest of the content and its type; null for no signed attributes. */
  readonly attributes?: readonly Uint8Array[] | null;
  /** Signed instead of what belongs there. */
  readonly signed?: Uint8Array;
  readonly signature?: Uint8Array;
  readonly digestOid?: string;
  readonly signatureOid?: string;
}

export const CMS_OID = {
  data: "1.2.840.113549.1.7.1",
  signedData: "1.2.840.113549.1.7.2",
  contentType: "1.2.840.113549.1.9.3",
  messageDigest: "1.2.840.113549.1.9.4",
  sha256: "2.16.840.1.101.3.4.2.1",
  sha256WithRsa: "1.2.840.113549.1.1.11",
  rsa: "1.2.840.113549.1.1.1",
} as const;

export function attribute(oid: string, ...values: readonly Uint8Array[]): Buffer {
  return sequence(encodeOid(oid), setOf(...values));
}

export const contentTypeAttribute = (): Buffer => attribute(CMS_OID.contentType, encodeOid(CMS_OID.data));

export function digestAttribute(content: Uint8Array): Buffer {
  return attribute(CMS_OID.messageDigest, encode(TAG.octetString, createHash("sha256").update(content).digest()));
}

/** A SignerInfo over the content, and of any shape besides. */
export function signerInfo(
  { key, certificate }: CmsSigner,
  content: Uint8Array,
  options: CmsSignerOptions = {},
): Buffer {
  const { attributes = [contentTypeAttribute(), digestAttribute(content)] } = options;
  const signed = options.signed ?? (attributes === null ? content : setOf(...attributes));
  return sequence(
    encodeUnsigned(1n),
    sequence(certificate.issuer, encodeUnsigned(BigInt(certificate.serialNumber))),
    algorithm(options.digestOid ?? CMS_OID.sha256),
    ...(attributes === null
      ? []
      : [encode(contextTag(0, true), setOf(...attributes).subarray(bodyAt(setOf(...attributes))))]),
    algorithm(options.signatureOid ?? CMS_OID.rsa),
    encode(TAG.octetString, options.signature ?? sign("sha256", signed, key)),
  );
}

function bodyAt(der: Uint8Array): number {
  return (der[1] ?? 0) < 0x80 ? 2 : 2 + ((der[1] ?? 0) & 0x7f);
}

export interface CmsOptions {
  /** Undefined for a detached signature. */
  readonly content: Uint8Array | undefined;
  readonly certificates?: readonly Uint8Array[];
  readonly signers: readonly Uint8Array[];
  /** More in the place of the content. */
  readonly moreContent?: readonly Uint8Array[];
}

/** A SignedData message, put together from parts that need not fit. */
export function signedData({ content, certificates = [], signers, moreContent = [] }: CmsOptions): Buffer {
  const octets = [...(content === undefined ? [] : [content]), ...moreContent].map((each) =>
    encode(TAG.octetString, each),
  );
  const data = sequence(
    encodeUnsigned(1n),
    setOf(algorithm(CMS_OID.sha256)),
    sequence(encodeOid(CMS_OID.data), ...(octets.length === 0 ? [] : [explicit(0, ...octets)])),
    ...(certificates.length === 0 ? [] : [encode(contextTag(0, true), ...certificates)]),
    setOf(...signers),
  );
  return sequence(encodeOid(CMS_OID.signedData), explicit(0, data));
}

/** What OpenSSL signs. `-stream` is BER of indefinite lengths, as Amazon's. */
export async function opensslSigned(
  signer: Issued,
  content: Uint8Array,
  ...options: readonly string[]
): Promise<Buffer> {
  await using directory = await openssl();
  await directory.write("signer.pem", encodePem("CERTIFICATE", signer.der));
  await directory.write("key.pem", signer.keyPem);
  await directory.write("content", content);
  const how = ["-sign", "-binary", "-nodetach", "-outform", "DER", "-md", "sha256", ...options];
  return await directory.run("cms", ...how, "-signer", "signer.pem", "-inkey", "key.pem", "-in", "content");
}

export function cmsSigner(issued: Issued): CmsSigner {
  return { key: createPrivateKey(issued.keyPem), certificate: issued.certificate };
}
