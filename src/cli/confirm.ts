import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { Fault } from "../runtime/fault.ts";
import type { Spelling } from "../runtime/flags.ts";
import type { Io } from "../runtime/terminal.ts";

export interface Confirmation {
  readonly io: Io;
  readonly signal: AbortSignal;
  readonly yes: boolean;
  readonly spelling: Spelling;
}

export const yesFlag = { type: "bool", doc: "Go ahead without asking" } as const;

/**
 * Asks before something that others rely on is changed or removed. A line in SPIRE's own spelling (`-entryID …`) never
 * asks and says nothing more. Any other says what it will touch, and asks on a terminal. Where nobody can be asked, a
 * line that SPIRE's programs would not read (`--entry-id …`) needs `-yes`. Throws `precondition` unless it may go on.
 */
export async function confirm(
  { io, signal, yes, spelling }: Confirmation,
  describe: () => Promise<string> | string,
): Promise<void> {
  if (spelling === "spire") return;
  const terminal = io.stdin.isTTY === true && io.stderr.isTTY === true;
  if (!yes && !terminal && spelling === "own") {
    throw new Fault("precondition", "this needs a confirmation, and there is no terminal to ask on", {
      code: "confirmation-needed",
      hint: "add -yes",
    });
  }
  if (!terminal && !yes) return;
  const description = await describe();
  io.stderr.write(`This will ${description}${description.includes("\n") ? "" : "."}\n`);
  if (yes) return;
  const answer = await ask(io, signal);
  if (/^y(es)?$/i.test(answer.trim())) return;
  throw new Fault("precondition", "not confirmed, so nothing was changed", {
    code: "not-confirmed",
    hint: "answer y, or add -yes",
  });
}

/** The first line that is typed; empty when there is none. */
async function ask(io: Io, signal: AbortSignal): Promise<string> {
  io.stderr.write("Go on? [y/N] ");
  const input = io.stdin instanceof Readable ? io.stdin : Readable.from(io.stdin);
  const lines = createInterface({ input, signal });
  for await (const line of lines) return line;
  return "";
}
