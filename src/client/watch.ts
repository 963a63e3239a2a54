import { type Clock, systemClock } from "../runtime/clock.ts";
import { Fault, isFault } from "../runtime/fault.ts";
import { Backoff } from "../runtime/task.ts";

export interface WatchOptions {
  /** Ends the watch. */
  readonly signal: AbortSignal;
  readonly clock?: Clock;
  /** Told of every failure that the watch survives. `denied` means that what was issued before is withdrawn. */
  readonly onError?: (fault: Fault) => void;
}

/** Opens one stream; `signal` ends it. */
export type OpenStream<M> = (signal: AbortSignal) => AsyncIterable<M>;

/** What an endpoint's document says of its answers. */
export interface AnswerRules {
  /** For messages. */
  readonly endpoint: string;
  /** True for what ends a watch. `issued`: something usable had come before, on whichever stream. */
  isFinal(fault: Fault, issued: boolean): boolean;
}

/** After these the endpoint would answer the same again. SPIFFE Workload Endpoint, section 6 and appendix A. */
const WORKLOAD_API: AnswerRules = {
  endpoint: "the Workload API",
  isFinal: (fault) => isFault(fault, "invalid") || isFault(fault, "unimplemented"),
};

/** Two reconnects without a pause are at least this far apart. */
const AT_ONCE_INTERVAL_MS = 1_000;

/**
 * Follows a stream for as long as the signal lets it: a stream that broke after it had delivered is opened again at
 * once, others after a growing delay. A message that cannot be read is reported and dropped. Throws when the endpoint refuses for
 * good.
 */
export async function* watch<M, T>(
  open: OpenStream<M>,
  read: (message: M) => T,
  options: WatchOptions,
  rules: AnswerRules = WORKLOAD_API,
): AsyncGenerator<T, void, undefined> {
  const { signal, clock = systemClock, onError = () => undefined } = options;
  const pace = new Pace(clock);
  let issued = false;
  while (!signal.aborted) {
    try {
      for await (const message of open(signal)) {
        pace.delivered();
        const value = attempt(() => read(message), { onError, rules });
        if (value === undefined) continue;
        issued = true;
        yield value.read;
      }
      if (!signal.aborted)
        onError(new Fault("unavailable", `${rules.endpoint} ended the stream`, { code: "stream-ended" }));
    } catch (thrown) {
      if (signal.aborted) return;
      const fault = Fault.from(thrown);
      if (rules.isFinal(fault, issued)) throw fault;
      if (isFault(fault, "denied")) pace.refused();
      onError(fault);
    }
    await sleepQuietly(clock, pace.delayMs(), signal);
  }
}

interface Complaints {
  readonly onError: (fault: Fault) => void;
  readonly rules: AnswerRules;
}

function attempt<T>(read: () => T, { onError, rules }: Complaints): { readonly read: T } | undefined {
  try {
    return { read: read() };
  } catch (error) {
    const { message } = Fault.from(error);
    onError(
      new Fault("invalid", `unusable answer from ${rules.endpoint}: ${message}`, {
        code: "unusable-answer",
        cause: error,
      }),
    );
    return undefined;
  }
}

async function sleepQuietly(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  try {
    if (ms > 0) await clock.sleep(ms, signal);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** How long to wait before the next stream. */
class Pace {
  readonly #clock: Clock;
  readonly #backoff: Backoff;
  #delivered = false;
  #lastAtOnce = Number.NEGATIVE_INFINITY;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#backoff = new Backoff(clock, { firstMs: 1_000, maxMs: 30_000, factor: 2, jitter: 0.1 });
  }

  delivered(): void {
    this.#delivered = true;
    this.#backoff.reset();
  }

  /** An answer, not a loss: there is no hurry. */
  refused(): void {
    this.#delivered = false;
  }

  delayMs(): number {
    const now = this.#clock.monotonic();
    const atOnce = this.#delivered && now - this.#lastAtOnce >= AT_ONCE_INTERVAL_MS;
    this.#delivered = false;
    if (!atOnce) return this.#backoff.next();
    this.#lastAtOnce = now;
    return 0;
  }
}
