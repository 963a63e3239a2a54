import { createHash } from "node:crypto";

const u16 = (value: number): Buffer => Buffer.of(value & 0xff, value >> 8);
const u32 = (value: number): Buffer => {
  const data = Buffer.alloc(4);
  data.writeUInt32LE(value);
  return data;
};
const u64 = (value: number): Buffer => Buffer.concat([u32(value), u32(0)]);

interface Event {
  readonly pcr: number;
  readonly type: number;
  readonly data: Buffer;
  /** Default: that of the data. */
  readonly digest?: Buffer;
}

/** A crypto-agile log with SHA-1 and SHA-256 digests, as firmware writes it. */
export function eventLog(...events: readonly Event[]): Buffer {
  const sizes = Buffer.concat([u32(2), u16(4), u16(20), u16(0xb), u16(32)]);
  const header = Buffer.concat([Buffer.from("Spec ID Event03\0"), Buffer.alloc(8), sizes, Buffer.of(0)]);
  const opening = Buffer.concat([u32(0), u32(3), Buffer.alloc(20), u32(header.length), header]);
  const others = events.map(({ pcr, type, data, digest = createHash("sha256").update(data).digest() }) =>
    Buffer.concat([u32(pcr), u32(type), u32(2), u16(4), Buffer.alloc(20), u16(0xb), digest, u32(data.length), data]),
  );
  return Buffer.concat([opening, ...others]);
}

/** UEFI_VARIABLE_DATA, as firmware measures it. */
export function variable(name: string, value: Buffer): Buffer {
  const text = Buffer.from(name, "utf16le");
  return Buffer.concat([Buffer.alloc(16, 0x61), u64(name.length), u64(value.length), text, value]);
}

/** A log in which the firmware measured its SecureBoot variable, and that measurement's digest. */
export function secureBootLog(value: number): { readonly log: Buffer; readonly digest: Buffer } {
  const data = variable("SecureBoot", Buffer.of(value));
  const digest = createHash("sha256").update(data).digest();
  return { log: eventLog({ pcr: 7, type: 0x80000001, data }), digest };
}

/** A log of a machine that let a program boot by a certificate, and the digests that went into PCR 4 and 7. */
export function bootLog(options: { readonly certificate: Buffer; readonly program: Buffer }) {
  const owner = Buffer.alloc(16, 0x62);
  const data = variable("db", Buffer.concat([owner, options.certificate]));
  const authority = createHash("sha256").update(data).digest();
  const path = Buffer.from("a device path, which no digest covers");
  const events: readonly Event[] = [
    { pcr: 7, type: 0x800000e0, data },
    { pcr: 4, type: 0x80000003, data: path, digest: options.program },
  ];
  return { log: eventLog(...events), authority, program: options.program };
}
