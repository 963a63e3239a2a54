import { randomBytes } from "node:crypto";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { contextTag, TAG } from "../../src/crypto/der.ts";
import {
  encode,
  encodeAscii,
  encodeBoolean,
  encodeFlags,
  encodeOctets,
  encodeOid,
  encodeTime,
  encodeUnsigned,
  explicit,
  sequence,
} from "../../src/crypto/der-writer.ts";
import { EXT_KEY_USAGE, EXTENSION, KEY_USAGES, type KeyUsage } from "../../src/crypto/extensions.ts";
import { generateKey, type KeyType, type LocalSigner, privateKeyToPkcs8, subjectKeyId } from "../../src/crypto/key.ts";
import { type DistinguishedName, encodeName } from "../../src/crypto/name.ts";
import { encodePem } from "../../src/crypto/pem.ts";
import { signatureAlgorithm } from "../../src/crypto/signature.ts";
import { systemClock } from "../../src/runtime/clock.ts";

export interface TestExtension {
  readonly oid: string;
  readonly critical?: boolean;
  readonly value: Uint8Array;
}

/**
 * What a certificate is to hold. Everything has a sound default; each option changes one thing, also into something
 * that no issuer should make. `null` leaves an extension out.
 */
export interface CertificateOptions {
  /** The only URI name. */
  readonly id?: string;
  /** Instead of `id`. */
  readonly uris?: readonly string[];
  readonly dnsNames?: readonly string[];
  readonly emailAddresses?: readonly string[];
  readonly ipAddresses?: readonly Uint8Array[];
  readonly sanCritical?: boolean;
  readonly subject?: DistinguishedName;
  readonly keyType?: KeyType;
  /** Instead of a new key. */
  readonly signer?: LocalSigner;
  /** SubjectPublicKeyInfo, DER, instead of the signer's. */
  readonly publicKey?: Uint8Array;
  readonly serialNumber?: bigint;
  readonly notBefore?: Date;
  readonly notAfter?: Date;
  /** Undefined for a leaf and its empty extension. */
  readonly ca?: boolean;
  readonly pathLength?: number;
  readonly basicConstraints?: null;
  readonly keyUsage?: readonly KeyUsage[] | null;
  readonly keyUsageCritical?: boolean;
  readonly extKeyUsage?: readonly string[] | null;
  readonly extKeyUsageCritical?: boolean;
  readonly subjectKeyId?: Uint8Array | null;
  readonly authorityKeyId?: Uint8Array | null;
  readonly extensions?: readonly TestExtension[];
  /** Instead of the issuer's subject. */
  readonly issuerName?: Uint8Array;
  /** Signs in the issuer's place. */
  readonly signedBy?: LocalSigner;
  /** Changes the finished certificate. */
  readonly tamper?: (der: Buffer) => Buffer;
}

export interface Issued {
  readonly der: Uint8Array;
  readonly certificate: Certificate;
  readonly signer: LocalSigner;
  /** DER, this certificate first, then the intermediates above it; the root is left out. */
  readonly chain: readonly Uint8Array[];
  readonly certificates: readonly Certificate[];
  /** PKCS#8, DER. */
  readonly privateKey: Uint8Array;
  /** The chain as PEM. */
  readonly pem: string;
  readonly keyPem: string;
}

export interface TestCa extends Issued {
  readonly trustDomain: string;
  /** A leaf, by default `spiffe://<trust domain>/web`, valid from a minute ago for an hour. */
  issue(options?: CertificateOptions): Promise<Issued>;
  /** A CA below this one. */
  intermediate(options?: CertificateOptions): Promise<TestCa>;
}

export interface CaOptions extends CertificateOptions {
  readonly trustDomain?: string;
}

interface Issuer {
  readonly name: Uint8Array;
  readonly signer: LocalSigner;
  /** DER, from the issuer upwards, without the root. */
  readonly above: readonly Uint8Array[];
}

const HOUR_MS = 3_600_000;
const YEAR_MS = 365 * 24 * HOUR_MS;

