import { createHash } from "node:crypto";
import { parseJws } from "../../src/crypto/jws.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import type { Log } from "../../src/runtime/log.ts";
import { tokensHeld } from "../events.ts";
import { rotationOfNew } from "../node/rotation.ts";
import type { JwtRequest, SignedToken } from "../node/upstream.ts";
import type { CachedEntry } from "./entry.ts";
import { type HeldToken, TokenCache, type TokenCacheOptions, type WantedToken, wrongToken } from "./tokens.ts";

export type HeldJwt = HeldToken;

interface JwtUpstream {
  signJwt(request: JwtRequest, signal: AbortSignal): Promise<SignedToken>;
}

export interface JwtCacheOptions extends TokenCacheOptions {
  readonly upstream: JwtUpstream;
}

interface WantedJwt extends WantedToken {
  readonly audience: readonly string[];
}

/** JWT-SVIDs by entry, its version, and the exact set of audiences (T-J6). */
export class JwtCache extends TokenCache<WantedJwt, HeldJwt> {
  readonly #upstream: JwtUpstream;
  readonly #clock: Clock;
  readonly #log: Log;

  constructor(options: JwtCacheOptions) {
    super(options);
    this.#log = options.log;
    this.#upstream = options.upstream;
    this.#clock = options.clock;
  }

  /**
   * The audience is without repeats. An entry whose tokens carry a `jti` gets a new one every time. Throws what the
   * server answered, or `internal` when that was not what was asked for.
   */
  fetch(entry: CachedEntry, audience: readonly string[], signal: AbortSignal): Promise<HeldJwt> {
    const wanted = { entry, audience, key: keyOf(entry, audience) };
    return entry.jwtSvidIncludeJti ? this.request(wanted, signal) : this.held(wanted, signal);
  }

  protected override sized(held: number): void {
    tokensHeld(this.#log, held);
  }

  protected override async attempt(wanted: WantedJwt, deadlineMs: number, signal: AbortSignal): Promise<HeldJwt> {
    const { entry, audience } = wanted;
    const answer = await this.#upstream.signJwt({ entryId: entry.id, audience, deadlineMs }, signal);
    const { token, issuedAt, expiresAt } = answer;
    const rotation = rotationOfNew({ notBefore: issuedAt, notAfter: expiresAt }, { clock: this.#clock });
    return Object.freeze({ token, keyId: checkedKeyId(wanted, answer), issuedAt, expiresAt, rotation });
  }
}

/** The token is for this identity and these audiences, or it is nothing to serve. */
function checkedKeyId({ entry, audience }: WantedJwt, { token, id }: SignedToken): string {
  const { header, payload } = parseJws(token);
  const { sub, aud } = payload;
  if (id !== entry.spiffeId || sub !== entry.spiffeId) throw wrongToken("the server signed a JWT-SVID for another ID");
  const values: readonly unknown[] = Array.isArray(aud) ? aud : [aud];
  if (values.length !== audience.length || !audience.every((value) => values.includes(value)))
    throw wrongToken("the server signed a JWT-SVID for another audience");
  if (typeof header["kid"] !== "string") throw wrongToken("the server signed a JWT-SVID without a key ID");
  return header["kid"];
}

/** Audiences may be long, so only their digest is kept. */
function keyOf(entry: CachedEntry, audience: readonly string[]): string {
  const { id, createdAt, revisionNumber, spiffeId } = entry;
  const parts = [id, createdAt, revisionNumber, spiffeId, [...audience].sort()];
  return createHash("sha256").update(JSON.stringify(parts)).digest("base64");
}
