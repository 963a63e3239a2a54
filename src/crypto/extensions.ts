import {
  contextTag,
  type DerElement,
  DerReader,
  derFault,
  readAscii,
  readBoolean,
  readFlags,
  readOid,
  readOnly,
  readSmallUnsigned,
  TAG,
} from "./der.ts";
import { hexOf } from "./key.ts";
import { type NameConstraints, readNameConstraints } from "./name-constraints.ts";

/** Bits of KeyUsage, in order. RFC 5280, section 4.2.1.3. */
export const KEY_USAGES = [
  "digitalSignature",
  "contentCommitment",
  "keyEncipherment",
  "dataEncipherment",
  "keyAgreement",
  "keyCertSign",
  "cRLSign",
  "encipherOnly",
  "decipherOnly",
] as const;
export type KeyUsage = (typeof KEY_USAGES)[number];
type KeyUsageSet = ReadonlySet<KeyUsage>;

export const EXT_KEY_USAGE = {
  any: "2.5.29.37.0",
  serverAuth: "1.3.6.1.5.5.7.3.1",
  clientAuth: "1.3.6.1.5.5.7.3.2",
  codeSigning: "1.3.6.1.5.5.7.3.3",
} as const;

export const EXTENSION = {
  subjectKeyId: "2.5.29.14",
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  nameConstraints: "2.5.29.30",
  certificatePolicies: "2.5.29.32",
  authorityInfoAccess: "1.3.6.1.5.5.7.1.1",
  authorityKeyId: "2.5.29.35",
  extKeyUsage: "2.5.29.37",
} as const;

/** The subject's other names, each kind apart: a name is never compared as printed text. T-X3. */
interface SubjectAltNames {
  readonly uris: readonly string[];
  readonly dnsNames: readonly string[];
  readonly emailAddresses: readonly string[];
  /** 4 or 16 octets each. */
  readonly ipAddresses: readonly Uint8Array[];
  /** How many names of further kinds there are. */
  readonly otherNames: number;
}

/** What the extensions of a certificate, or those that a CSR asks for, say. */
export interface Extensions extends SubjectAltNames {
  readonly isCa: boolean;
  readonly pathLength: number | undefined;
  /** Undefined when the extension is absent. */
  readonly keyUsage: KeyUsageSet | undefined;
  /** Object identifiers; undefined when the extension is absent. */
  readonly extKeyUsage: readonly string[] | undefined;
  /** Lower-case hex; empty when absent. */
  readonly subjectKeyId: string;
  /** Lower-case hex; empty when absent. */
  readonly authorityKeyId: string;
  readonly nameConstraints: NameConstraints | undefined;
  /** Where the issuer's certificate is, as the certificate has it. RFC 5280, section 4.2.2.1. */
  readonly issuerUrls: readonly string[];
  /** Object identifiers of all extensions, in order. */
  readonly extensionIds: readonly string[];
  readonly criticalExtensionIds: ReadonlySet<string>;
  /** Critical extensions that nothing here understands: a path through them is refused. */
  readonly unknownCritical: readonly string[];
}

type Values = { -readonly [K in keyof Extensions]?: Extensions[K] };

const READERS: ReadonlyMap<string, (value: Uint8Array) => Values> = new Map<string, (value: Uint8Array) => Values>([
  [EXTENSION.subjectAltName, readSubjectAltName],
  [EXTENSION.basicConstraints, readBasicConstraints],
  [EXTENSION.keyUsage, (value) => ({ keyUsage: readKeyUsage(value) })],
  [EXTENSION.extKeyUsage, (value) => ({ extKeyUsage: readExtKeyUsage(value) })],
  [EXTENSION.subjectKeyId, (value) => ({ subjectKeyId: readSubjectKeyId(value) })],
  [EXTENSION.authorityKeyId, (value) => ({ authorityKeyId: readAuthorityKeyId(value) })],
  [EXTENSION.nameConstraints, (value) => ({ nameConstraints: readNameConstraints(value) })],
  [EXTENSION.authorityInfoAccess, (value) => ({ issuerUrls: readIssuerUrls(value) })],
  // With any policy acceptable and none required, processing policies always succeeds. RFC 5280, section 6.1.1.
  [EXTENSION.certificatePolicies, () => ({})],
]);

