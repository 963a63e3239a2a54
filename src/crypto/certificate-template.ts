import { contextTag, TAG } from "./der.ts";
import {
  encode,
  encodeAscii,
  encodeBoolean,
  encodeFlags,
  encodeOctets,
  encodeTime,
  encodeUnsigned,
  explicit,
  oidEncoder,
  sequence,
} from "./der-writer.ts";
import { EXT_KEY_USAGE, EXTENSION, KEY_USAGES, type KeyUsage } from "./extensions.ts";
import type { Signer } from "./key.ts";
import { type DistinguishedName, encodeName } from "./name.ts";
import { signatureAlgorithm } from "./signature.ts";

/** The whole content of a certificate to be signed. Nothing is filled in: what is not here is not in the certificate. */
export interface CertificateTemplate {
  /** Random, from 1 to 2^128-1. */
  readonly serialNumber: bigint;
  /** A Name in DER is taken as it is. */
  readonly subject: DistinguishedName | Uint8Array;
  /** The issuer's subject, byte for byte. */
  readonly issuer: DistinguishedName | Uint8Array;
  readonly notBefore: Date;
  readonly notAfter: Date;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  readonly kind: "leaf" | "ca";
  readonly pathLength?: number;
  readonly uris: readonly string[];
  readonly dnsNames: readonly string[];
  readonly keyUsage: readonly KeyUsage[];
  /** Object identifiers; the extension is left out when empty. */
  readonly extKeyUsage: readonly string[];
  readonly subjectKeyId: Uint8Array;
  /** Left out of a self-signed root. */
  readonly authorityKeyId?: Uint8Array;
}

/** The one function that signs certificates. Callers go through the CA's lint first. */
export async function signCertificate(template: CertificateTemplate, signer: Signer): Promise<Uint8Array> {
  const algorithm = signatureAlgorithm(signer.keyType);
  const tbs = encodeTbsCertificate(template, algorithm);
  return sequence(tbs, algorithm, encodeOctets(await signer.sign(tbs)));
}

/** TBSCertificate, DER, version 3, with the extensions in SPIRE's order. `algorithm` is an AlgorithmIdentifier. */
function encodeTbsCertificate(template: CertificateTemplate, algorithm: Uint8Array): Uint8Array {
  const subject = nameOf(template.subject);
  return sequence(
    VERSION_3,
    encodeUnsigned(template.serialNumber),
    algorithm,
    nameOf(template.issuer),
    sequence(encodeTime(template.notBefore), encodeTime(template.notAfter)),
    subject,
    template.publicKey,
    explicit(3, sequence(...encodeExtensions(template, subject))),
  );
}

const encodeId = oidEncoder([...Object.values(EXTENSION), ...Object.values(EXT_KEY_USAGE)]);
const VERSION_3 = explicit(0, encodeUnsigned(2n));
/** An empty SEQUENCE: its header is all there is. */
const EMPTY_NAME_BYTES = 2;

function nameOf(name: DistinguishedName | Uint8Array): Uint8Array {
  return name instanceof Uint8Array ? name : encodeName(name);
}

function encodeExtensions(template: CertificateTemplate, subject: Uint8Array): Uint8Array[] {
  const { keyUsage, extKeyUsage, subjectKeyId, authorityKeyId, uris, dnsNames } = template;
  const list = [
    extension(EXTENSION.keyUsage, true, encodeFlags(keyUsage.map((usage) => KEY_USAGES.indexOf(usage)))),
    extension(EXTENSION.basicConstraints, true, basicConstraints(template)),
    extension(EXTENSION.subjectKeyId, false, encode(TAG.octetString, subjectKeyId)),
  ];
  if (extKeyUsage.length > 0)
    list.splice(1, 0, extension(EXTENSION.extKeyUsage, false, sequence(...extKeyUsage.map(encodeId))));
  if (authorityKeyId !== undefined) {
    list.push(extension(EXTENSION.authorityKeyId, false, sequence(encode(contextTag(0), authorityKeyId))));
  }
  if (uris.length + dnsNames.length > 0) {
    // Critical when the subject is empty: RFC 5280, section 4.2.1.6.
    list.push(extension(EXTENSION.subjectAltName, subject.length === EMPTY_NAME_BYTES, encodeSubjectAltName(template)));
  }
  return list;
}

function extension(id: string, critical: boolean, value: Uint8Array): Uint8Array {
  return sequence(encodeId(id), ...(critical ? [encodeBoolean(true)] : []), encode(TAG.octetString, value));
}

function basicConstraints({ kind, pathLength }: CertificateTemplate): Uint8Array {
  if (kind === "leaf") return sequence();
  return sequence(encodeBoolean(true), ...(pathLength === undefined ? [] : [encodeUnsigned(BigInt(pathLength))]));
}

/** GeneralNames: DNS names, then URIs, as Go orders them. Also for CSRs. */
export function encodeSubjectAltName(names: {
  readonly uris: readonly string[];
  readonly dnsNames: readonly string[];
}): Uint8Array {
  const dnsNames = names.dnsNames.map((name) => encodeAscii(contextTag(2), name));
  return sequence(...dnsNames, ...names.uris.map((uri) => encodeAscii(contextTag(6), uri)));
}
