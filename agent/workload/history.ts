import type { Selector } from "../../src/spiffe/selector.ts";

/** What one attestor said of a caller. */
export interface SourceRecord {
  readonly attestor: string;
  readonly tookMs: number;
  /** Empty when it failed. */
  readonly selectors: readonly Selector[];
  /** Absent when it answered. */
  readonly error?: string;
  /** Of the fault. */
  readonly code?: string;
}

/** One attestation as it was made. Holds what only its caller may know: it stays in memory and out of the log. */
export interface AttestationRecord {
  readonly at: Date;
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  readonly tookMs: number;
  readonly sources: readonly SourceRecord[];
  /** Why there was no result, where there was none. */
  readonly error?: string;
}

const KEPT = 256;
/** Of all of them together: labels and environments of containers are as long as whoever starts one wants. */
const MAX_CHARACTERS = 16 * 1024 * 1024;

/** The last attestations, for explaining later why a caller got what it got. */
export class AttestationHistory {
  readonly #records: AttestationRecord[] = [];
  #characters = 0;

  /** The oldest make room, so that one which is too large alone stays until the next. */
  add(record: AttestationRecord): void {
    this.#characters += lengthOf(record);
    this.#records.push(record);
    while (this.#records.length > KEPT || (this.#characters > MAX_CHARACTERS && this.#records.length > 1)) {
      const oldest = this.#records.shift();
      this.#characters -= oldest === undefined ? 0 : lengthOf(oldest);
    }
  }

  /** The newest last. */
  get records(): readonly AttestationRecord[] {
    return this.#records;
  }
}

function lengthOf({ sources, error = "" }: AttestationRecord): number {
  let length = error.length;
  for (const source of sources) {
    length += source.error?.length ?? 0;
    for (const { value } of source.selectors) length += value.length;
  }
  return length;
}