const NO_EXTENSIONS: Extensions = {
  uris: [],
  dnsNames: [],
  emailAddresses: [],
  ipAddresses: [],
  otherNames: 0,
  isCa: false,
  pathLength: undefined,
  keyUsage: undefined,
  extKeyUsage: undefined,
  subjectKeyId: "",
  authorityKeyId: "",
  nameConstraints: undefined,
  issuerUrls: [],
  extensionIds: [],
  criticalExtensionIds: new Set(),
  unknownCritical: [],
};

/** Reads a SEQUENCE OF Extension; undefined stands for none. Throws `invalid`, also for one that appears twice. */
export function readExtensions(sequence: DerElement | undefined): Extensions {
  if (sequence === undefined) return NO_EXTENSIONS;
  const found: Values = {};
  const ids = new Set<string>();
  const critical = new Set<string>();
  for (const element of new DerReader(sequence.body).rest(TAG.sequence)) {
    const extension = new DerReader(element.body);
    const id = readOid(extension.read(TAG.oid));
    const flag = extension.optional(TAG.boolean);
    const value = extension.read(TAG.octetString).body;
    extension.end();
    if (ids.has(id)) throw derFault(`extension ${id} appears twice`);
    ids.add(id);
    if (flag !== undefined && readBoolean(flag)) critical.add(id);
    Object.assign(found, READERS.get(id)?.(value));
  }
  const unknownCritical = [...critical].filter((id) => !READERS.has(id));
  return { ...NO_EXTENSIONS, ...found, extensionIds: [...ids], criticalExtensionIds: critical, unknownCritical };
}

const OTHER_NAME_TAGS = new Set([
  contextTag(0, true),
  contextTag(3, true),
  contextTag(4, true),
  contextTag(5, true),
  contextTag(8),
]);

function readSubjectAltName(value: Uint8Array): Values {
  const uris: string[] = [];
  const dnsNames: string[] = [];
  const emailAddresses: string[] = [];
  const ipAddresses: Uint8Array[] = [];
  let otherNames = 0;
  for (const { tag, body } of readOnly(value).rest()) {
    if (tag === contextTag(6)) uris.push(readAscii(body));
    else if (tag === contextTag(2)) dnsNames.push(readAscii(body));
    else if (tag === contextTag(1)) emailAddresses.push(readAscii(body));
    else if (tag === contextTag(7)) ipAddresses.push(readIp(body));
    else if (OTHER_NAME_TAGS.has(tag)) otherNames += 1;
    else throw derFault("malformed GeneralName");
  }
  return { uris, dnsNames, emailAddresses, ipAddresses, otherNames };
}

function readIp(body: Uint8Array): Uint8Array {
  if (body.length !== 4 && body.length !== 16) throw derFault("IP address has a wrong length");
  return body;
}

function readBasicConstraints(value: Uint8Array): Values {
  const reader = readOnly(value);
  const flag = reader.optional(TAG.boolean);
  const limit = reader.optional(TAG.integer);
  reader.end();
  const isCa = flag !== undefined && readBoolean(flag);
  const pathLength = limit === undefined ? undefined : readSmallUnsigned(limit);
  if (pathLength !== undefined && !isCa) throw derFault("path length without cA");
  return { isCa, pathLength };
}

function readKeyUsage(value: Uint8Array): KeyUsageSet {
  const reader = new DerReader(value);
  const flags = readFlags(reader.read(TAG.bitString));
  reader.end();
  return new Set(KEY_USAGES.filter((_, bit) => flags.has(bit)));
}

function readExtKeyUsage(value: Uint8Array): readonly string[] {
  const purposes = Array.from(readOnly(value).rest(TAG.oid), readOid);
  if (purposes.length === 0) throw derFault("empty extended key usage");
  return purposes;
}

function readSubjectKeyId(value: Uint8Array): string {
  const reader = new DerReader(value);
  const { body } = reader.read(TAG.octetString);
  reader.end();
  return hexOf(body);
}

function readAuthorityKeyId(value: Uint8Array): string {
  const keyId = readOnly(value).optional(contextTag(0));
  return keyId === undefined ? "" : hexOf(keyId.body);
}

const CA_ISSUERS = "1.3.6.1.5.5.7.48.2";

/** A hint and no more, so that one which cannot be read is none. */
function readIssuerUrls(value: Uint8Array): readonly string[] {
  try {
    return [...readOnly(value).rest(TAG.sequence)].flatMap(({ body }) => {
      const access = new DerReader(body);
      const method = readOid(access.read(TAG.oid));
      const { tag, body: location } = access.read();
      return method === CA_ISSUERS && tag === contextTag(6) ? [readAscii(location)] : [];
    });
  } catch {
    return [];
  }
}
