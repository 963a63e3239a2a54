import { spiffeReason } from "../../src/rpc/status.ts";
import { Fault, type FaultKind } from "../../src/runtime/fault.ts";
import { OBJECT_ACCESS_DENIED } from "../workload/references.ts";

// What the SPIFFE Broker API answers for a reference, each with the reason that section 4.8 gives it.

export function invalidReference(message: string, cause?: unknown): Fault {
  return new Fault("invalid", message, {
    code: "workload-reference-invalid",
    details: [spiffeReason("WORKLOAD_REFERENCE_INVALID")],
    cause,
  });
}

function notFound(cause?: unknown): Fault {
  return new Fault("not_found", "the referenced workload does not exist", {
    code: "workload-not-found",
    details: [spiffeReason("WORKLOAD_NOT_FOUND")],
    cause,
  });
}

export function notEntitled(): Fault {
  return new Fault("denied", "no identity issued", {
    code: "workload-not-entitled",
    details: [spiffeReason("WORKLOAD_NOT_ENTITLED")],
    hint: "create a registration entry whose selectors the referenced workload has, below this agent; if there is one, see the agent's log",
  });
}

/** A process that cannot be verified has exited, or runs another program or user: it is another workload by now. */
const GONE: ReadonlySet<FaultKind> = new Set(["not_found", "unauthenticated", "denied"]);

/** What resolving or verifying a reference threw, as the broker learns it. */
export function resolutionFailed(error: unknown): Fault {
  const fault = Fault.from(error);
  if (fault.code === OBJECT_ACCESS_DENIED) return fault;
  if (GONE.has(fault.kind)) return notFound(error);
  if (fault.kind === "invalid") return invalidReference(fault.message, error);
  if (fault.kind === "cancelled" || fault.kind === "timeout") return fault;
  return new Fault("unavailable", "workload attestation failed", {
    code: "workload-attestation-failed",
    cause: error,
  });
}
