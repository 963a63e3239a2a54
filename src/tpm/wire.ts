import { Fault } from "../runtime/fault.ts";

/** Reads the TPM's big-endian form: strict, and nothing may be left at the end. Throws `invalid`. */
export class TpmReader {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Uint8Array) {
    this.#data = Buffer.from(data.buffer, data.byteOffset, data.length);
  }

  u8(): number {
    return this.take(1)[0] ?? 0;
  }

  u16(): number {
    return this.take(2).readUInt16BE();
  }

  u32(): number {
    return this.take(4).readUInt32BE();
  }

  u64(): bigint {
    return this.take(8).readBigUInt64BE();
  }

  /** TPM2B: a length of two bytes and what it counts. */
  sized(): Buffer {
    return this.take(this.u16());
  }

  take(count: number): Buffer {
    if (count > this.#data.length - this.#at) throw tpmMalformed("data ends too early");
    this.#at += count;
    return this.#data.subarray(this.#at - count, this.#at);
  }

  rest(): Buffer {
    return this.take(this.#data.length - this.#at);
  }

  end(): void {
    if (this.#at < this.#data.length) throw tpmMalformed("data follows the end");
  }
}

export function u8(value: number): Buffer {
  return Buffer.of(value);
}

export function u16(value: number): Buffer {
  const data = Buffer.alloc(2);
  data.writeUInt16BE(value);
  return data;
}

export function u32(value: number): Buffer {
  const data = Buffer.alloc(4);
  data.writeUInt32BE(value);
  return data;
}

/** TPM2B. */
export function sized(...parts: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(parts);
  return Buffer.concat([u16(body.length), body]);
}

export function tpmMalformed(message: string): Fault {
  return new Fault("invalid", `malformed TPM data: ${message}`, { code: "tpm-malformed" });
}
