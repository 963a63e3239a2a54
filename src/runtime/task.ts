import type { Clock } from "./clock.ts";
import { isAbort } from "./fault.ts";

export type Task = (signal: AbortSignal) => Promise<void>;

/** Runs `work`, waits `ms`, and again, until the signal ends it by throwing. `work` handles its own failures. */
export async function every(clock: Clock, ms: () => number, work: Task, signal: AbortSignal): Promise<never> {
  for (;;) {
    await work(signal);
    await clock.sleep(ms(), signal);
  }
}

export interface BackoffOptions {
  readonly firstMs: number;
  readonly maxMs: number;
  /** Growth per failure. Default 1.5. */
  readonly factor?: number;
  /** Share of the delay that varies to either side. Default 0.1. */
  readonly jitter?: number;
}

/** Growing, jittered delays. Not shared between callers. */
export class Backoff {
  readonly #options: Required<BackoffOptions>;
  readonly #clock: Clock;
  #next: number;

  constructor(clock: Clock, options: BackoffOptions) {
    this.#clock = clock;
    this.#options = { factor: 1.5, jitter: 0.1, ...options };
    this.#next = options.firstMs;
  }

  /** The next delay in milliseconds. */
  next(): number {
    const base = Math.min(this.#next, this.#options.maxMs);
    this.#next = Math.min(this.#next * this.#options.factor, this.#options.maxMs);
    return base * (1 + this.#options.jitter * (2 * this.#clock.random() - 1));
  }

  reset(): void {
    this.#next = this.#options.firstMs;
  }
}

export interface RetryOptions extends BackoffOptions {
  /** Stop retrying after this long; the last error is thrown. Default: never. */
  readonly giveUpAfterMs?: number;
  /** False ends the retries at once with that error. Default: everything is retried. */
  readonly retryable?: (error: unknown) => boolean;
  readonly onRetry?: (error: unknown, delayMs: number) => void;
  /** Instead of sleeping for so long: may be over sooner, or later. */
  readonly wait?: (error: unknown, delayMs: number, signal: AbortSignal) => Promise<void>;
}

/** Calls `work` until it succeeds. Throws the last error, or the signal's reason. */
export async function retry<T>(
  clock: Clock,
  options: RetryOptions,
  work: (signal: AbortSignal) => Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  const backoff = new Backoff(clock, options);
  const started = clock.monotonic();
  for (;;) {
    try {
      return await work(signal);
    } catch (error) {
      if (signal.aborted || options.retryable?.(error) === false) throw error;
      const delay = backoff.next();
      if (options.giveUpAfterMs !== undefined && clock.monotonic() - started + delay > options.giveUpAfterMs)
        throw error;
      options.onRetry?.(error, delay);
      await (options.wait?.(error, delay, signal) ?? clock.sleep(delay, signal));
    }
  }
}

/** One run in flight, shared by all who ask while it lasts. */
export class SingleFlight<T> {
  readonly #work: () => Promise<T>;
  #inFlight: Promise<T> | undefined;

  constructor(work: () => Promise<T>) {
    this.#work = work;
  }

  run(): Promise<T> {
    this.#inFlight ??= this.#work().finally(() => {
      this.#inFlight = undefined;
    });
    return this.#inFlight;
  }
}

/**
 * Runs all tasks until `stop` is aborted or one fails; the first failure aborts the rest and is thrown once all have
 * ended. A task that returns normally just ends.
 */
export async function supervise(tasks: readonly Task[], stop: AbortController): Promise<void> {
  let failure: { readonly cause: unknown } | undefined;
  await Promise.all(
    tasks.map(async (run) => {
      try {
        await run(stop.signal);
      } catch (cause) {
        if (stop.signal.aborted && (isAbort(cause) || cause === stop.signal.reason)) return;
        failure ??= { cause };
        stop.abort(cause);
      }
    }),
  );
  if (failure !== undefined) throw failure.cause;
}

/** A controller that is aborted with the signal; aborting it leaves the signal's other users alone. */
export function followerOf(signal: AbortSignal): AbortController {
  const follower = new AbortController();
  const abort = (): void => follower.abort(signal.reason);
  if (signal.aborted) abort();
  signal.addEventListener("abort", abort, { once: true });
  return follower;
}
