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

/** The same object, whose methods with a key count their calls. They return promises; everything else passes through. */
export function measured<T extends object>(target: T, keys: Readonly<Record<string, string>>, meter: Meter): T {
  const methods = new Map<string | symbol, unknown>();
  const get = (_: T, name: string | symbol): unknown => {
    if (methods.has(name)) return methods.get(name);
    const key = typeof name === "string" ? keys[name] : undefined;
    const value = boundMember(target, name);
    const method = key === undefined ? value : counting(value as AsyncMethod, key, meter);
    if (typeof value === "function") methods.set(name, method);
    return method;
  };
  return new Proxy(target, { get });
}

/** A method that can be called without its object. */
export function boundMember<T extends object>(target: T, name: string | symbol): unknown {
  const value: unknown = Reflect.get(target, name, target);
  return typeof value === "function" ? value.bind(target) : value;
}

type AsyncMethod = (...given: unknown[]) => Promise<unknown>;

function counting(method: AsyncMethod, key: string, meter: Meter): AsyncMethod {
  return (...given) => counted(meter, key, () => method(...given));
}
