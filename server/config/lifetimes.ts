import type { ConfigReader } from "../../src/runtime/config.ts";
import { formatDuration, formatRoundDuration } from "../../src/runtime/duration.ts";
import { activateAt, BUNDLE_SPREAD_MS, prepareAt } from "../../src/spiffe/lifetime.ts";

/** SVIDs are never longer than this, so that a scheduled change of authority can't cut them short. */
const LONGEST_SVID_MS = 7 * 24 * 3_600_000;
/** The share of an authority's lifetime that is left when the next one takes over. */
const SHARE_OF_CA_LIFETIME = 6;

export interface SvidLifetime {
  readonly key: string;
  readonly ms: number;
}

/**
 * Refuses a lifetime that somebody asked for and that no authority can ever give. Warns, in SPIRE's words, of each one
 * that `ca_ttl` can't guarantee.
 */
export function judgeLifetimes(lifetimes: readonly SvidLifetime[], caMs: number, reader: ConfigReader): void {
  for (const { key, ms } of lifetimes) {
    const path = `server.${key}`;
    if (ms > caMs && reader.isSet(path)) reader.fault(path, impossible(key, ms, caMs));
    else if (ms > longestFor(caMs)) reader.warn(path, warning(key, ms, caMs));
  }
}

/** Refuses a lifetime of authorities in which the next one signs before every agent has learned of it. */
export function judgeRotation(caMs: number, reader: ConfigReader): void {
  const [start, end] = [new Date(0), new Date(caMs)];
  const [prepared, active] = [prepareAt(start, end).getTime(), activateAt(start, end).getTime()];
  const between = active - prepared;
  if (between >= BUNDLE_SPREAD_MS) return;
  const [ca, from, to, left] = [caMs, prepared, active, between].map(inTenths);
  const [needed, least] = [BUNDLE_SPREAD_MS, BUNDLE_SPREAD_MS * (caMs / between)].map(inTenths);
  reader.fault(
    "server.ca_ttl",
    `ca_ttl (${ca}) is too short for authorities to change without an outage. The next one is published after ca_ttl/2 = ${from} and signs after ca_ttl*5/6 = ${to}: ${left} later, and agents take up to ${needed} to learn of it. Set ca_ttl to 3 * ${needed} = ${least} or more`,
  );
}

function inTenths(ms: number): string {
  return formatDuration(Math.round(ms / 100) * 100);
}

function impossible(key: string, ms: number, caMs: number): string {
  const [asked, ca, longest] = [ms, caMs, longestFor(caMs)].map(formatRoundDuration);
  const needed = formatRoundDuration(ms * SHARE_OF_CA_LIFETIME);
  return `${key} (${asked}) is longer than ca_ttl (${ca}), so that no SVID could live as long as asked. An authority signs until ${SHARE_OF_CA_LIFETIME - 1}/${SHARE_OF_CA_LIFETIME} of its life and then still has ca_ttl/${SHARE_OF_CA_LIFETIME} = ${longest}: set ${key} to ${longest} or less, or ca_ttl to ${SHARE_OF_CA_LIFETIME} * ${asked} = ${needed} or more`;
}

function longestFor(caMs: number): number {
  return Math.min(caMs / SHARE_OF_CA_LIFETIME, LONGEST_SVID_MS);
}

function warning(key: string, ms: number, caMs: number): string {
  const longest = formatRoundDuration(longestFor(caMs));
  const whole = `to guarantee the full ${key} lifetime when CA rotations are scheduled.`;
  if (ms < LONGEST_SVID_MS) {
    const neededCa = formatRoundDuration(ms * SHARE_OF_CA_LIFETIME);
    return `${key} is too high for the configured ca_ttl value. SVIDs with shorter lifetimes may be issued. Please set ${key} to ${longest} or less, or the ca_ttl to ${neededCa} or more, ${whole}`;
  }
  if (caMs < LONGEST_SVID_MS * SHARE_OF_CA_LIFETIME) {
    const neededCa = formatRoundDuration(LONGEST_SVID_MS * SHARE_OF_CA_LIFETIME);
    return `${key} is too high and the ca_ttl is too low. SVIDs with shorter lifetimes may be issued. Please set ${key} to ${formatRoundDuration(LONGEST_SVID_MS)} or less, and the ca_ttl to ${neededCa} or more, ${whole}`;
  }
  return `${key} is too high. SVIDs with shorter lifetimes may be issued. Please set ${key} to ${longest} or less ${whole}`;
}
