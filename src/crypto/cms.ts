import { createHash, timingSafeEqual, verify } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import { derOfBer } from "./ber.ts";
import { type Certificate, parseCertificate } from "./certificate.ts";
import { contextTag, type DerElement, DerReader, derFault, readOid, readOnly, readUnsigned, TAG } from "./der.ts";
import { encode } from "./der-writer.ts";

/** Longer messages are refused before they are looked at. T-X5. */
const MAX_CMS_BYTES = 64 * 1024;
const MAX_CERTIFICATES = 10;
const MAX_ATTRIBUTES = 16;

const OID = {
  data: "1.2.840.113549.1.7.1",
  signedData: "1.2.840.113549.1.7.2",
  contentType: "1.2.840.113549.1.9.3",
  messageDigest: "1.2.840.113549.1.9.4",
  rsaEncryption: "1.2.840.113549.1.1.1",
} as const;

type Hash = "sha256" | "sha384" | "sha512";

/** Some signers name the whole signature algorithm where the digest belongs. */
const DIGESTS: ReadonlyMap<string, Hash> = new Map([
  ["2.16.840.1.101.3.4.2.1", "sha256"],
  ["2.16.840.1.101.3.4.2.2", "sha384"],
  ["2.16.840.1.101.3.4.2.3", "sha512"],
  ["1.2.840.113549.1.1.11", "sha256"],
  ["1.2.840.113549.1.1.12", "sha384"],
  ["1.2.840.113549.1.1.13", "sha512"],
]);

/** RSA with PKCS #1 v1.5. The hash is undefined where the digest algorithm says it. */
const SIGNATURES: ReadonlyMap<string, Hash | undefined> = new Map([
  [OID.rsaEncryption, undefined],
  ["1.2.840.113549.1.1.11", "sha256"],
  ["1.2.840.113549.1.1.12", "sha384"],
  ["1.2.840.113549.1.1.13", "sha512"],
]);

/** A CMS SignedData with its content in it and one signer, taken apart. Nothing about its signature is known. */
export interface SignedMessage {
  readonly content: Uint8Array;
  /** Those in the bag, in no order; each may be anybody's. */
  readonly certificates: readonly Uint8Array[];
  readonly signer: SignerInfo;
}

interface SignerInfo {
  /** Name, DER. */
  readonly issuer: Uint8Array;
  /** Decimal. */
  readonly serialNumber: string;
  readonly hash: Hash;
  /** As SET OF, DER. */
  readonly attributes: Uint8Array | undefined;
  readonly signature: Uint8Array;
}

/**
 * Reads PKCS #7 or CMS in BER. Content that is detached or not plain data, another number of signers than one, weak or
 * unknown algorithms, and anything after the message are refused. Throws `invalid`. RFC 5652, section 5.
 */
export function readSignedMessage(bytes: Uint8Array): SignedMessage {
  if (bytes.length > MAX_CMS_BYTES) throw malformed("the signed message is larger than 64 KiB");
  const info = readOnly(derOfBer(bytes));
  if (readOid(info.read(TAG.oid)) !== OID.signedData) throw malformed("the message is not signed data");
  const data = readOnly(info.read(contextTag(0, true)).body);
  info.end();
  readUnsigned(data.read(TAG.integer));
  data.read(TAG.set);
  const content = readContent(data.enter());
  const bag = data.optional(contextTag(0, true));
  data.optional(contextTag(1, true));
  const signers = [...data.enter(TAG.set).rest(TAG.sequence)];
  data.end();
  const [signer, ...others] = signers;
  if (signer === undefined || others.length > 0)
    throw malformed(`the message has ${signers.length} signers instead of one`);
  return { content, certificates: bag === undefined ? [] : readBag(bag), signer: readSigner(signer) };
}

function readContent(reader: DerReader): Uint8Array {
  if (readOid(reader.read(TAG.oid)) !== OID.data) throw malformed("the signed content is not plain data");
  const wrapper = reader.optional(contextTag(0, true));
  reader.end();
  if (wrapper === undefined) throw malformed("the message does not hold the content that it signs");
  const inner = new DerReader(wrapper.body);
  const { body } = inner.read(TAG.octetString);
  inner.end();
  return body;
}

/** Attribute certificates and other forms are passed over: they sign nothing here. */
function readBag({ body }: DerElement): readonly Uint8Array[] {
  const all = [...new DerReader(body).rest()];
  if (all.length > MAX_CERTIFICATES) throw malformed("the message holds too many certificates");
  return all.filter(({ tag }) => tag === TAG.sequence).map(({ raw }) => raw);
}

