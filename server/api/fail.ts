import { Fault, type FaultKind, isFault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";

const HIDING: ReadonlySet<FaultKind> = new Set(["not_found", "internal"]);

/**
 * Logs and returns a fault worded `<message>: <cause>`, as SPIRE words it. The cause of `not_found` and `internal` stays
 * in the log: the first says nothing that helps, the second is none of the caller's business.
 */
export function failure(log: Log, kind: FaultKind, message: string, cause?: unknown): Fault {
  const reason = cause === undefined ? undefined : Fault.from(cause);
  const said = reason === undefined || reason.message === message;
  const fields = said || kind === "not_found" ? {} : { error: reason.message };
  log.error(kind === "invalid" ? `Invalid argument: ${message}` : capitalized(message), fields);
  const hidden = said || HIDING.has(kind) || reason.kind === "internal";
  return new Fault(kind, hidden ? message : `${message}: ${reason.message}`, {
    code: reason?.code ?? kind,
    cause: reason,
    details: reason?.details ?? [],
    ...(reason?.hint === undefined ? {} : { hint: reason.hint }),
  });
}

/** As `failure`, with the kind of the cause: what the store says is what the caller learns. */
export function passedOn(log: Log, message: string, cause: unknown): Fault {
  return failure(log, Fault.from(cause).kind, message, cause);
}

/** What a failure is called: in general, or by the kind of its cause. */
export type Words = Readonly<Partial<Record<FaultKind, string>>> & { readonly otherwise: string };

/** Runs `work` and words what it throws; words of a kind stand alone, without the cause. */
export async function attempt<T>(log: Log, words: string | Words, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (typeof words === "string") throw passedOn(log, words, error);
    const { kind } = Fault.from(error);
    const own = words[kind];
    throw own === undefined ? passedOn(log, words.otherwise, error) : failure(log, kind, own);
  }
}

/** Runs a pure check and words what it throws as the caller's mistake. */
export function checked<T>(log: Log, message: string, check: () => T): T {
  try {
    return check();
  } catch (error) {
    throw failure(log, isFault(error) ? error.kind : "internal", message, error);
  }
}

function capitalized(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
