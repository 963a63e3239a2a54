import { createHash } from "node:crypto";

const u16 = (value: number): Buffer => Buffer.of(value & 0xff, value >> 8);
const u32 = (value: number): Buffer => {
  const data = Buffer.alloc(4);
  data.writeUInt32LE(value);
  return data;
};
const u64 = (value: number): Buffer => Buffer.concat([u32(value), u32(0)]);

export interface Event {
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

export const TYPE = {
  separator: 0x4,
  action: 0x80000007,
  config: 0x80000001,
  application: 0x80000003,
  authority: 0x800000e0,
} as const;

/** With which firmware ends its own part of a register. */
export const separator = (pcr: number): Event => ({ pcr, type: TYPE.separator, data: Buffer.alloc(4) });

/** What goes into the register for these events. */
export const digestsOf = (events: readonly Event[], register: number): readonly Buffer[] =>
  events
    .filter(({ pcr }) => pcr === register)
    .map(({ data, digest = createHash("sha256").update(data).digest() }) => digest);

/** What firmware measures into PCR 7 when its SecureBoot variable has this value, and has let these certificates of `db` in. */
export function policyEvents(value: number, ...certificates: readonly Buffer[]): readonly Event[] {
  const owner = Buffer.alloc(16, 0x62);
  return [
    { pcr: 7, type: TYPE.config, data: variable("SecureBoot", Buffer.of(value)) },
    { pcr: 7, type: TYPE.config, data: variable("db", Buffer.from("the list of all certificates")) },
    separator(7),
    ...certificates.map((certificate) => ({
      pcr: 7,
      type: TYPE.authority,
      data: variable("db", Buffer.concat([owner, certificate])),
    })),
  ];
}

/** What firmware measures into PCR 4 when it starts these programs. */
export function programEvents(...programs: readonly Buffer[]): readonly Event[] {
  const path = Buffer.from("a device path, which no digest covers");
  return [
    { pcr: 4, type: TYPE.action, data: Buffer.from("Calling EFI Application from Boot Option") },
    separator(4),
    ...programs.map((digest) => ({ pcr: 4, type: TYPE.application, data: path, digest })),
  ];
}
