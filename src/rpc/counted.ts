import type { Clock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import { type MetricLabels, type Metrics, recordCall } from "../runtime/metrics.ts";
import { codeNameOf, codeOf } from "./status.ts";

/** Where a call is counted, and by which clock. */
export interface Meter {
  readonly metrics: Metrics;
  readonly clock: Pick<Clock, "monotonic">;
}

/** Runs `work` as one of SPIRE's call counters, with its outcome as a gRPC code. Throws what `work` throws. */
export async function counted<T>(
  { metrics, clock }: Meter,
  key: string,
  work: () => Promise<T>,
  labels?: MetricLabels,
): Promise<T> {
  const started = clock.monotonic();
  let status = "OK";
  try {
    return await work();
  } catch (error) {
    status = codeNameOf(codeOf(Fault.from(error)));
    throw error;
  } finally {
    recordCall(metrics, key, { status, ms: clock.monotonic() - started }, labels);
  }
}
