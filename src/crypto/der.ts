import { Fault } from "../runtime/fault.ts";

/** Identifier octets used by X.509 and PKCS. All are low-tag-number forms. */
export const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  null: 0x05,
  oid: 0x06,
  utf8String: 0x0c,
  printableString: 0x13,
  teletexString: 0x14,
  ia5String: 0x16,
  utcTime: 0x17,
  generalizedTime: 0x18,
  universalString: 0x1c,
  bmpString: 0x1e,
  sequence: 0x30,
  set: 0x31,
} as const;

/** `[n]` in the context class; constructed for explicit tags and structures, primitive for implicit strings. */
export function contextTag(number: number, constructed = false): number {
  return 0x80 | (constructed ? 0x20 : 0) | number;
}

/** One element: its identifier octet, its contents and its whole encoding. Views, not copies. */
export interface DerElement {
  readonly tag: number;
  readonly body: Uint8Array;
  readonly raw: Uint8Array;
}

/** Serial numbers and the like; RSA moduli are read as bytes. RFC 5280 asks for 20 octets, others are seen. */
const MAX_SMALL_INTEGER_BYTES = 40;
const MAX_OID_BYTES = 64;

/** The one fault of every malformed encoding. */
export function derFault(message: string): Fault {
  return new Fault("invalid", message, { code: "asn1-malformed" });
}

/**
 * Strict DER reader over one run of elements: definite, minimal lengths, single-byte tags, no trailing bytes. It
 * never recurses; depth is that of the caller's schema, so hostile nesting costs nothing. T-X5.
 */
export class DerReader {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get atEnd(): boolean {
    return this.#at >= this.#bytes.length;
  }

  /** Throws when bytes are left. */
  end(): void {
    if (!this.atEnd) throw derFault("trailing data after an ASN.1 element");
  }

  /** The next element, of any tag, or of the one named. */
  read(tag?: number): DerElement {
    const start = this.#at;
    const found = this.#byte();
    if ((found & 0x1f) === 0x1f) throw derFault("high-tag-number form is not supported");
    if (tag !== undefined && found !== tag)
      throw derFault(`unexpected ASN.1 tag 0x${hexByte(found)}, wanted 0x${hexByte(tag)}`);
    const length = this.#length();
    const from = this.#at;
    if (length > this.#bytes.length - from) throw derFault("ASN.1 element is truncated");
    this.#at = from + length;
    return { tag: found, body: this.#bytes.subarray(from, this.#at), raw: this.#bytes.subarray(start, this.#at) };
  }

  /** The next element when it has this tag, else undefined and nothing is consumed. */
  optional(tag: number): DerElement | undefined {
    return this.#bytes[this.#at] === tag ? this.read(tag) : undefined;
  }

  enter(tag: number = TAG.sequence): DerReader {
    return new DerReader(this.read(tag).body);
  }

  /** Every element that is left. */
  *rest(tag?: number): Generator<DerElement, void, undefined> {
    while (!this.atEnd) yield this.read(tag);
  }

  #byte(): number {
    const byte = this.#bytes[this.#at];
    if (byte === undefined) throw derFault("ASN.1 element is truncated");
    this.#at += 1;
    return byte;
  }

  #length(): number {
    const first = this.#byte();
    if (first < 0x80) return first;
    const count = first & 0x7f;
    if (count === 0) throw derFault("indefinite length is not DER");
    if (count > 4) throw derFault("ASN.1 length is too large");
    let length = 0;
    for (let i = 0; i < count; i++) length = length * 256 + this.#byte();
    if (length < 0x80 || length < 2 ** (8 * (count - 1))) throw derFault("ASN.1 length is not minimal");
    return length;
  }
}

/** Reads bytes that are exactly one element with this tag. */
export function readOnly(bytes: Uint8Array, tag: number = TAG.sequence): DerReader {
  const outer = new DerReader(bytes);
  const inner = outer.enter(tag);
  outer.end();
  return inner;
}

export function readBoolean(element: DerElement): boolean {
  const [value] = element.body;
  if (element.body.length !== 1 || (value !== 0x00 && value !== 0xff)) throw derFault("malformed BOOLEAN");
  return value === 0xff;
}

/** Contents of a minimally encoded INTEGER, with the sign octet when there is one. */
export function integerBytes(element: DerElement): Uint8Array {
  const [first, second] = element.body;
  if (first === undefined) throw derFault("empty INTEGER");
  const padded = second !== undefined && ((first === 0x00 && second < 0x80) || (first === 0xff && second >= 0x80));
  if (padded) throw derFault("INTEGER is not minimal");
  return element.body;
}