/** A self-signed root as SPIRE makes it: P-256, `spiffe://<trust domain>`, keyCertSign and cRLSign. */
export async function createCa(options: CaOptions = {}): Promise<TestCa> {
  const { trustDomain = "example.org" } = options;
  const signer = options.signer ?? (await generateKey(options.keyType ?? "ec-p256"));
  const filled = caDefaults(trustDomain, { authorityKeyId: null, ...options, signer });
  const issuer: Issuer = { name: encodeName(filled.subject ?? {}), signer, above: [] };
  const made = await issue(filled, issuer);
  return asCa(trustDomain, made, []);
}

function asCa(trustDomain: string, made: Issued, above: readonly Uint8Array[]): TestCa {
  const issuer: Issuer = { name: made.certificate.subject, signer: made.signer, above };
  return {
    ...made,
    trustDomain,
    issue: (options = {}) => issue({ id: `spiffe://${trustDomain}/web`, ...options }, issuer),
    async intermediate(options = {}) {
      const child = await issue(caDefaults(trustDomain, options), issuer);
      return asCa(trustDomain, child, child.chain);
    },
  };
}

let serial = 0;

function caDefaults(trustDomain: string, options: CertificateOptions): CertificateOptions {
  serial += 1;
  const now = systemClock.now().getTime();
  return {
    id: `spiffe://${trustDomain}`,
    ca: true,
    subject: { country: ["US"], organization: ["SPIFFE"], serialNumber: `${trustDomain} ${serial}` },
    keyUsage: ["keyCertSign", "cRLSign"],
    extKeyUsage: null,
    notBefore: new Date(now - HOUR_MS),
    notAfter: new Date(now + YEAR_MS),
    ...options,
  };
}

async function issue(options: CertificateOptions, issuer: Issuer): Promise<Issued> {
  const signer = options.signer ?? (await generateKey(options.keyType ?? "ec-p256"));
  const signedBy = options.signedBy ?? issuer.signer;
  const algorithm = signatureAlgorithm(signedBy.keyType);
  const tbs = encodeTbs(options, { issuer, signer, algorithm });
  const whole = sequence(tbs, algorithm, encodeOctets(await signedBy.sign(tbs)));
  const der = options.tamper?.(whole) ?? whole;
  const chain = [der, ...issuer.above];
  return {
    der,
    signer,
    chain,
    privateKey: privateKeyToPkcs8(signer.privateKey),
    pem: chain.map((one) => encodePem("CERTIFICATE", one)).join(""),
    keyPem: encodePem("PRIVATE KEY", privateKeyToPkcs8(signer.privateKey)),
    // Parsed on use: some of what is made here is not meant to parse.
    get certificate() {
      return parseCertificate(der);
    },
    get certificates() {
      return chain.map(parseCertificate);
    },
  };
}

interface TbsParts {
  readonly issuer: Issuer;
  readonly signer: LocalSigner;
  readonly algorithm: Uint8Array;
}

function encodeTbs(options: CertificateOptions, { issuer, signer, algorithm }: TbsParts): Buffer {
  const now = systemClock.now().getTime();
  const subject = encodeName(options.subject ?? { country: ["US"], organization: ["SPIRE"] });
  const publicKey = options.publicKey ?? signer.publicKey;
  return sequence(
    explicit(0, encodeUnsigned(2n)),
    encodeUnsigned(options.serialNumber ?? randomSerial()),
    algorithm,
    options.issuerName ?? issuer.name,
    sequence(
      encodeTime(options.notBefore ?? new Date(now - 60_000)),
      encodeTime(options.notAfter ?? new Date(now + HOUR_MS)),
    ),
    subject,
    publicKey,
    explicit(3, sequence(...encodeExtensions(options, { subjectKey: publicKey, issuerKey: issuer.signer.publicKey }))),
  );
}

function randomSerial(): bigint {
  return BigInt(`0x${randomBytes(15).toString("hex")}`) + 1n;
}

interface Keys {
  readonly subjectKey: Uint8Array;
  readonly issuerKey: Uint8Array;
}

