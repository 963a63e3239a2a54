import { contextTag, derFault, TAG } from "./der.ts";

/** One element from its tag and the pieces of its contents. */
export function encode(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  let length = 0;
  for (const part of parts) length += part.length;
  const lengthOctets = length < 0x80 ? 0 : octetsOf(length);
  let at = 2 + lengthOctets;
  const element = Buffer.allocUnsafe(at + length);
  element[0] = tag;
  element[1] = lengthOctets === 0 ? length : 0x80 | lengthOctets;
  if (lengthOctets > 0) element.writeUIntBE(length, 2, lengthOctets);
  for (const part of parts) {
    element.set(part, at);
    at += part.length;
  }
  return element;
}

function octetsOf(length: number): number {
  if (length < 0x100) return 1;
  if (length < 0x10000) return 2;
  if (length < 0x1000000) return 3;
  throw derFault("ASN.1 element is too large");
}

export function sequence(...parts: readonly Uint8Array[]): Buffer {
  return encode(TAG.sequence, ...parts);
}

/** SET OF: elements in the order that DER asks for. */
export function setOf(...elements: readonly Uint8Array[]): Buffer {
  return encode(TAG.set, ...[...elements].sort((a, b) => Buffer.compare(a, b)));
}

/** `[n] EXPLICIT`. */
export function explicit(number: number, ...parts: readonly Uint8Array[]): Buffer {
  return encode(contextTag(number, true), ...parts);
}

export function encodeBoolean(value: boolean): Buffer {
  return encode(TAG.boolean, Buffer.from([value ? 0xff : 0x00]));
}

/** Zero or greater. Throws `invalid` for less. */
export function encodeUnsigned(value: bigint): Buffer {
  if (value < 0n) throw derFault("INTEGER is negative");
  const hex = value.toString(16);
  const even = hex.length % 2 === 0 ? hex : `0${hex}`;
  return encode(TAG.integer, Buffer.from(Number.parseInt(even.slice(0, 2), 16) >= 0x80 ? `00${even}` : even, "hex"));
}

/** A BIT STRING that is a whole number of octets. */
export function encodeOctets(bytes: Uint8Array): Buffer {
  return encode(TAG.bitString, Buffer.from([0]), bytes);
}

/** A BIT STRING of named flags, without trailing zero bits. */
export function encodeFlags(flags: Iterable<number>): Buffer {
  const set = [...flags];
  const bits = Math.max(-1, ...set) + 1;
  const octets = Buffer.alloc(Math.ceil(bits / 8));
  for (const flag of set) octets[flag >> 3] = (octets[flag >> 3] ?? 0) | (0x80 >> (flag & 7));
  return encode(TAG.bitString, Buffer.from([octets.length * 8 - bits]), octets);
}

export function encodeOid(dotted: string): Buffer {
  const [root = 0n, second = 0n, ...others] = dotted.split(".").map(BigInt);
  return encode(TAG.oid, Buffer.from([root * 40n + second, ...others].flatMap(base128)));
}

/** `encodeOid` that keeps the encodings of those that are needed over and over. */
export function oidEncoder(known: Iterable<string>): (dotted: string) => Uint8Array {
  const encoded = new Map(Array.from(known, (dotted): [string, Uint8Array] => [dotted, encodeOid(dotted)]));
  return (dotted) => encoded.get(dotted) ?? encodeOid(dotted);
}

function base128(arc: bigint): number[] {
  const octets = [Number(arc & 0x7fn)];
  for (let left = arc >> 7n; left > 0n; left >>= 7n) octets.unshift(Number(left & 0x7fn) | 0x80);
  return octets;
}

/** UTCTime through 2049, GeneralizedTime after; whole seconds, rounded down. RFC 5280, section 4.1.2.5. */
export function encodeTime(time: Date): Buffer {
  const year = time.getUTCFullYear();
  if (!(year >= 1950 && year <= 9999)) throw derFault("time is outside the years of X.509");
  const utc = year < 2050;
  const parts = [time.getUTCMonth() + 1, time.getUTCDate(), time.getUTCHours(), time.getUTCMinutes()];
  let digits = utc ? twoDigits(year % 100) : `${year}`;
  for (const part of parts) digits += twoDigits(part);
  const text = Buffer.from(`${digits}${twoDigits(time.getUTCSeconds())}Z`, "latin1");
  return encode(utc ? TAG.utcTime : TAG.generalizedTime, text);
}

function twoDigits(value: number): string {
  return value < 10 ? `0${value}` : `${value}`;
}

const PRINTABLE = /^[A-Za-z0-9 '()+,\-./:=?]*$/;

/** PrintableString where the characters allow it, else UTF8String. */
export function encodeText(text: string): Buffer {
  return encode(PRINTABLE.test(text) ? TAG.printableString : TAG.utf8String, Buffer.from(text, "utf8"));
}

/** Throws `invalid` for anything beyond ASCII. */
export function encodeAscii(tag: number, text: string): Buffer {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) >= 0x80) throw derFault("IA5String is not ASCII");
  return encode(tag, Buffer.from(text, "latin1"));
}