/** Zero or greater. */
export function readUnsigned(element: DerElement): bigint {
  const bytes = integerBytes(element);
  if ((bytes[0] ?? 0) >= 0x80) throw derFault("INTEGER is negative");
  if (bytes.length > MAX_SMALL_INTEGER_BYTES) throw derFault("INTEGER is too large");
  return BigInt(`0x${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex")}`);
}

/** Zero or greater and exact as a number. */
export function readSmallUnsigned(element: DerElement): number {
  const value = readUnsigned(element);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw derFault("INTEGER is too large");
  return Number(value);
}

/** A BIT STRING as octets; keys and signatures have no unused bits. */
export function readOctets(element: DerElement): Uint8Array {
  if (element.body[0] !== 0) throw derFault("BIT STRING is not a whole number of octets");
  return element.body.subarray(1);
}

/** A BIT STRING of named flags: the numbers of the bits that are set. */
export function readFlags(element: DerElement): ReadonlySet<number> {
  const [unused, ...octets] = element.body;
  const last = octets.at(-1);
  const padding =
    last === undefined ? unused !== 0 : unused === undefined || unused > 7 || (last & ((1 << unused) - 1)) !== 0;
  if (padding || octets.length > 8) throw derFault("malformed BIT STRING");
  const set = new Set<number>();
  for (const [index, octet] of octets.entries()) {
    for (let bit = 0; bit < 8; bit++) if (octet & (0x80 >> bit)) set.add(index * 8 + bit);
  }
  return set;
}

/** Dotted form. */
export function readOid(element: DerElement): string {
  const { body } = element;
  if (body.length === 0 || body.length > MAX_OID_BYTES || (body.at(-1) ?? 0x80) >= 0x80)
    throw derFault("malformed OBJECT IDENTIFIER");
  let dotted = "";
  let arc: number | bigint = 0;
  let fresh = true;
  for (const octet of body) {
    if (fresh && octet === 0x80) throw derFault("OBJECT IDENTIFIER is not minimal");
    arc = appendBits(arc, octet & 0x7f);
    fresh = octet < 0x80;
    if (!fresh) continue;
    dotted = dotted === "" ? firstArcs(arc) : `${dotted}.${arc}`;
    arc = 0;
  }
  return dotted;
}

/** The first two arcs share one number. */
function firstArcs(arc: number | bigint): string {
  const root = arc < 80 ? Math.floor(Number(arc) / 40) : 2;
  return `${root}.${typeof arc === "number" ? arc - root * 40 : arc - BigInt(root * 40)}`;
}

/** Seven more bits; as a bigint only where a number would not be exact, which few arcs need. */
function appendBits(arc: number | bigint, bits: number): number | bigint {
  if (typeof arc === "number" && arc < 2 ** 46) return arc * 128 + bits;
  return (BigInt(arc) << 7n) | BigInt(bits);
}

/** IA5String contents, which are ASCII. */
export function readAscii(body: Uint8Array): string {
  for (const octet of body) if (octet >= 0x80) throw derFault("IA5String is not ASCII");
  return Buffer.from(body.buffer, body.byteOffset, body.length).toString("latin1");
}

const UTC_TIME = /^(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/;
const GENERALIZED_TIME = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/;

/** UTCTime or GeneralizedTime in the DER form: seconds, no fraction, Zulu. RFC 5280, section 4.1.2.5. */
export function readTime(element: DerElement): Date {
  const utc = element.tag === TAG.utcTime;
  if (!utc && element.tag !== TAG.generalizedTime) throw derFault("time has an unexpected ASN.1 type");
  const match = (utc ? UTC_TIME : GENERALIZED_TIME).exec(readAscii(element.body));
  if (match === null) throw derFault("malformed time");
  const [year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0] = match.slice(1).map(Number);
  const time = new Date(0);
  time.setUTCFullYear(utc ? year + (year < 50 ? 2000 : 1900) : year, month - 1, day);
  time.setUTCHours(hour, minute, second);
  const kept = time.getUTCMonth() === month - 1 && time.getUTCDate() === day && hour < 24 && minute < 60 && second < 60;
  if (!kept) throw derFault("time is not on the calendar");
  return time;
}

function hexByte(value: number): string {
  return value.toString(16).padStart(2, "0");
}
