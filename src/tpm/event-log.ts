import { createHash } from "node:crypto";
import { ALG } from "./structures.ts";
import { tpmMalformed } from "./wire.ts";

/** One measurement. The digests went into the PCR; what stands in `data` is covered by them for some types only. */
export interface MeasuredEvent {
  readonly pcr: number;
  readonly type: number;
  /** SHA-256. */
  readonly digest: Uint8Array;
  readonly data: Uint8Array;
}

/** Where firmware measures the programs that it boots, and its secure boot policy. */
export const BOOT_PROGRAM_PCR = 4;
export const SECURE_BOOT_PCR = 7;

const NO_ACTION = 0x3;
const VARIABLE_DRIVER_CONFIG = 0x80000001;
const BOOT_SERVICES_APPLICATION = 0x80000003;
const VARIABLE_AUTHORITY = 0x800000e0;
/** EFI_SIGNATURE_DATA begins with the GUID of its owner. */
const OWNER_BYTES = 16;
const MAX_EVENTS = 4096;
const SIGNATURE = "Spec ID Event03\0";
const STARTUP_LOCALITY = "StartupLocality\0";

/**
 * The crypto-agile log that firmware writes, little-endian, with its SHA-256 digests: TCG PC Client Platform Firmware
 * Profile, section 10. Strict. Throws `invalid`, also for logs of the older form, which have SHA-1 alone.
 */
export function parseEventLog(log: Uint8Array): readonly MeasuredEvent[] {
  const reader = new LogReader(log);
  const sizes = readHeader(reader);
  const events: MeasuredEvent[] = [];
  while (!reader.isAtEnd) {
    if (events.length === MAX_EVENTS) throw tpmMalformed("too many events");
    const [pcr, type] = [reader.u32(), reader.u32()];
    let digest: Uint8Array = Buffer.alloc(0);
    for (let count = reader.count(sizes.size); count > 0; count -= 1) {
      const algorithm = reader.u16();
      const size = sizes.get(algorithm);
      if (size === undefined) throw tpmMalformed("an event has a digest of a kind that the log does not name");
      const value = reader.take(size);
      if (algorithm === ALG.sha256) digest = value;
    }
    events.push({ pcr, type, digest, data: reader.take(reader.u32()) });
  }
  return events;
}

/** Digest sizes by algorithm, from the event that opens the log. */
function readHeader(reader: LogReader): ReadonlyMap<number, number> {
  reader.take(8 + 20);
  const header = new LogReader(reader.take(reader.u32()));
  if (header.take(16).toString("latin1") !== SIGNATURE) throw tpmMalformed("not a crypto-agile event log");
  header.take(8);
  const sizes = new Map<number, number>();
  for (let count = header.count(16); count > 0; count -= 1) sizes.set(header.u16(), header.u16());
  if (sizes.get(ALG.sha256) !== 32) throw tpmMalformed("the event log has no SHA-256 digests");
  return sizes;
}

/** What the registers hold after these events, hex; registers without events are left out. */
export function replay(events: readonly MeasuredEvent[]): ReadonlyMap<number, string> {
  const values = new Map<number, Buffer>();
  for (const { pcr, type, digest, data } of events) {
    const text = Buffer.from(data);
    const isLocality = type === NO_ACTION && text.toString("latin1", 0, 16) === STARTUP_LOCALITY;
    if (isLocality && pcr === 0) values.set(0, Buffer.concat([Buffer.alloc(31), text.subarray(16, 17)]));
    if (type === NO_ACTION) continue;
    const before = values.get(pcr) ?? Buffer.alloc(32);
    values.set(pcr, createHash("sha256").update(before).update(digest).digest());
  }
  return new Map([...values].map(([pcr, value]) => [pcr, value.toString("hex")]));
}

/**
 * Whether the firmware let only signed programs boot, as measured into PCR 7; undefined when the log does not say. Only
 * what its own digest covers is believed (T-N11).
 */
export function secureBoot(events: readonly MeasuredEvent[]): boolean | undefined {
  const variable = variablesOf(events, VARIABLE_DRIVER_CONFIG).find(({ name }) => name === "SecureBoot");
  return variable === undefined ? undefined : variable.value.length === 1 && variable.value[0] === 1;
}

/**
 * SHA-256, hex, of the certificates (DER) of the firmware's `db` by which booted programs were let in, as measured into
 * PCR 7. Only what its own digest covers is believed (T-N11).
 */
export function secureBootAuthorities(events: readonly MeasuredEvent[]): readonly string[] {
  const authorities = variablesOf(events, VARIABLE_AUTHORITY).filter(
    ({ name, value }) => name === "db" && value.length > OWNER_BYTES,
  );
  return distinct(authorities.map(({ value }) => sha256(value.subarray(OWNER_BYTES))));
}

/** Authenticode digests (SHA-256, hex) of the programs that the firmware started to boot, as measured into PCR 4. */
export function bootPrograms(events: readonly MeasuredEvent[]): readonly string[] {
  const started = events.filter(({ pcr, type }) => pcr === BOOT_PROGRAM_PCR && type === BOOT_SERVICES_APPLICATION);
  return distinct(started.map(({ digest }) => Buffer.from(digest).toString("hex")));
}

/** Variables measured into PCR 7 whose digest covers what stands there. */
function variablesOf(events: readonly MeasuredEvent[], type: number): readonly Variable[] {
  const measured = events.filter((event) => event.pcr === SECURE_BOOT_PCR && event.type === type);
  return measured.flatMap(({ data, digest }) => {
    const variable = sha256(data) === Buffer.from(digest).toString("hex") ? readVariable(data) : undefined;
    return variable === undefined ? [] : [variable];
  });
}

function sha256(data: Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}

function distinct(values: readonly string[]): readonly string[] {
  return [...new Set(values)];
}

interface Variable {
  readonly name: string;
  readonly value: Uint8Array;
}

/** UEFI_VARIABLE_DATA: a GUID, two lengths, a name in UTF-16 and the value. */
function readVariable(data: Uint8Array): Variable | undefined {
  const reader = new LogReader(data);
  try {
    reader.take(16);
    const [nameLength, valueLength] = [reader.u64(), reader.u64()];
    return { name: reader.take(nameLength * 2).toString("utf16le"), value: reader.take(valueLength) };
  } catch {
    return undefined;
  }
}

class LogReader {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Uint8Array) {
    this.#data = Buffer.from(data.buffer, data.byteOffset, data.length);
  }

  get isAtEnd(): boolean {
    return this.#at === this.#data.length;
  }

  u16(): number {
    return this.take(2).readUInt16LE();
  }

  u32(): number {
    return this.take(4).readUInt32LE();
  }

  u64(): number {
    return Number(this.take(8).readBigUInt64LE());
  }

  count(most: number): number {
    const count = this.u32();
    if (count > most) throw tpmMalformed("too many digests");
    return count;
  }

  take(count: number): Buffer {
    if (count > this.#data.length - this.#at) throw tpmMalformed("data ends too early");
    this.#at += count;
    return this.#data.subarray(this.#at - count, this.#at);
  }
}
