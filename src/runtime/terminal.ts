import { type Clock, systemClock } from "./clock.ts";

/** Where text goes. `process.stdout` is one. */
export interface TextOutput {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  /** Width of a terminal. */
  readonly columns?: number;
}

/** Where text comes from. `process.stdin` is one. */
export type TextInput = AsyncIterable<Uint8Array | string> & { readonly isTTY?: boolean };

/** What a command may touch of the outside, so that tests run it in the same process. */
export interface Io {
  readonly stdout: TextOutput;
  readonly stderr: TextOutput;
  readonly stdin: TextInput;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export function processIo(): Io {
  return { stdout: process.stdout, stderr: process.stderr, stdin: process.stdin, env: process.env };
}

/** Everything on standard input, at most `limit` bytes; undefined when there's more. */
export async function readStdin(io: Io, limit: number): Promise<string | undefined> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of io.stdin) {
    const bytes = typeof chunk === "string" ? Buffer.from(chunk) : chunk;
    size += bytes.length;
    if (size > limit) return undefined;
    chunks.push(bytes);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** Rows with their columns aligned, two spaces apart, nothing after the last. */
export function alignColumns(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const [column, cell] of rows.flatMap((row) => [...row.entries()])) {
    widths[column] = Math.max(widths[column] ?? 0, cell.length);
  }
  return rows
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join("  ")
          .trimEnd()}\n`,
    )
    .join("");
}

const STYLES = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 } as const;

/** The text in a style, or as it is when the output is no terminal, or NO_COLOR or TERM=dumb says so. */
export function paint(io: Io, style: keyof typeof STYLES, text: string): string {
  return io.stdout.isTTY === true && mayUseEscapes(io) ? `\u001b[${STYLES[style]}m${text}\u001b[0m` : text;
}

function mayUseEscapes(io: Io): boolean {
  return (io.env.NO_COLOR ?? "") === "" && io.env.TERM !== "dumb";
}

const FIRST_SIGN_MS = 1000;
const REDRAW_MS = 250;
const ERASE_LINE = "\r\u001b[K";

/**
 * Waits for the work; once it has taken a second, a line on standard error counts the seconds, if that's a terminal
 * that can erase the line again.
 */
export async function withProgress<T>(io: Io, what: string, work: Promise<T>, clock: Clock = systemClock): Promise<T> {
  if (io.stderr.isTTY !== true || io.env.TERM === "dumb") return work;
  const done = new AbortController();
  const shown = countSeconds({ io, what, clock, signal: done.signal });
  try {
    return await work;
  } finally {
    done.abort();
    await shown;
  }
}

interface Counter {
  readonly io: Io;
  readonly what: string;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

async function countSeconds({ io, what, clock, signal }: Counter): Promise<void> {
  const started = clock.monotonic();
  let drawn = false;
  try {
    await clock.sleep(FIRST_SIGN_MS, signal);
    for (;;) {
      io.stderr.write(`${ERASE_LINE}${what} … ${Math.floor((clock.monotonic() - started) / 1000)} s`);
      drawn = true;
      await clock.sleep(REDRAW_MS, signal);
    }
  } catch {
    if (drawn) io.stderr.write(ERASE_LINE);
  }
}
