import { Fault } from "../../src/runtime/fault.ts";

/** Kinds of messages. D-Bus Specification, "Message Types". */
export const METHOD_CALL = 1;
export const METHOD_RETURN = 2;
export const ERROR = 3;

/** Far below the specification's 128 MiB; nothing that is asked here has a long answer. */
const MAX_MESSAGE_BYTES = 1024 * 1024;
const FIXED_BYTES = 16;
const LITTLE = 0x6c;
const BIG = 0x42;

/** Header fields by number. D-Bus Specification, "Header Fields". */
const FIELDS = { path: 1, interface: 2, member: 3, errorName: 4, replySerial: 5, destination: 6, sender: 7 } as const;
const SIGNATURE = 8;
const UNIX_FDS = 9;
const FIELD_TYPES: Readonly<Record<number, string>> = { 1: "o", 5: "u", 8: "g", 9: "u" };

type FieldName = keyof typeof FIELDS;

export interface DbusMessage extends Partial<Readonly<Record<FieldName, string | number>>> {
  readonly type: number;
  readonly serial: number;
  /** Of the basic types `s`, `o`, `u` and `h`, of `ay`, and of a variant `v` that holds one of them. */
  readonly signature?: string;
  readonly body?: readonly DbusValue[];
  /** How many descriptors travel with the message. */
  readonly descriptors?: number;
}

/** Strings and paths, numbers, bytes. */
export type DbusValue = string | number | Uint8Array;

/** The message in the form of the wire, little-endian. */
export function encodeMessage(message: DbusMessage): Buffer {
  const body = new Writer();
  writeBody(body, message.signature ?? "", message.body ?? []);
  const content = body.done();
  const header = new Writer();
  header.bytes([LITTLE, message.type, 0, 1]);
  header.uint32(content.length);
  header.uint32(message.serial);
  header.array(8, () => {
    for (const [name, code] of Object.entries(FIELDS)) writeField(header, code, message[name as FieldName]);
    writeField(header, SIGNATURE, message.signature);
    writeField(header, UNIX_FDS, message.descriptors);
  });
  header.pad(8);
  return Buffer.concat([header.done(), content]);
}

function writeBody(body: Writer, signature: string, values: readonly DbusValue[]): void {
  for (const [at, type] of [...signature.matchAll(/ay|v|./g)].entries()) {
    const value = values[at] ?? "";
    if (type[0] === "ay") body.array(1, () => body.bytes([...(value as Uint8Array)]));
    else if (type[0] === "v") body.variant("s", value);
    else body.basic(type[0], value);
  }
}

function writeField(header: Writer, code: number, value: string | number | undefined): void {
  if (value === undefined) return;
  header.pad(8);
  header.bytes([code]);
  header.variant(FIELD_TYPES[code] ?? "s", value);
}

/** Bytes of the first message in the buffer; undefined while not even its length has come. Throws `unavailable`. */
export function messageLength(buffer: Buffer): number | undefined {
  if (buffer.length < FIXED_BYTES) return undefined;
  const reader = new Reader(buffer, isBig(buffer));
  const fields = reader.uint32(12);
  const length = Math.ceil((FIXED_BYTES + fields) / 8) * 8 + reader.uint32(4);
  if (length > MAX_MESSAGE_BYTES) throw malformed("a message is too long");
  return length;
}

/** Reads one whole message. Throws `unavailable` when it is malformed or holds types that nothing here asks for. */
export function decodeMessage(bytes: Buffer): DbusMessage {
  const reader = new Reader(bytes, isBig(bytes));
  const found: Record<string, DbusValue> = {};
  reader.at = 12;
  reader.array(8, () => {
    reader.pad(8);
    const code = reader.byte();
    const name = Object.entries(FIELDS).find(([, number]) => number === code)?.[0];
    found[name ?? (code === SIGNATURE ? "signature" : "other")] = reader.variant();
  });
  reader.pad(8);
  const signature = String(found["signature"] ?? "");
  const body = [...signature.matchAll(/ay|./g)].map(([type]) => reader.value(type));
  return { ...found, type: bytes[1] ?? 0, serial: reader.uint32(8), signature, body };
}

function isBig(bytes: Buffer): boolean {
  if (bytes[0] === LITTLE || bytes[0] === BIG) return bytes[0] === BIG;
  throw malformed("a message has no byte order");
}

class Writer {
  readonly #parts: number[] = [];

  done(): Buffer {
    return Buffer.from(this.#parts);
  }

  bytes(values: readonly number[]): void {
    for (const value of values) this.#parts.push(value);
  }

  pad(to: number): void {
    while (this.#parts.length % to !== 0) this.#parts.push(0);
  }

  uint32(value: number): void {
    this.pad(4);
    for (const shift of [0, 8, 16, 24]) this.#parts.push((value >>> shift) & 0xff);
  }

  basic(type: string, value: DbusValue): void {
    if (type === "u" || type === "h") this.uint32(Number(value));
    else this.#string(String(value), type === "g");
  }

  variant(type: string, value: DbusValue): void {
    this.basic("g", type);
    this.basic(type, value);
  }

  /** The length does not count the padding before the first element. */
  array(align: number, content: () => void): void {
    this.uint32(0);
    const lengthAt = this.#parts.length - 4;
    this.pad(align);
    const start = this.#parts.length;
    content();
    const length = this.#parts.length - start;
    for (const [at, shift] of [0, 8, 16, 24].entries()) this.#parts[lengthAt + at] = (length >>> shift) & 0xff;
  }

  #string(text: string, isSignature: boolean): void {
    const bytes = Buffer.from(text);
    if (isSignature) this.bytes([bytes.length]);
    else this.uint32(bytes.length);
    this.bytes([...bytes, 0]);
  }
}

class Reader {
  at = 0;
  readonly #buffer: Buffer;
  readonly #big: boolean;

  constructor(buffer: Buffer, big: boolean) {
    this.#buffer = buffer;
    this.#big = big;
  }

  byte(): number {
    return this.#take(1)[0] ?? 0;
  }

  pad(to: number): void {
    this.at = Math.ceil(this.at / to) * to;
  }

  uint32(at?: number): number {
    if (at !== undefined) return this.#big ? this.#buffer.readUInt32BE(at) : this.#buffer.readUInt32LE(at);
    this.pad(4);
    const bytes = this.#take(4);
    return this.#big ? bytes.readUInt32BE() : bytes.readUInt32LE();
  }

  value(type: string): DbusValue {
    if (type === "u" || type === "h") return this.uint32();
    if (type === "s" || type === "o") return this.#string(this.uint32());
    if (type === "g") return this.#string(this.byte());
    if (type === "ay") return Buffer.from(this.#take(this.uint32()));
    if (type === "v") return this.variant();
    throw malformed(`a message holds the type ${JSON.stringify(type)}`);
  }

  variant(): DbusValue {
    return this.value(this.#string(this.byte()));
  }

  array(align: number, element: () => void): void {
    const length = this.uint32();
    this.pad(align);
    const end = this.at + length;
    if (end > this.#buffer.length) throw malformed("an array is longer than its message");
    while (this.at < end) element();
  }

  #string(length: number): string {
    return this.#take(length + 1).toString("utf8", 0, length);
  }

  #take(length: number): Buffer {
    const bytes = this.#buffer.subarray(this.at, this.at + length);
    if (bytes.length < length) throw malformed("a message is shorter than it says");
    this.at += length;
    return bytes;
  }
}

function malformed(what: string): Fault {
  return new Fault("unavailable", `the D-Bus connection failed: ${what}`, { code: "dbus-malformed" });
}
