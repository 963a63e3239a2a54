import type { Clock } from "../runtime/clock.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import type { FlagSpecs, OutputFormat } from "../runtime/flags.ts";
import type { Io } from "../runtime/terminal.ts";
import { type Answer, jsonOf, printAnswer } from "./output.ts";

export const watchFlags = {
  watch: { type: "bool", doc: "Keep running and print again whenever something changed" },
  watchInterval: { type: "duration", doc: "How often -watch looks", default: "2s" },
} as const satisfies FlagSpecs;

export interface Watch {
  readonly io: Io;
  readonly output: OutputFormat;
  readonly clock: Clock;
  readonly intervalMs: number;
  readonly signal: AbortSignal;
}

const CLEAR_SCREEN = "\u001b[H\u001b[2J\u001b[3J";

/**
 * Prints the answer, and again whenever it changed; a terminal shows only the newest, with its times kept true. Ends by
 * the signal. A failure of the first look is thrown; later ones are printed, once each, and looked past.
 */
export async function watchAnswer(look: () => Promise<Answer>, watch: Watch): Promise<void> {
  const { io, output, clock, intervalMs, signal } = watch;
  const terminal = io.stdout.isTTY === true && io.env.TERM !== "dumb";
  let shown: string | undefined;
  let complaint = "";
  for (let first = true; !signal.aborted; first = false) {
    try {
      const answer = await look();
      const text = await printed(answer, { io, output, clock });
      const state = terminal ? text : jsonOf(answer);
      if (state !== shown || complaint !== "") io.stdout.write(terminal ? `${CLEAR_SCREEN}${text}` : text);
      [shown, complaint] = [state, ""];
    } catch (error) {
      const fault = Fault.from(error);
      if (first || signal.aborted) throw fault;
      if (fault.message !== complaint) io.stderr.write(`Error: ${fault.message}\n`);
      complaint = fault.message;
    }
    if (!(await pause(clock, intervalMs, signal))) return;
  }
}

async function printed(answer: Answer, { io, output, clock }: Pick<Watch, "io" | "output" | "clock">): Promise<string> {
  const parts: string[] = [];
  const { isTTY, columns } = io.stdout;
  const stdout = {
    write: (part: string) => parts.push(part),
    ...(isTTY === undefined ? {} : { isTTY }),
    ...(columns === undefined ? {} : { columns }),
  };
  await printAnswer(answer, { io: { ...io, stdout }, output, clock });
  return parts.join("");
}

/** False when the signal came. */
async function pause(clock: Clock, ms: number, signal: AbortSignal): Promise<boolean> {
  try {
    await clock.sleep(ms, signal);
    return true;
  } catch (error) {
    if (signal.aborted || isFault(error, "cancelled")) return false;
    throw error;
  }
}
