import { systemClock } from "../../src/runtime/clock.ts";
import { rfc3339 } from "../../src/runtime/logfmt.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { int32From } from "./match.ts";

/** Milliseconds as the whole seconds of a request, rounded up. Throws `invalid`. */
export function secondsOf(ttlMs: number): number {
  return int32From(Math.ceil(ttlMs / 1000), "TTL");
}

/** Between signing and reading, and to the whole second that a certificate's end is. */
const SLACK_MS = 2000;

/** Says on standard error when the server gave less time than was asked for. */
export function warnOfCappedTtl(io: Io, kind: string, { expires, ttlMs }: { expires: Date; ttlMs: number }): void {
  if (expires.getTime() - systemClock.now().getTime() >= ttlMs - SLACK_MS) return;
  io.stderr.write(
    `${kind} lifetime was capped shorter than specified ttl; expires ${JSON.stringify(rfc3339(expires, false))}\n`,
  );
}

/** The `exp` of a token, unverified; undefined when there is none. */
export function tokenExpiry(token: string): Date | undefined {
  try {
    const claims = JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString("utf8")) as object;
    const exp = (claims as { readonly exp?: unknown }).exp;
    return typeof exp === "number" ? new Date(exp * 1000) : undefined;
  } catch {
    return undefined;
  }
}
