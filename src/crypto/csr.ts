import type { KeyObject } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import { encodeSubjectAltName } from "./certificate-template.ts";
import { contextTag, DerReader, derFault, readOctets, readOid, readSmallUnsigned, TAG } from "./der.ts";
import { encode, encodeOctets, encodeOid, encodeUnsigned, sequence, setOf } from "./der-writer.ts";
import { EXTENSION, type Extensions, readExtensions } from "./extensions.ts";
import type { Signer } from "./key.ts";
import { checkName, type DistinguishedName, encodeName } from "./name.ts";
import { checkPublicKey } from "./public-key.ts";
import { type SignedData, signatureAlgorithm, signatureHoldsAsync } from "./signature.ts";

/** T-X5. */
export const MAX_CSR_BYTES = 16 * 1024;
const EXTENSION_REQUEST = "1.2.840.113549.1.9.14";

/** A parsed PKCS#10 request. The names and extensions are wishes: an issuer takes the key and decides the rest. */
export interface CertificateRequest extends Extensions, SignedData {
  readonly raw: Uint8Array;
  /** SubjectPublicKeyInfo, DER, of a key that `checkPublicKey` accepts. */
  readonly publicKey: Uint8Array;
  readonly key: KeyObject;
  /** Name, DER. */
  readonly subject: Uint8Array;
}

/** Strict DER, at most 16 KiB, with a key that is not weak. The signature is not looked at. Throws `invalid`. */
export function parseCertificateRequest(der: Uint8Array): CertificateRequest {
  if (der.length > MAX_CSR_BYTES) throw new Fault("invalid", "CSR is larger than 16 KiB", { code: "csr-too-large" });
  const outer = new DerReader(der);
  const { raw, body } = outer.read(TAG.sequence);
  outer.end();
  const reader = new DerReader(body);
  const info = reader.read(TAG.sequence);
  const signatureAlgorithm = reader.read(TAG.sequence).raw;
  const signature = readOctets(reader.read(TAG.bitString));
  reader.end();
  return { raw, signed: info.raw, signatureAlgorithm, signature, ...readInfo(info.body) };
}

function readInfo(body: Uint8Array) {
  const reader = new DerReader(body);
  if (readSmallUnsigned(reader.read(TAG.integer)) !== 0) throw derFault("unknown CSR version");
  const subject = checkName(reader.read(TAG.sequence));
  const publicKey = reader.read(TAG.sequence).raw;
  const attributes = reader.optional(contextTag(0, true));
  reader.end();
  return { subject, publicKey, key: checkPublicKey(publicKey), ...readAttributes(attributes?.body) };
}

function readAttributes(body: Uint8Array | undefined): Extensions {
  let requested: Extensions | undefined;
  for (const element of new DerReader(body ?? new Uint8Array()).rest(TAG.sequence)) {
    const attribute = new DerReader(element.body);
    const id = readOid(attribute.read(TAG.oid));
    const values = attribute.enter(TAG.set);
    attribute.end();
    if (id !== EXTENSION_REQUEST) continue;
    if (requested !== undefined) throw derFault("extension request appears twice");
    requested = readExtensions(values.read(TAG.sequence));
    values.end();
  }
  return requested ?? readExtensions(undefined);
}

/** Proof that the requester holds the private key. Throws `invalid`. */
export async function verifyCertificateRequest(request: CertificateRequest): Promise<void> {
  if (!(await signatureHoldsAsync(request, request.key))) {
    throw new Fault("invalid", "invalid CSR signature", {
      code: "csr-signature",
      hint: "sign the CSR with the private key of the key it holds",
    });
  }
}

export interface CertificateRequestOptions {
  readonly signer: Signer;
  readonly subject?: DistinguishedName;
  readonly uris?: readonly string[];
  readonly dnsNames?: readonly string[];
}

/** PKCS#10, DER. */
export async function createCertificateRequest(options: CertificateRequestOptions): Promise<Uint8Array> {
  const { signer, subject = {}, uris = [], dnsNames = [] } = options;
  const info = sequence(
    encodeUnsigned(0n),
    encodeName(subject),
    signer.publicKey,
    encode(
      contextTag(0, true),
      ...(uris.length + dnsNames.length === 0 ? [] : [extensionRequest(encodeSubjectAltName({ uris, dnsNames }))]),
    ),
  );
  const signature = await signer.sign(info);
  return sequence(info, signatureAlgorithm(signer.keyType), encodeOctets(signature));
}

function extensionRequest(names: Uint8Array): Uint8Array {
  const extensions = sequence(sequence(encodeOid(EXTENSION.subjectAltName), encode(TAG.octetString, names)));
  return sequence(encodeOid(EXTENSION_REQUEST), setOf(extensions));
}
