import type { Selector } from "../../src/spiffe/selector.ts";

/** What one attestor said of a caller. */
export interface SourceRecord {
  readonly attestor: string;
  readonly tookMs: number;
  /** Empty when it failed. */
  readonly selectors: readonly Selector[];
  /** Absent when it answered. */
  readonly error?: string;
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

/** The last attestations, for explaining later why a caller got what it got. */
export class AttestationHistory {
  readonly #records: AttestationRecord[] = [];

  add(record: AttestationRecord): void {
    if (this.#records.length >= KEPT) this.#records.shift();
    this.#records.push(record);
  }

  /** The newest last. */
  get records(): readonly AttestationRecord[] {
    return this.#records;
  }
}
