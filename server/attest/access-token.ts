import type { Clock } from "../../src/runtime/clock.ts";

/** A token is taken anew so long before it ends. */
const SPARE_MS = 5 * 60_000;

/** As OAuth 2.0 answers with it (RFC 6749, section 5.1): `expires_in` in seconds. */
export interface AccessToken {
  readonly access_token: string;
  readonly expires_in: number;
}

/** An access token, kept while it lasts; who asks while it is being taken waits for that one. */
export class HeldAccessToken {
  readonly #clock: Clock;
  readonly #take: () => Promise<AccessToken>;
  #held: { readonly token: Promise<string>; until: number } | undefined;

  constructor(clock: Clock, take: () => Promise<AccessToken>) {
    this.#clock = clock;
    this.#take = take;
  }

  /** Throws what taking it throws; the next call tries again. */
  async get(): Promise<string> {
    if (this.#held !== undefined && this.#clock.monotonic() < this.#held.until) return this.#held.token;
    const flight = this.#take();
    const held = { token: flight.then(({ access_token }) => access_token), until: Number.POSITIVE_INFINITY };
    this.#held = held;
    held.token.catch(() => undefined);
    try {
      const { access_token, expires_in } = await flight;
      held.until = this.#clock.monotonic() + expires_in * 1000 - SPARE_MS;
      return access_token;
    } catch (error) {
      this.#held = undefined;
      throw error;
    }
  }
}
