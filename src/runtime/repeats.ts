import type { Clock } from "./clock.ts";

/** Between two lines on the same failure at first, and at most; doubled each time. */
const QUIET_MS = { first: 10_000, most: 10 * 60_000 } as const;

/** Says which of the failures of one undertaking are worth a line: the first, another one, and the same one now and then. */
export class Repeats {
  readonly #clock: Clock;
  #text: string | undefined;
  #failures = 0;
  #quietMs: number = QUIET_MS.first;
  #quietUntil = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** How often it has failed since `over`; undefined when that has been said a short while ago. */
  worthSaying(text: string): number | undefined {
    this.#failures += 1;
    const now = this.#clock.monotonic();
    const isSame = text === this.#text;
    if (isSame && now < this.#quietUntil) return undefined;
    this.#quietMs = isSame ? Math.min(2 * this.#quietMs, QUIET_MS.most) : QUIET_MS.first;
    this.#quietUntil = now + this.#quietMs;
    this.#text = text;
    return this.#failures;
  }

  /** It has succeeded. */
  over(): void {
    this.#text = undefined;
    this.#failures = 0;
  }
}
