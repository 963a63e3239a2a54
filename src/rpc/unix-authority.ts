import type { Socket } from "node:net";
import { Duplex } from "node:stream";

const PREFACE_BYTES = 24;
const FRAME_HEADER_BYTES = 9;
const HEADERS_TYPE = 1;
const PADDED_FLAG = 0x8;
const PRIORITY_FLAG = 0x20;
/** RFC 9113 section 6.5.2: nobody may send more before he is told so, and we tell nobody. */
const MAX_FRAME_BYTES = 16_384;
/** RFC 7541 appendix A. */
const AUTHORITY_INDEX = 1;
const SLASH = 0x2f;
const DOT = 0x2e;
const CODED_SLASH = 0x18;
const CODED_DOT = 0x17;
const CODE_BITS = 15;
/** The Huffman codes of up to 15 bits: by their length, the last of that length. */
const CODES = [
  { length: 5, last: 0x9 },
  { length: 6, last: 0x2d },
  { length: 7, last: 0x7b },
  { length: 8, last: 0xfd },
  { length: 10, last: 0x3fc },
  { length: 11, last: 0x7fc },
  { length: 12, last: 0xffb },
  { length: 13, last: 0x1ffd },
  { length: 14, last: 0x3ffd },
  { length: 15, last: 0x7ffe },
];

/**
 * A Unix connection as its HTTP/2 server shall see it. gRPC for Java names the socket's path as `:authority`; a slash is
 * not allowed there, and the HTTP/2 below us refuses such requests where others do not look. Here it becomes a dot,
 * which changes no length, so that both sides go on to agree on the frames and on HPACK's table. Nothing of ours
 * reads the authority.
 */
export class UnixConnection extends Duplex {
  readonly #socket: Socket;

  constructor(socket: Socket) {
    super();
    this.#socket = socket;
    const mended = authorityMender();
    socket.on("data", (chunk: Buffer) => {
      const bytes = mended(chunk);
      if (bytes.length > 0 && !this.push(bytes)) socket.pause();
    });
    socket.once("end", () => this.push(null)).once("close", () => this.destroy());
    socket.pause();
  }

  override _read(): void {
    this.#socket.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#socket.write(chunk, done);
  }

  override _writev(chunks: { readonly chunk: Buffer }[], done: (error?: Error | null) => void): void {
    this.#socket.write(Buffer.concat(chunks.map(({ chunk }) => chunk)), done);
  }

  override _final(done: () => void): void {
    this.#socket.end(done);
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#socket.destroy();
    done(error);
  }
}

/**
 * Takes what a client sends, chunk by chunk, and gives what can go on. Only frames of headers are held until they are
 * whole; what is no HTTP/2 goes on as it came. Exported for tests.
 */
export function authorityMender(): (chunk: Buffer) => Buffer {
  let pass = PREFACE_BYTES;
  let held: Buffer = Buffer.alloc(0);
  return (chunk) => {
    const bytes = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
    let at = 0;
    for (;;) {
      const step = Math.min(pass, bytes.length - at);
      at += step;
      pass -= step;
      if (pass > 0 || bytes.length - at < FRAME_HEADER_BYTES) break;
      const end = at + FRAME_HEADER_BYTES + bytes.readUIntBE(at, 3);
      if (bytes[at + 3] === HEADERS_TYPE && end - at <= FRAME_HEADER_BYTES + MAX_FRAME_BYTES) {
        if (bytes.length < end) break;
        mendHeaders(bytes.subarray(at + FRAME_HEADER_BYTES, end), bytes[at + 4] ?? 0);
      }
      pass = end - at;
    }
    held = bytes.subarray(at);
    return bytes.subarray(0, at);
  };
}

function mendHeaders(payload: Buffer, flags: number): void {
  const isPadded = (flags & PADDED_FLAG) !== 0;
  const start = (isPadded ? 1 : 0) + ((flags & PRIORITY_FLAG) !== 0 ? 5 : 0);
  const end = payload.length - (isPadded ? (payload[0] ?? 0) : 0);
  if (start < end) mendBlock(payload.subarray(start, end));
}

/** The representations of RFC 7541 section 6, one after the other. */
function mendBlock(block: Buffer): void {
  let at = 0;
  while (at < block.length) {
    const kind = block[at] ?? 0;
    const isIndexed = (kind & 0x80) !== 0;
    const isLiteralKept = (kind & 0xc0) === 0x40;
    const isTableSize = (kind & 0xe0) === 0x20;
    const index = integerAt(block, at, isIndexed ? 7 : isLiteralKept ? 6 : isTableSize ? 5 : 4);
    at = index.end;
    if (isIndexed || isTableSize) continue;
    if (index.value === 0) at = stringAt(block, at).end;
    const value = stringAt(block, at);
    at = value.end;
    if (index.value !== AUTHORITY_INDEX) continue;
    (value.isHuffman ? replaceCodedSlashes : replaceSlashes)(block.subarray(value.start, value.end));
  }
}

function replaceSlashes(text: Buffer): void {
  for (let at = text.indexOf(SLASH); at >= 0; at = text.indexOf(SLASH, at)) text[at] = DOT;
}

/**
 * RFC 7541 appendix B: a slash and a dot are 6 bits each. The code of all other bytes, which no path of a socket is
 * likely to hold, ends the walk.
 */
function replaceCodedSlashes(text: Buffer): void {
  for (let at = 0; at < text.length * 8; ) {
    const next = codeBitsAt(text, at);
    const found = CODES.find(({ length, last }) => next >> (CODE_BITS - length) <= last);
    if (found === undefined) return;
    if (found.length === 6 && next >> (CODE_BITS - 6) === CODED_SLASH) flipBits(text, at, CODED_SLASH ^ CODED_DOT);
    at += found.length;
  }
}

/** After the end stand ones, which no code that ends there begins with. */
function codeBitsAt(text: Buffer, at: number): number {
  const byte = at >> 3;
  const bits = ((text[byte] ?? 0xff) << 16) | ((text[byte + 1] ?? 0xff) << 8) | (text[byte + 2] ?? 0xff);
  return (bits >> (24 - CODE_BITS - (at & 7))) & (2 ** CODE_BITS - 1);
}

/** Of the six bits there. */
function flipBits(text: Buffer, at: number, mask: number): void {
  const byte = at >> 3;
  const placed = mask << (10 - (at & 7));
  text[byte] = (text[byte] ?? 0) ^ (placed >> 8);
  if (byte + 1 < text.length) text[byte + 1] = (text[byte + 1] ?? 0) ^ (placed & 0xff);
}

/** RFC 7541 section 5.1. One that runs out of the block, or beyond what a block can hold, ends the walk. */
function integerAt(block: Buffer, at: number, bits: number): { readonly value: number; readonly end: number } {
  const most = 2 ** bits - 1;
  let value = (block[at] ?? 0) & most;
  let end = at + 1;
  if (value < most) return { value, end };
  for (let scale = 1; scale < MAX_FRAME_BYTES; scale *= 128) {
    const byte = block[end];
    if (byte === undefined) break;
    end += 1;
    value += (byte & 0x7f) * scale;
    if ((byte & 0x80) === 0) return { value, end };
  }
  return { value: 0, end: block.length };
}

/** RFC 7541 section 5.2. */
function stringAt(
  block: Buffer,
  at: number,
): { readonly start: number; readonly end: number; readonly isHuffman: boolean } {
  const length = integerAt(block, at, 7);
  return { start: length.end, end: length.end + length.value, isHuffman: ((block[at] ?? 0) & 0x80) !== 0 };
}
