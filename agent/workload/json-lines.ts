import { Fault } from "../../src/runtime/fault.ts";

export interface JsonLinesOptions {
  /** Of the longest line. */
  readonly maxBytes: number;
  /** Each line, without its end. */
  readonly onLine: (line: Buffer) => void;
  /** Who sends them, for messages. */
  readonly peer: string;
}

const NEWLINE = 0x0a;

/** Cuts a stream into its lines as it comes. */
export class JsonLines {
  readonly #options: JsonLinesOptions;
  #begun: Buffer[] = [];
  #begunBytes = 0;

  constructor(options: JsonLinesOptions) {
    this.#options = options;
  }

  /** Throws `unavailable` when a line is too long, and what `onLine` throws. */
  push(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      this.#keep(chunk.subarray(start, end));
      start = end + 1;
      const line = Buffer.concat(this.#begun, this.#begunBytes);
      this.#begun = [];
      this.#begunBytes = 0;
      if (line.length > 0) this.#options.onLine(line);
    }
    this.#keep(chunk.subarray(start));
  }

  #keep(bytes: Buffer): void {
    const { maxBytes, peer } = this.#options;
    this.#begunBytes += bytes.length;
    if (this.#begunBytes > maxBytes)
      throw new Fault("unavailable", `an event of ${peer} is longer than ${maxBytes} bytes`, { code: "peer-answer" });
    if (bytes.length > 0) this.#begun.push(bytes);
  }
}
