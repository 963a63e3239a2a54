import { Fault } from "../runtime/fault.ts";

/** Reads SSH's binary form, RFC 4251 section 5: strict, and nothing may be left at the end. Throws `invalid`. */
export class SshReader {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Uint8Array) {
    this.#data = Buffer.from(data.buffer, data.byteOffset, data.length);
  }

  get position(): number {
    return this.#at;
  }

  get isAtEnd(): boolean {
    return this.#at === this.#data.length;
  }

  uint32(): number {
    return this.#take(4).readUInt32BE();
  }

  uint64(): bigint {
    return this.#take(8).readBigUInt64BE();
  }

  bytes(): Buffer {
    return this.#take(this.uint32());
  }

  text(): string {
    return this.bytes().toString("utf8");
  }

  /** A number that is not negative, without leading zeros. */
  mpint(): Buffer {
    const value = this.bytes();
    const [first = 0, second = 0] = value;
    if (first >= 0x80) throw sshFault("a number is negative");
    if (value.length > 0 && first === 0 && (value.length === 1 || second < 0x80))
      throw sshFault("a number has leading zeros");
    return first === 0 ? value.subarray(1) : value;
  }

  end(): void {
    if (!this.isAtEnd) throw sshFault("data follows the end");
  }

  #take(count: number): Buffer {
    if (count > this.#data.length - this.#at) throw sshFault("data ends too early");
    this.#at += count;
    return this.#data.subarray(this.#at - count, this.#at);
  }
}

/** `uint32` length and the bytes. */
export function sshString(data: Uint8Array | string): Buffer {
  const bytes = Buffer.from(data);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

/** Of a number that is not negative. */
export function sshMpint(value: Uint8Array): Buffer {
  let start = 0;
  while (start < value.length && value[start] === 0) start += 1;
  const bytes = Buffer.from(value.subarray(start));
  return sshString((bytes[0] ?? 0) >= 0x80 ? Buffer.concat([Buffer.of(0), bytes]) : bytes);
}

export function sshFault(message: string): Fault {
  return new Fault("invalid", `malformed SSH data: ${message}`, { code: "ssh-malformed" });
}
