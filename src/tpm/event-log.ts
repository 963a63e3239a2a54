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
/** EFI_SIGNATURE_DATA begins with the GUID of its owner. */
const OWNER_BYTES = 16;
const MAX_EVENTS = 4096;
/** Such as "Calling EFI Application from Boot Option". */
const MAX_TEXT_BYTES = 255;
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

/*
 * What follows is for somebody who may own the machine by now. A PCR vouches for digests and their order, and for nothing
 * else that stands in the log: not for the type of an event, nor for data that it is not the digest of. And whoever runs
 * the machine can extend PCR 4 and 7 as well, later. So each event of a register has to explain itself, by the bytes of
 * which it is the digest; what was measured before the separator, with which firmware ends its own part, is its own; and of
 * what came after only the whole is told, since nothing can be taken out of it (T-N11).
 */

/**
 * Whether the firmware let only signed programs boot, as measured into PCR 7 before the separator; undefined when the log
 * does not say.
 */
export function secureBoot(events: readonly MeasuredEvent[]): boolean | undefined {
  const found = policyOf(events)?.variables.filter(({ name }) => name === "SecureBoot") ?? [];
  const [variable, ...more] = found;
  if (variable === undefined || more.length > 0 || !variable.early) return undefined;
  return variable.value.length === 1 && variable.value[0] === 1;
}

/**
 * SHA-256, hex and sorted, of all certificates (DER) of the firmware's `db` by which something was let in, as measured
 * into PCR 7; empty when the log does not say.
 */
export function secureBootAuthorities(events: readonly MeasuredEvent[]): readonly string[] {
  const found = policyOf(events)?.variables.filter(({ name }) => name === "db") ?? [];
  // The first is the list itself, which firmware measures before it lets anything in by it.
  const authorities = found[0]?.early === true ? found.slice(1) : [];
  if (authorities.some(({ value }) => value.length <= OWNER_BYTES)) return [];
  return [...distinct(authorities.map(({ value }) => sha256(value.subarray(OWNER_BYTES))))].sort();
}

/**
 * Authenticode digests (SHA-256, hex) of all programs that were started to boot, in their order, as measured into PCR 4.
 * Whatever is neither a separator nor a text of the firmware's counts as one. The first was the firmware's own choice.
 */
export function bootPrograms(events: readonly MeasuredEvent[]): readonly string[] {
  const started = measuredInto(events, BOOT_PROGRAM_PCR).filter((event) => !explains(event) || !isPlain(event.data));
  return started.map(({ digest }) => Buffer.from(digest).toString("hex"));
}

interface PolicyVariable extends Variable {
  /** Measured before the separator. */
  readonly early: boolean;
}

/** What stands in PCR 7; undefined when an event does not explain itself, or there is no separator. */
function policyOf(events: readonly MeasuredEvent[]): { readonly variables: readonly PolicyVariable[] } | undefined {
  const measured = measuredInto(events, SECURE_BOOT_PCR);
  const separator = measured.findIndex((event) => explains(event) && isSeparator(event.data));
  if (separator < 0 || !measured.every(explains)) return undefined;
  const variables = measured.flatMap(({ data }, at) => {
    const variable = readVariable(data);
    return variable === undefined ? [] : [{ ...variable, early: at < separator }];
  });
  return { variables };
}

function measuredInto(events: readonly MeasuredEvent[], register: number): readonly MeasuredEvent[] {
  return events.filter(({ pcr, type }) => pcr === register && type !== NO_ACTION);
}

function explains({ data, digest }: MeasuredEvent): boolean {
  return sha256(data) === Buffer.from(digest).toString("hex");
}

function isSeparator(data: Uint8Array): boolean {
  return data.length === 4 && data.every((byte) => byte === 0);
}

/** No program looks like this: the bytes that its digest is of begin with a header that has zeros. */
function isPlain(data: Uint8Array): boolean {
  return data.length === 4 || (data.length <= MAX_TEXT_BYTES && data.every((byte) => byte >= 0x20 && byte < 0x7f));
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
    const variable = { name: reader.take(nameLength * 2).toString("utf16le"), value: reader.take(valueLength) };
    return reader.isAtEnd ? variable : undefined;
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
