import { derFault, TAG } from "./der.ts";
import { encode } from "./der-writer.ts";

/** T-X5. Signed documents are not deeper; hostile ones may be. */
const MAX_DEPTH = 32;
const CONSTRUCTED = 0x20;
const CONSTRUCTED_OCTETS = TAG.octetString | CONSTRUCTED;

/**
 * Writes one BER element as DER would: lengths definite and minimal, an OCTET STRING in one piece. Contents of
 * primitive elements and the order in sets stay as they are, so what was DER comes out unchanged. Throws `invalid` for
 * what is malformed, nested too deeply, or followed by anything.
 */
export function derOfBer(bytes: Uint8Array): Uint8Array {
  const reader = new BerReader(bytes);
  const der = reader.element(0);
  if (reader.at !== bytes.length) throw derFault("trailing data after an ASN.1 element");
  return der;
}

class BerReader {
  at = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  element(depth: number): Uint8Array {
    if (depth > MAX_DEPTH) throw derFault("ASN.1 elements are nested too deeply");
    const tag = this.#byte();
    if ((tag & 0x1f) === 0x1f) throw derFault("high-tag-number form is not supported");
    const end = this.#end();
    if ((tag & CONSTRUCTED) === 0) {
      if (end === undefined) throw derFault("a primitive element of indefinite length");
      const body = this.#bytes.subarray(this.at, end);
      this.at = end;
      return encode(tag, body);
    }
    const parts = this.#children(end, depth);
    if (tag !== CONSTRUCTED_OCTETS) return encode(tag, ...parts);
    return encode(TAG.octetString, ...parts.map(octetsOf));
  }

  #children(end: number | undefined, depth: number): readonly Uint8Array[] {
    const parts: Uint8Array[] = [];
    for (;;) {
      if (end !== undefined ? this.at === end : this.#atEndOfContents()) return parts;
      parts.push(this.element(depth + 1));
      if (end !== undefined && this.at > end) throw derFault("ASN.1 element is longer than what holds it");
    }
  }

  #atEndOfContents(): boolean {
    if (this.#bytes[this.at] !== 0) return false;
    if (this.#bytes[this.at + 1] !== 0) throw derFault("malformed end of contents");
    this.at += 2;
    return true;
  }

  /** Where the contents end; undefined for an indefinite length. */
  #end(): number | undefined {
    const first = this.#byte();
    if (first === 0x80) return undefined;
    let length = first;
    if (first > 0x80) {
      if (first > 0x84) throw derFault("ASN.1 length is too large");
      length = 0;
      for (let left = first & 0x7f; left > 0; left--) length = length * 256 + this.#byte();
    }
    if (length > this.#bytes.length - this.at) throw derFault("ASN.1 element is truncated");
    return this.at + length;
  }

  #byte(): number {
    const byte = this.#bytes[this.at];
    if (byte === undefined) throw derFault("ASN.1 element is truncated");
    this.at += 1;
    return byte;
  }
}

/** Contents of a string that is DER by now. */
function octetsOf(der: Uint8Array): Uint8Array {
  if (der[0] !== TAG.octetString) throw derFault("a part of an OCTET STRING is none");
  const first = der[1] ?? 0;
  return der.subarray(first < 0x80 ? 2 : 2 + (first & 0x7f));
}
