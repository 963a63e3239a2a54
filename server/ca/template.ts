import type { Certificate } from "../../src/crypto/certificate.ts";
import type { CertificateTemplate } from "../../src/crypto/certificate-template.ts";
import { EXT_KEY_USAGE } from "../../src/crypto/extensions.ts";
import { subjectKeyId } from "../../src/crypto/key.ts";
import { type DistinguishedName, encodeName, parseName } from "../../src/crypto/name.ts";
import { type SpiffeId, type TrustDomain, trustDomainId } from "../../src/spiffe/id.ts";
import type { X509SigningAuthority } from "./slots.ts";

/** What a leaf is made from: the server's own decisions, and of the caller only the public key. */
export interface LeafRequest {
  readonly id: SpiffeId;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  readonly ttlSeconds: number;
  /** Default: C=US, O=SPIRE. */
  readonly subject?: DistinguishedName;
  /** The first one becomes the common name. */
  readonly dnsNames?: readonly string[];
}

export interface RootRequest {
  readonly trustDomain: TrustDomain;
  readonly publicKey: Uint8Array;
  readonly ttlSeconds: number;
  /** Default: C=US, O=SPIFFE. */
  readonly subject: DistinguishedName;
}

/** Time and chance, as arguments. */
export interface Moment {
  readonly now: Date;
  /** From 1 to 2^128-1. */
  readonly serialNumber: bigint;
}

const LEAF_SUBJECT = { country: ["US"], organization: ["SPIRE"] };
const LEAF_SUBJECT_DER = encodeName(LEAF_SUBJECT);
const ROOT_SUBJECT: DistinguishedName = { country: ["US"], organization: ["SPIFFE"] };
/** Tolerates clocks that are a little behind. */
const BACKDATE_MS = 10_000;

/** An X.509-SVID under `authority`, as SPIRE makes it; its life ends with the authority's at the latest. */
export function leafTemplate(
  request: LeafRequest,
  authority: X509SigningAuthority,
  moment: Moment,
): CertificateTemplate {
  const { id, publicKey, ttlSeconds, dnsNames = [] } = request;
  const [commonName] = dnsNames;
  const end = Math.min(after(moment.now, ttlSeconds).getTime(), authority.notAfter.getTime());
  return {
    serialNumber: moment.serialNumber,
    subject: leafSubject(request.subject, commonName),
    issuer: authority.certificate.subject,
    notBefore: seconds(moment.now.getTime() - BACKDATE_MS),
    notAfter: new Date(end),
    publicKey,
    kind: "leaf",
    uris: [id],
    dnsNames,
    keyUsage: ["digitalSignature", "keyEncipherment", "keyAgreement"],
    extKeyUsage: [EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.clientAuth],
    subjectKeyId: subjectKeyId(publicKey),
    authorityKeyId: Buffer.from(authority.certificate.subjectKeyId, "hex"),
  };
}

function leafSubject(given: DistinguishedName | undefined, commonName: string | undefined): Uint8Array {
  if (commonName === undefined && isEmpty(given)) return LEAF_SUBJECT_DER;
  const name = isEmpty(given) ? LEAF_SUBJECT : given;
  return encodeName(commonName === undefined ? name : { ...name, commonName });
}

/**
 * A signing certificate below `authority`, as SPIRE makes it: the trust domain's own ID, and the subject of the signer
 * with the depth as organizational unit.
 */
export function downstreamTemplate(
  { id, publicKey, ttlSeconds }: LeafRequest,
  authority: X509SigningAuthority,
  moment: Moment,
): CertificateTemplate {
  const { certificate, intermediates, notAfter } = authority;
  const depth = 1 + intermediates.length;
  const subject = { ...parseName(certificate.subject), organizationalUnit: [`DOWNSTREAM-${depth}`] };
  return signedTemplate({ id, publicKey, ttlSeconds, subject }, { ...certificate, notAfter }, moment);
}

/** A signing certificate below `issuer`, whose life ends with the issuer's at the latest. */
export function signedTemplate(
  { id, publicKey, ttlSeconds, subject }: LeafRequest & { readonly subject: DistinguishedName },
  issuer: Pick<Certificate, "subject" | "subjectKeyId" | "notAfter">,
  moment: Moment,
): CertificateTemplate {
  const end = Math.min(after(moment.now, ttlSeconds).getTime(), issuer.notAfter.getTime());
  return {
    serialNumber: moment.serialNumber,
    subject,
    issuer: issuer.subject,
    notBefore: seconds(moment.now.getTime() - BACKDATE_MS),
    notAfter: new Date(end),
    publicKey,
    kind: "ca",
    uris: [id],
    dnsNames: [],
    keyUsage: ["keyCertSign", "cRLSign"],
    extKeyUsage: [],
    subjectKeyId: subjectKeyId(publicKey),
    authorityKeyId: Buffer.from(issuer.subjectKeyId, "hex"),
  };
}

/** A self-signed root: the trust domain's own ID, no path length, no authority key identifier. */
export function rootTemplate(request: RootRequest, moment: Moment): CertificateTemplate {
  const subject = authoritySubject(request.subject, moment.serialNumber);
  return {
    serialNumber: moment.serialNumber,
    subject,
    issuer: subject,
    notBefore: seconds(moment.now.getTime() - BACKDATE_MS),
    notAfter: after(moment.now, request.ttlSeconds),
    publicKey: request.publicKey,
    kind: "ca",
    uris: [trustDomainId(request.trustDomain)],
    dnsNames: [],
    keyUsage: ["keyCertSign", "cRLSign"],
    extKeyUsage: [],
    subjectKeyId: subjectKeyId(request.publicKey),
  };
}

/** Of a signing certificate, self-signed or asked for: with a number that tells it from its successors. */
export function authoritySubject(given: DistinguishedName, serialNumber: bigint): DistinguishedName {
  const name = isEmpty(given) ? ROOT_SUBJECT : given;
  return { ...name, serialNumber: name.serialNumber ?? serialNumber.toString() };
}

function isEmpty(name: DistinguishedName | undefined): name is undefined {
  return name === undefined || Object.values(name).every((value) => value === undefined || value.length === 0);
}

function after(now: Date, ttlSeconds: number): Date {
  return seconds(now.getTime() + ttlSeconds * 1000);
}

/** Certificates count whole seconds. */
function seconds(unixMs: number): Date {
  return new Date(Math.floor(unixMs / 1000) * 1000);
}
