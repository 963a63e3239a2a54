import type { Call } from "../../src/rpc/caller.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log, LogFields } from "../../src/runtime/log.ts";
import type { CachedEntry } from "../cache/entry.ts";
import type { HeldJwt } from "../cache/jwt.ts";

export interface JwtTokens {
  fetch(entry: CachedEntry, audience: readonly string[], signal: AbortSignal): Promise<HeldJwt>;
}

export interface TokenWish {
  readonly entry: CachedEntry;
  readonly audience: readonly string[];
}

/** What goes to the log besides the SPIFFE ID. */
interface LoggedFields {
  readonly failure?: LogFields;
  readonly success?: (held: HeldJwt) => LogFields;
}

/** All audiences of a request together: what comes to a token over its limit anyway. */
const MAX_AUDIENCE_CHARACTERS = 8 * 1024;

/** One JWT-SVID, for whichever API. Throws `unavailable` when there is none to be had. */
export async function fetchToken(
  tokens: JwtTokens,
  { entry, audience }: TokenWish,
  { signal, auth: { log } }: Call<{ readonly log: Log }>,
  { failure, success }: LoggedFields = {},
): Promise<HeldJwt> {
  const spiffe_id = entry.spiffeId;
  try {
    const held = await tokens.fetch(entry, audience, signal);
    log.debug("Fetched JWT SVID", { ...success?.(held), spiffe_id });
    return held;
  } catch (error) {
    signal.throwIfAborted();
    const { message } = Fault.from(error);
    log.error("Could not fetch JWT-SVID", { ...failure, spiffe_id, error: message });
    throw new Fault("unavailable", `could not fetch JWT-SVID: ${message}`, {
      code: "jwt-svid-unavailable",
      cause: error,
    });
  }
}

/** The distinct audiences of a request. Throws `invalid` for none, and for more than a token can carry. */
export function audienceOf(values: readonly string[], log: Log): readonly string[] {
  const audience = [...new Set(values.filter((value) => value !== ""))];
  if (audience.length === 0) throw missing(log, "audience");
  if (audience.reduce((sum, { length }) => sum + length, 0) > MAX_AUDIENCE_CHARACTERS)
    throw new Fault("invalid", "audience is too long", { code: "audience-too-long" });
  return audience;
}

/** What to throw at a request without this parameter; logged. */
export function missing(log: Log, what: "audience" | "svid"): Fault {
  log.error(`Missing required ${what} parameter`);
  return new Fault("invalid", `${what} must be specified`, { code: `${what}-missing` });
}
