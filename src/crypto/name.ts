import { type DerElement, DerReader, derFault, readOid, readOnly, TAG } from "./der.ts";
import { encodeText, oidEncoder, sequence, setOf } from "./der-writer.ts";

type Values = string | readonly string[];

/** The parts of an X.500 name that SPIRE's configuration and templates use. */
export interface DistinguishedName {
  readonly country?: Values;
  readonly organization?: Values;
  readonly organizationalUnit?: Values;
  readonly locality?: Values;
  readonly province?: Values;
  readonly streetAddress?: Values;
  readonly postalCode?: Values;
  readonly commonName?: string;
  readonly serialNumber?: string;
}

/** In the order of encoding, which is Go's. */
const LIST_ATTRIBUTES = [
  ["country", "2.5.4.6"],
  ["organization", "2.5.4.10"],
  ["organizationalUnit", "2.5.4.11"],
  ["locality", "2.5.4.7"],
  ["province", "2.5.4.8"],
  ["streetAddress", "2.5.4.9"],
  ["postalCode", "2.5.4.17"],
] as const;
const SINGLE_ATTRIBUTES = [
  ["commonName", "2.5.4.3"],
  ["serialNumber", "2.5.4.5"],
] as const;

const encodeId = oidEncoder([...LIST_ATTRIBUTES, ...SINGLE_ATTRIBUTES].map(([, oid]) => oid));

/** Name, DER. Values of one attribute share one relative name, as Go encodes them. */
export function encodeName(name: DistinguishedName): Uint8Array {
  const sets: Uint8Array[] = [];
  for (const [field, oid] of LIST_ATTRIBUTES) {
    const values = [name[field] ?? []].flat();
    if (values.length > 0) sets.push(setOf(...values.map((value) => attribute(oid, value))));
  }
  for (const [field, oid] of SINGLE_ATTRIBUTES) {
    const value = name[field] ?? "";
    if (value !== "") sets.push(setOf(attribute(oid, value)));
  }
  return sequence(...sets);
}

function attribute(oid: string, value: string): Uint8Array {
  return sequence(encodeId(oid), encodeText(value));
}

/** Reads the parts named in `DistinguishedName`; others are left out. Throws `invalid`. */
export function parseName(der: Uint8Array): DistinguishedName {
  const values = new Map<string, string[]>();
  for (const set of readOnly(der).rest(TAG.set)) {
    for (const pair of new DerReader(set.body).rest(TAG.sequence)) {
      const reader = new DerReader(pair.body);
      const oid = readOid(reader.read(TAG.oid));
      const text = readText(reader.read());
      reader.end();
      if (text !== undefined) values.set(oid, [...(values.get(oid) ?? []), text]);
    }
  }
  const lists = LIST_ATTRIBUTES.flatMap(([field, oid]) => (values.has(oid) ? [[field, values.get(oid)]] : []));
  const singles = SINGLE_ATTRIBUTES.flatMap(([field, oid]) =>
    values.has(oid) ? [[field, values.get(oid)?.at(-1)]] : [],
  );
  return Object.fromEntries([...lists, ...singles]);
}

/** Short names by which Go, and so SPIRE, prints attributes. */
const SHORT_NAMES: Readonly<Record<keyof DistinguishedName, string>> = {
  country: "C",
  organization: "O",
  organizationalUnit: "OU",
  locality: "L",
  province: "ST",
  streetAddress: "STREET",
  postalCode: "POSTALCODE",
  commonName: "CN",
  serialNumber: "SERIALNUMBER",
};

/** The parts named in `DistinguishedName` as one line, the last first: `CN=web,O=SPIRE,C=US`. RFC 2253. Throws `invalid`. */
export function nameText(der: Uint8Array): string {
  const name = parseName(der);
  return [...LIST_ATTRIBUTES, ...SINGLE_ATTRIBUTES]
    .filter(([field]) => name[field] !== undefined)
    .map(([field]) => [name[field] ?? []].flat().map((value) => `${SHORT_NAMES[field]}=${escaped(value)}`))
    .map((values) => values.join("+"))
    .reverse()
    .join(",");
}

function escaped(value: string): string {
  return value.replace(/[,+"\\<>;]|^[ #]| $/g, "\\$&");
}

/** Throws when the bytes are not a Name: a SEQUENCE of SETs of attribute pairs. */
export function checkName(element: DerElement): Uint8Array {
  for (const set of new DerReader(element.body).rest(TAG.set)) {
    if (set.body.length === 0) throw derFault("empty relative distinguished name");
    for (const pair of new DerReader(set.body).rest(TAG.sequence)) {
      const reader = new DerReader(pair.body);
      reader.read(TAG.oid);
      reader.read();
      reader.end();
    }
  }
  return element.raw;
}

const TEXT_DECODERS: ReadonlyMap<number, BufferEncoding> = new Map([
  [TAG.utf8String, "utf8"],
  [TAG.printableString, "latin1"],
  [TAG.ia5String, "latin1"],
  [TAG.teletexString, "latin1"],
]);

function readText(element: DerElement): string | undefined {
  const encoding = TEXT_DECODERS.get(element.tag);
  return encoding === undefined ? undefined : Buffer.from(element.body).toString(encoding);
}
