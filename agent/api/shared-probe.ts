import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { SharedFlights } from "../cache/shared-flights.ts";

/** Resolves when the Workload API answers; throws the reason when it does not. */
type Probe = (signal: AbortSignal) => Promise<void>;

const KEPT_MS = 1_000;

/**
 * One look for all who ask at the same time, and within a second of its end: each is a connection and an attestation of
 * the agent itself, and anybody may ask as often as he likes.
 */
export function sharedProbe(probe: Probe, clock: Clock): Probe {
  const flights = new SharedFlights<Fault | undefined>();
  let last: { readonly at: number; readonly problem: Fault | undefined } | undefined;
  const look = async (signal: AbortSignal): Promise<Fault | undefined> => {
    const problem = await probe(signal).then(
      () => undefined,
      (error: unknown) => Fault.from(error),
    );
    if (!signal.aborted) last = { at: clock.monotonic(), problem };
    return problem;
  };
  return async (signal) => {
    const isFresh = last !== undefined && clock.monotonic() - last.at < KEPT_MS;
    const problem = isFresh ? last?.problem : await flights.join("", look, signal);
    if (problem !== undefined) throw problem;
  };
}
