import { spiffeReasonOf } from "../rpc/status.ts";
import { Fault, type FaultKind, isFault } from "../runtime/fault.ts";

interface Situation {
  readonly kind: FaultKind;
  readonly reason: string;
  readonly code: string;
  readonly hint: string;
}

/** SPIFFE Broker API, section 4.8. */
const SITUATIONS: readonly Situation[] = [
  {
    kind: "invalid",
    reason: "WORKLOAD_REFERENCE_INVALID",
    code: "workload-reference-invalid",
    hint: "use a reference of a type that the endpoint knows",
  },
  {
    kind: "not_found",
    reason: "WORKLOAD_NOT_FOUND",
    code: "workload-not-found",
    hint: "check that the referenced workload still runs, where the endpoint can see it",
  },
  {
    kind: "denied",
    reason: "WORKLOAD_NOT_ENTITLED",
    code: "workload-not-entitled",
    hint: "create a registration entry for the workload, and see that this broker may ask for it",
  },
];

/**
 * What the endpoint answered, under the stable code of its situation: by the reason when it is given, or else by the
 * status alone. A code of the endpoint's own, such as `broker-not-authorized`, stays.
 */
export function brokerFault(thrown: unknown): unknown {
  if (!isFault(thrown)) return thrown;
  const reason = spiffeReasonOf(thrown);
  if (reason === undefined && thrown.code !== thrown.kind) return thrown;
  const found = SITUATIONS.find((one) => one.kind === thrown.kind && (reason === undefined || one.reason === reason));
  if (found === undefined) return thrown;
  const { message, kind, details, hint = found.hint } = thrown;
  return new Fault(kind, message, { code: found.code, hint, details, cause: thrown });
}
