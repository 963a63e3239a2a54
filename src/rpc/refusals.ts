import type { Clock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { Log } from "../runtime/log.ts";

const EVERY_MS = 1_000;

/** Logs connections that are turned away, one a second at most: anybody can cause them, as often as they like. */
export class Refusals {
  readonly #log: Log;
  readonly #clock: Clock;
  #loggedAt = Number.NEGATIVE_INFINITY;
  #suppressed = 0;

  constructor(log: Log, clock: Clock) {
    this.#log = log;
    this.#clock = clock;
  }

  add(reason: unknown, address?: string): void {
    const now = this.#clock.monotonic();
    if (now - this.#loggedAt < EVERY_MS) {
      this.#suppressed += 1;
      return;
    }
    const more = this.#suppressed === 0 ? undefined : this.#suppressed;
    this.#log.warn("Connection refused", { error: Fault.from(reason), address, unlogged_before: more });
    this.#loggedAt = now;
    this.#suppressed = 0;
  }
}
