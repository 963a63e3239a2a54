import { Fault } from "../runtime/fault.ts";

/** A word without quotes. */
export class Token {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

export type BareItem = number | string | boolean | Uint8Array | Token;
export type Parameters = ReadonlyMap<string, BareItem>;

export interface Item {
  readonly value: BareItem;
  readonly parameters: Parameters;
}

export interface InnerList {
  readonly items: readonly Item[];
  readonly parameters: Parameters;
}

/** A longer field is refused before it is looked at. */
const MAX_CHARACTERS = 8 * 1024;

/**
 * Reads the Dictionary of one field. RFC 8941, section 4.2.2, with integers as the only numbers, and without repeated
 * keys: of two meanings none is taken. Throws `invalid`.
 */
export function parseDictionary(text: string): ReadonlyMap<string, Item | InnerList> {
  if (text.length > MAX_CHARACTERS) throw malformed("is too long");
  return new Reader(text).dictionary();
}

export function isInnerList(member: Item | InnerList): member is InnerList {
  return "items" in member;
}

/** RFC 8941, section 4.1.1.1. Throws `invalid` for text that is not printable ASCII. */
export function serializeInnerList({ items, parameters }: InnerList): string {
  return `(${items.map(serializeItem).join(" ")})${serializeParameters(parameters)}`;
}

/** RFC 8941, section 4.1.3. */
export function serializeItem({ value, parameters }: Item): string {
  return `${serializeBare(value)}${serializeParameters(parameters)}`;
}

function serializeParameters(parameters: Parameters): string {
  return [...parameters]
    .map(([key, value]) => (value === true ? `;${key}` : `;${key}=${serializeBare(value)}`))
    .join("");
}

function serializeBare(value: BareItem): string {
  if (typeof value === "number") return String(value);
  if (typeof value === "boolean") return value ? "?1" : "?0";
  if (value instanceof Token) return value.text;
  if (typeof value !== "string") return `:${Buffer.from(value).toString("base64")}:`;
  if (!/^[\x20-\x7e]*$/.test(value)) throw malformed("would have text that is not printable ASCII");
  return `"${value.replace(/["\\]/g, "\\$&")}"`;
}

const KEY = /[a-z*][a-z0-9_.*-]*/y;
const INTEGER = /-?\d{1,15}(?![\d.])/y;
const STRING = /"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"/y;
const BYTES = /:([A-Za-z0-9+/]*={0,2}):/y;
const WORD = /[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*/y;
const SPACES = / */y;
const COMMA = /[ \t]*,[ \t]*/y;

/** Goes over the text once. */
class Reader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text.trim();
  }

  dictionary(): Map<string, Item | InnerList> {
    const members = new Map<string, Item | InnerList>();
    while (this.#at < this.#text.length) {
      const key = this.#need(KEY, "a key")[0];
      if (members.has(key)) throw malformed(`has ${JSON.stringify(key)} twice`);
      const member = this.#skip("=") ? this.#member() : { value: true, parameters: this.#parameters() };
      members.set(key, member);
      if (this.#at === this.#text.length) break;
      this.#need(COMMA, "a comma");
      if (this.#at === this.#text.length) throw malformed("ends with a comma");
    }
    return members;
  }

  #member(): Item | InnerList {
    if (!this.#skip("(")) return this.#item();
    const items: Item[] = [];
    for (;;) {
      const spaces = this.#need(SPACES, "a space")[0].length;
      if (this.#skip(")")) return { items, parameters: this.#parameters() };
      if (items.length > 0 && spaces === 0) throw malformed("has items without a space between them");
      items.push(this.#item());
    }
  }

  #item(): Item {
    return { value: this.#bare(), parameters: this.#parameters() };
  }

  #parameters(): Parameters {
    const parameters = new Map<string, BareItem>();
    while (this.#skip(";")) {
      this.#need(SPACES, "a space");
      const key = this.#need(KEY, "the name of a parameter")[0];
      if (parameters.has(key)) throw malformed(`has the parameter ${JSON.stringify(key)} twice`);
      parameters.set(key, this.#skip("=") ? this.#bare() : true);
    }
    return parameters;
  }

  #bare(): BareItem {
    const text = this.#take(STRING);
    if (text !== undefined) return (text[1] ?? "").replace(/\\(.)/g, "$1");
    const bytes = this.#take(BYTES);
    if (bytes !== undefined) return decodeBase64(bytes[1] ?? "");
    const integer = this.#take(INTEGER);
    if (integer !== undefined) return Number(integer[0]);
    if (this.#skip("?1")) return true;
    if (this.#skip("?0")) return false;
    return new Token(this.#need(WORD, "a value")[0]);
  }

  #skip(text: string): boolean {
    if (!this.#text.startsWith(text, this.#at)) return false;
    this.#at += text.length;
    return true;
  }

  #take(pattern: RegExp): RegExpExecArray | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (found === null) return undefined;
    this.#at = pattern.lastIndex;
    return found;
  }

  #need(pattern: RegExp, what: string): RegExpExecArray {
    const found = this.#take(pattern);
    if (found === undefined) throw malformed(`lacks ${what} at character ${this.#at}`);
    return found;
  }
}

/** Node reads stray bits as well; a second spelling of one value must not pass. */
function decodeBase64(text: string): Uint8Array {
  const bytes = Buffer.from(text, "base64");
  if (bytes.toString("base64").replace(/=+$/, "") !== text.replace(/=+$/, "")) throw malformed("has malformed base64");
  return bytes;
}

function malformed(reason: string): Fault {
  return new Fault("invalid", `a structured field ${reason}`, { code: "structured-field" });
}
