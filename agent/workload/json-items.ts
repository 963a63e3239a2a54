import { Fault } from "../../src/runtime/fault.ts";
import { jsonOf } from "./http.ts";

export interface JsonItemsOptions {
  /** Longest item, in bytes; also what may stand around all of them. */
  readonly maxItemBytes: number;
  /** Each item's JSON, in order. The bytes are good only until it returns. */
  readonly onItem: (json: Buffer) => void;
  /** Who sends it, for messages. */
  readonly peer: string;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
/** Stands in the frame for an item. */
const PLACEHOLDER = Buffer.from("0");
const ITEMS_KEY = /"items"\s*:\s*$/;
const KEY_LENGTH = 64;
/** `{` of the list and `[` of its items are open. */
const ITEMS_DEPTH = 2;

/**
 * Reads a list of Kubernetes objects, `{…, "items": [{…}, …], …}`, piece by piece as it comes, with no more of it in
 * memory than one item. What stands around the items, the frame, is parsed at the end: so the whole is JSON exactly if
 * the frame and every item are.
 */
export class JsonItems {
  readonly #options: JsonItemsOptions;
  readonly #frame: Buffer[] = [];
  readonly #item: Buffer[] = [];
  #frameBytes = 0;
  #itemBytes = 0;
  /** End of the frame so far. */
  #tail = "";
  #depth = 0;
  #inString = false;
  #isEscaped = false;
  #inItems = false;
  #inItem = false;
  #count = 0;

  constructor(options: JsonItemsOptions) {
    this.#options = options;
  }

  /** Throws `unavailable` when an item is too long, and what `onItem` throws. */
  push(chunk: Buffer): void {
    const text = chunk.toString("latin1");
    let start = 0;
    for (let at = 0; at < text.length; ) {
      if (this.#inString) {
        at = this.#skipString(text, at);
        continue;
      }
      const byte = text.charCodeAt(at);
      at += 1;
      if (byte === QUOTE) this.#inString = true;
      else if (byte === OPEN_BRACE || byte === OPEN_BRACKET) start = this.#open(byte, { chunk, start, at });
      else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) start = this.#close({ chunk, start, at });
    }
    this.#keep(chunk.subarray(start));
  }

  /** The list with a 0 in place of every item. Throws `unavailable` when it is not JSON, or not such a list. */
  end(): Readonly<Record<string, unknown>> {
    const frame = this.#parsed();
    const items = frame["items"];
    if (items !== null && !Array.isArray(items)) throw this.#fault("expected an items array");
    if (items !== null && (items.length !== this.#count || items.some((item) => item !== 0)))
      throw this.#fault("expected an items array of objects");
    return frame;
  }

  /** Where to go on: after the string, or the text. */
  #skipString(text: string, start: number): number {
    const from = this.#isEscaped ? start + 1 : start;
    this.#isEscaped = false;
    for (let at = from; ; ) {
      const quote = text.indexOf('"', at);
      const end = quote < 0 ? text.length : quote;
      let escapes = 0;
      while (end - 1 - escapes >= from && text.charCodeAt(end - 1 - escapes) === BACKSLASH) escapes += 1;
      const isEscaped = escapes % 2 === 1;
      if (quote < 0) {
        this.#isEscaped = isEscaped;
        return text.length;
      }
      if (!isEscaped) {
        this.#inString = false;
        return quote + 1;
      }
      at = quote + 1;
    }
  }

  /** `at` is after the bracket; returns where what is not kept yet begins. */
  #open(byte: number, { chunk, start, at }: Piece): number {
    this.#depth += 1;
    if (this.#inItems && this.#depth === ITEMS_DEPTH + 1 && byte === OPEN_BRACE) {
      this.#keepFrame(chunk.subarray(start, at - 1));
      this.#inItem = true;
      return at - 1;
    }
    if (this.#depth !== ITEMS_DEPTH || byte !== OPEN_BRACKET) return start;
    this.#keepFrame(chunk.subarray(start, at - 1));
    this.#inItems = ITEMS_KEY.test(this.#tail);
    return at - 1;
  }

  #close({ chunk, start, at }: Piece): number {
    const isItem = this.#inItem && this.#depth === ITEMS_DEPTH + 1;
    if (this.#depth === ITEMS_DEPTH) this.#inItems = false;
    this.#depth -= 1;
    if (!isItem) return start;
    this.#inItem = false;
    this.#keepItem(chunk.subarray(start, at));
    this.#endItem();
    return at;
  }

  #keep(rest: Buffer): void {
    if (this.#inItem) this.#keepItem(rest);
    else this.#keepFrame(rest);
  }

  #keepFrame(bytes: Buffer): void {
    if (bytes.length === 0) return;
    this.#frameBytes += bytes.length;
    this.#checkSize(this.#frameBytes);
    this.#frame.push(Buffer.from(bytes));
    this.#tail = (this.#tail + bytes.subarray(-KEY_LENGTH).toString("latin1")).slice(-KEY_LENGTH);
  }

  #keepItem(bytes: Buffer): void {
    this.#itemBytes += bytes.length;
    this.#checkSize(this.#itemBytes);
    this.#item.push(bytes);
  }

  #endItem(): void {
    const [first = PLACEHOLDER] = this.#item;
    const json = this.#item.length === 1 ? first : Buffer.concat(this.#item, this.#itemBytes);
    this.#item.length = 0;
    this.#itemBytes = 0;
    this.#count += 1;
    this.#keepFrame(PLACEHOLDER);
    this.#options.onItem(json);
  }

  #checkSize(bytes: number): void {
    const { maxItemBytes } = this.#options;
    if (bytes > maxItemBytes) throw this.#fault(`an item is longer than ${maxItemBytes} bytes`);
  }

  #parsed(): Readonly<Record<string, unknown>> {
    const { peer } = this.#options;
    const frame = jsonOf(Buffer.concat(this.#frame, this.#frameBytes), peer);
    if (typeof frame !== "object" || frame === null || Array.isArray(frame)) throw this.#fault("expected an object");
    return frame as Readonly<Record<string, unknown>>;
  }

  #fault(what: string): Fault {
    return new Fault("unavailable", `invalid answer of ${this.#options.peer}: ${what}`, { code: "peer-answer" });
  }
}

interface Piece {
  readonly chunk: Buffer;
  readonly start: number;
  readonly at: number;
}