function readSigner({ body }: DerElement): SignerInfo {
  const reader = new DerReader(body);
  readUnsigned(reader.read(TAG.integer));
  const id = reader.enter();
  const issuer = id.read(TAG.sequence).raw;
  const serialNumber = readUnsigned(id.read(TAG.integer)).toString();
  id.end();
  const hash = DIGESTS.get(algorithmIn(reader));
  const attributes = reader.optional(contextTag(0, true));
  const algorithm = algorithmIn(reader);
  const signature = reader.read(TAG.octetString).body;
  reader.optional(contextTag(1, true));
  reader.end();
  const implied = SIGNATURES.get(algorithm) ?? hash;
  if (hash === undefined || !SIGNATURES.has(algorithm) || implied !== hash)
    throw malformed("the message is signed with an algorithm that is not accepted");
  const set = attributes === undefined ? undefined : encode(TAG.set, attributes.body);
  return { issuer, serialNumber, hash, attributes: set, signature };
}

/** Parameters of these are absent or NULL and say nothing. */
function algorithmIn(reader: DerReader): string {
  const algorithm = reader.enter();
  const id = readOid(algorithm.read(TAG.oid));
  if (algorithm.optional(TAG.null)?.body.length) throw malformed("malformed algorithm parameters");
  algorithm.end();
  return id;
}

/** Whether the signer says that this is its certificate. */
export function isSignedBy({ signer }: SignedMessage, { issuer, serialNumber }: Certificate): boolean {
  return signer.serialNumber === serialNumber && Buffer.compare(signer.issuer, issuer) === 0;
}

/** The one certificate of the bag that the signer names. Throws `denied` for none, and for different ones. */
export function signerCertificate(message: SignedMessage): Certificate {
  const named = message.certificates.flatMap(parsed).filter((certificate) => isSignedBy(message, certificate));
  const [first, ...others] = named;
  if (first === undefined || others.some(({ raw }) => Buffer.compare(raw, first.raw) !== 0))
    throw refused("the message does not hold the one certificate of its signer");
  return first;
}

/** What cannot be read cannot be the signer's. */
function parsed(der: Uint8Array): readonly Certificate[] {
  try {
    return [parseCertificate(der)];
  } catch {
    return [];
  }
}

/**
 * The content, once the certificate's key has signed it: directly, or by signed attributes that hold its digest and its
 * type exactly once. Throws `denied`. RFC 5652, sections 5.4 and 5.6.
 */
export function verifiedContent(message: SignedMessage, certificate: Certificate): Uint8Array {
  const { content, signer } = message;
  if (!isSignedBy(message, certificate)) throw refused("the message is signed by another certificate");
  const key = certificate.key();
  if (key.asymmetricKeyType !== "rsa") throw refused("the signer's key is of another type than its signature");
  if (signer.attributes !== undefined) checkAttributes(signer.attributes, content, signer.hash);
  if (signer.signature.length === 0 || !verify(signer.hash, signer.attributes ?? content, key, signer.signature))
    throw refused("the signature does not verify");
  return content;
}

function checkAttributes(set: Uint8Array, content: Uint8Array, hash: Hash): void {
  const values = new Map<string, DerElement>();
  for (const { body } of readOnly(set, TAG.set).rest(TAG.sequence)) {
    const attribute = new DerReader(body);
    const type = readOid(attribute.read(TAG.oid));
    const held = attribute.enter(TAG.set);
    const value = held.read();
    if (type === OID.contentType || type === OID.messageDigest) held.end();
    attribute.end();
    if (values.has(type)) throw derFault(`signed attribute ${type} appears twice`);
    values.set(type, value);
    if (values.size > MAX_ATTRIBUTES) throw malformed("the signer has too many signed attributes");
  }
  const [type, digest] = [values.get(OID.contentType), values.get(OID.messageDigest)];
  if (type === undefined || type.tag !== TAG.oid || readOid(type) !== OID.data)
    throw refused("the signed attributes do not hold the type of the content");
  if (digest === undefined || digest.tag !== TAG.octetString)
    throw refused("the signed attributes do not hold the digest of the content");
  const computed = createHash(hash).update(content).digest();
  if (computed.length !== digest.body.length || !timingSafeEqual(computed, digest.body))
    throw refused("the signed digest is that of another content");
}

function malformed(message: string): Fault {
  return new Fault("invalid", message, { code: "cms-malformed" });
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "cms-signature" });
}
