import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";

/** What a chain that leads to none of the bundle's authorities is refused with. */
const STRANGER_CODES: ReadonlySet<string> = new Set(["unknown-authority", "certificate-signature"]);

/** Remembers since when the server has been showing chains that the agent's bundle does not vouch for. */
export class ServerTrust {
  readonly #clock: Clock;
  #since: number | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Milliseconds; undefined while the server is trusted. */
  get strangerForMs(): number | undefined {
    return this.#since === undefined ? undefined : this.#clock.monotonic() - this.#since;
  }

  /** Other authorities are trusted from now on. */
  regained(): void {
    this.#since = undefined;
  }

  /** Runs a verification of the server, and throws what it throws. */
  watch(verify: () => void): void {
    try {
      verify();
      this.#since = undefined;
    } catch (error) {
      if (STRANGER_CODES.has(Fault.from(error).code)) this.#since ??= this.#clock.monotonic();
      throw error;
    }
  }
}
