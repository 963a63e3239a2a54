import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";

export interface Deadline {
  readonly ms: number;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

/** Result of the work, waited for no longer than for the deadline or the signal. Throws `timeout` at the deadline. */
export async function withDeadline<T>(
  { ms, clock, signal }: Deadline,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  signal.throwIfAborted();
  const late = new AbortController();
  const over = new AbortController();
  void clock.sleep(ms, over.signal).then(
    () => late.abort(new Fault("timeout", `timed out after ${ms / 1000} s`)),
    () => undefined,
  );
  const either = AbortSignal.any([signal, late.signal]);
  try {
    return await untilAborted(work(either), either);
  } finally {
    over.abort();
  }
}

function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = (): void => reject(Fault.from(signal.reason));
    signal.addEventListener("abort", stop, { once: true });
    void work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}
