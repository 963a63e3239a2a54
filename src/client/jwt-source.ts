import { type Clock, systemClock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { TrustDomain } from "../spiffe/id.ts";
import { type JwtSvid, validateJwtSvid } from "../spiffe/jwt-svid.ts";
import { Followed, type SourceOptions } from "./followed.ts";
import { type FetchJwtSvidOptions, fetchJwtSvids, watchJwtBundles } from "./jwt.ts";
import type { JwtSvidToken, JwtSvidTokens } from "./jwt-context.ts";
import type { TokenBundle, TokenBundles } from "./token-context.ts";
import type { WatchEndpointOptions } from "./workload-api.ts";

export interface JwtSourceOptions extends SourceOptions {
  /** How far clocks may be apart. Default: one minute. */
  readonly leewayMs?: number;
}

/** Where a source has its tokens and bundles from. */
interface JwtOrigin {
  watch(options: WatchEndpointOptions): AsyncIterable<TokenBundles>;
  fetch(audience: string, options: SourceFetchOptions): Promise<JwtSvidTokens>;
}

/** As for `fetchJwtSvid`; the source knows its endpoint. */
export type SourceFetchOptions = Omit<FetchJwtSvidOptions, "socket" | "metadata">;

/**
 * Tokens for this process, and the keys to check those of others with, kept current for as long as the source is open.
 * The agent keeps tokens and renews them in time, so the source asks it for each one.
 */
export class JwtSource implements AsyncDisposable {
  readonly #followed: Followed<TokenBundles>;
  readonly #origin: JwtOrigin;
  readonly #leewayMs: number | undefined;
  readonly #clock: Clock;

  private constructor(followed: Followed<TokenBundles>, origin: JwtOrigin, options: JwtSourceOptions) {
    this.#followed = followed;
    this.#origin = origin;
    this.#leewayMs = options.leewayMs;
    this.#clock = options.clock ?? systemClock;
  }

  /** Resolves with the first bundles. Throws when the endpoint refuses for good, or the signal is aborted first. */
  static async open(options: JwtSourceOptions = {}): Promise<JwtSource> {
    const { socket, metadata } = options;
    const endpoint = { socket, ...(metadata === undefined ? {} : { metadata }) };
    const fetch: JwtOrigin["fetch"] = (audience, asked) => fetchJwtSvids(audience, { ...asked, ...endpoint });
    return JwtSource.over({ watch: watchJwtBundles, fetch }, options);
  }

  /** As `open`, with tokens and bundles that come another way. */
  static async over(origin: JwtOrigin, options: JwtSourceOptions): Promise<JwtSource> {
    return new JwtSource(await Followed.open(origin.watch, options), origin, options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#followed[Symbol.asyncDispose]();
  }

  /** A token of the default identity, or of the one asked for. Throws what the endpoint answers. */
  async fetch(audience: string, options: SourceFetchOptions = {}): Promise<JwtSvidToken> {
    const [first] = await this.#origin.fetch(audience, options);
    return first;
  }

  /** A token of the identity that the operator gave this hint. Throws `not_found`: the default is not a substitute. */
  async fetchByHint(audience: string, hint: string, options: SourceFetchOptions = {}): Promise<JwtSvidToken> {
    const tokens = await this.#origin.fetch(audience, options);
    const found = tokens.find((svid) => svid.hint === hint);
    if (found !== undefined) return found;
    throw new Fault("not_found", `no JWT-SVID has the hint "${hint}"`, { code: "no-such-hint" });
  }

  /** Undefined for a trust domain that is not trusted. Throws `denied` when the bundles were withdrawn. */
  bundle(trustDomain: TrustDomain): TokenBundle | undefined {
    return this.#followed.value.bundles.get(trustDomain);
  }

  /**
   * Checks a token by the bundles that are held, without asking the agent. Throws `denied` with the reason, and never
   * gives claims of a token that is not good.
   */
  validate(token: string, audience: string | readonly string[]): Promise<JwtSvid> {
    const { bundles } = this.#followed.value;
    const leewayMs = this.#leewayMs;
    return validateJwtSvid({
      token,
      audience: [audience].flat(),
      authorities: (trustDomain) => bundles.get(trustDomain)?.authorities,
      at: this.#clock.now(),
      ...(leewayMs === undefined ? {} : { leewayMs }),
    });
  }

  /** The bundles, now and after each change; undefined while there are none. Ends with the signal or the source. */
  watch(signal: AbortSignal): AsyncGenerator<TokenBundles | undefined, void, undefined> {
    return this.#followed.watch(signal);
  }
}