function encodeExtensions(options: CertificateOptions, { subjectKey, issuerKey }: Keys): Uint8Array[] {
  const { keyUsage, extKeyUsage, subjectKeyId: ski, authorityKeyId: aki } = options;
  const usages = keyUsage === undefined ? (["digitalSignature"] as const) : keyUsage;
  const purposes = extKeyUsage === undefined ? [EXT_KEY_USAGE.serverAuth, EXT_KEY_USAGE.clientAuth] : extKeyUsage;
  const names = generalNames(options);
  const list: TestExtension[] = [];
  if (usages !== null) {
    const bits = encodeFlags(usages.map((usage) => KEY_USAGES.indexOf(usage)));
    list.push({ oid: EXTENSION.keyUsage, critical: options.keyUsageCritical ?? true, value: bits });
  }
  if (purposes !== null) {
    const value = sequence(...purposes.map(encodeOid));
    list.push({ oid: EXTENSION.extKeyUsage, critical: options.extKeyUsageCritical ?? false, value });
  }
  if (options.basicConstraints !== null) {
    list.push({ oid: EXTENSION.basicConstraints, critical: true, value: basicConstraints(options) });
  }
  if (ski !== null) {
    list.push({ oid: EXTENSION.subjectKeyId, value: encode(TAG.octetString, ski ?? subjectKeyId(subjectKey)) });
  }
  if (aki !== null) {
    const value = sequence(encode(contextTag(0), aki ?? subjectKeyId(issuerKey)));
    list.push({ oid: EXTENSION.authorityKeyId, value });
  }
  if (names.length > 0) {
    list.push({ oid: EXTENSION.subjectAltName, critical: options.sanCritical ?? false, value: sequence(...names) });
  }
  return [...list, ...(options.extensions ?? [])].map(encodeExtension);
}

function encodeExtension({ oid, critical = false, value }: TestExtension): Buffer {
  return sequence(encodeOid(oid), ...(critical ? [encodeBoolean(true)] : []), encode(TAG.octetString, value));
}

function basicConstraints({ ca = false, pathLength }: CertificateOptions): Buffer {
  const limit = pathLength === undefined ? [] : [encodeUnsigned(BigInt(pathLength))];
  return sequence(...(ca ? [encodeBoolean(true)] : []), ...limit);
}

function generalNames(options: CertificateOptions): Uint8Array[] {
  const { id, uris = id === undefined ? [] : [id], dnsNames = [], emailAddresses = [], ipAddresses = [] } = options;
  return [
    ...dnsNames.map((name) => encodeAscii(contextTag(2), name)),
    ...uris.map((uri) => encodeAscii(contextTag(6), uri)),
    ...emailAddresses.map((address) => encodeAscii(contextTag(1), address)),
    ...ipAddresses.map((address) => encode(contextTag(7), address)),
  ];
}

export interface NameConstraintOptions {
  readonly permitted?: readonly Uint8Array[];
  readonly excluded?: readonly Uint8Array[];
  readonly critical?: boolean;
}

/** A name constraints extension; its names come from `uriName`, `dnsName` and the like. */
export function nameConstraints({
  permitted = [],
  excluded = [],
  critical = true,
}: NameConstraintOptions): TestExtension {
  const trees = (number: number, names: readonly Uint8Array[]): readonly Uint8Array[] =>
    names.length === 0 ? [] : [explicit(number, ...names.map((name) => sequence(name)))];
  return { oid: EXTENSION.nameConstraints, critical, value: sequence(...trees(0, permitted), ...trees(1, excluded)) };
}

export function uriName(text: string): Uint8Array {
  return encodeAscii(contextTag(6), text);
}

export function dnsName(text: string): Uint8Array {
  return encodeAscii(contextTag(2), text);
}

export function emailName(text: string): Uint8Array {
  return encodeAscii(contextTag(1), text);
}

/** Address and mask in one. */
export function ipRange(...octets: readonly number[]): Uint8Array {
  return encode(contextTag(7), Buffer.from(octets));
}

export function directoryName(name: DistinguishedName): Uint8Array {
  return explicit(4, encodeName(name));
}
