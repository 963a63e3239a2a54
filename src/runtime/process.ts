import { type Clock, systemClock } from "./clock.ts";
import { Fault, isAbort, isFault } from "./fault.ts";
import type { Log } from "./log.ts";

export interface ProgramOptions {
  /** How long `main` may take to end after the first signal. */
  readonly drainMs?: number;
  readonly clock?: Clock;
}

const STOP_SIGNALS = ["SIGINT", "SIGTERM"] as const;
const BROKEN_PIPE_STATUS = 141;

/**
 * Runs a program and ends the process with its exit status: what `main` returns, 0 for nothing, 1 when it throws.
 * The first SIGINT or SIGTERM aborts the signal, and an orderly end is then status 0; the second one, or ten seconds,
 * ends the process by force with status 1. A rejection nobody handles is printed and ends it with status 1.
 */
export async function runProgram(
  main: (signal: AbortSignal) => Promise<number | undefined | void>,
  { drainMs = 10_000, clock = systemClock }: ProgramOptions = {},
): Promise<never> {
  const stop = new AbortController();
  const onSignal = (name: NodeJS.Signals): void => {
    if (stop.signal.aborted) forceExit(`second signal (${name})`);
    stop.abort();
    void clock.sleep(drainMs).then(() => forceExit(`not stopped within ${drainMs / 1000} s`));
  };
  for (const name of STOP_SIGNALS) process.on(name, onSignal);
  // A parent that opened a channel wants this process to end with it, however the parent ends.
  if (process.connected) process.once("disconnect", () => onSignal("SIGTERM"));
  process.on("unhandledRejection", crash);
  process.on("uncaughtException", crash);
  process.stdout.on("error", endOnBrokenPipe);
  // A program that waits for nothing but a signal must not end before it comes.
  void clock.sleep(Number.POSITIVE_INFINITY);
  const status = await statusOf(main, stop.signal);
  await Promise.all([written(process.stdout), written(process.stderr)]);
  process.exit(status);
}

/** SPIRE's least umask: no writing by the group, nothing for others. Sockets and public files set their modes themselves. */
export function raiseUmask(log: Log): void {
  const least = 0o027;
  const current = process.umask();
  const raised = current | least;
  if (raised === current) return;
  process.umask(raised);
  log.info(`Current umask ${octal(current)} is too permissive; setting umask ${octal(raised)}`);
}

/** What the user sees of a failure: the cause, the next step when it's known, and the code that `errors` explains. */
export function errorText(thrown: unknown): string {
  const fault = Fault.from(thrown);
  return `Error: ${fault.message}\n${nextStep(fault)}`;
}

export function nextStep({ hint, code }: Fault): string {
  return `${hint === undefined ? "" : `Hint: ${hint}\n`}Code: ${code}\n`;
}

async function statusOf(
  main: (signal: AbortSignal) => Promise<number | undefined | void>,
  signal: AbortSignal,
): Promise<number> {
  try {
    return (await main(signal)) ?? 0;
  } catch (error) {
    if (signal.aborted && (isAbort(error) || isFault(error, "cancelled"))) return 0;
    process.stderr.write(errorText(error));
    return 1;
  }
}

/** Resolves when what was written has left the process, or never will. */
function written(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => stream.write("", () => resolve()));
}

function crash(error: unknown): never {
  process.stderr.write(errorText(error));
  process.exit(1);
}

function forceExit(reason: string): never {
  process.stderr.write(`Error: stopped by force: ${reason}\n`);
  process.exit(1);
}

/** As the kernel ends a program that ignores its reader's going away, such as `… | head -1`. */
function endOnBrokenPipe(error: NodeJS.ErrnoException): void {
  if (error.code === "EPIPE") process.exit(BROKEN_PIPE_STATUS);
  throw error;
}

function octal(mask: number): string {
  return `0${mask.toString(8).padStart(3, "0")}`;
}
