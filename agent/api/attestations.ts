import type { ListAttestationsRequest__Output } from "../../src/rpc/gen/steeple/api/agent/attestation/v1/ListAttestationsRequest.ts";
import type { WorkloadAttestation } from "../../src/rpc/gen/steeple/api/agent/attestation/v1/WorkloadAttestation.ts";
import { AttestationApi } from "../../src/rpc/protos.ts";
import { type ServiceImplementation, service, unary } from "../../src/rpc/service.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { WorkloadAttestor } from "../workload/attest.ts";
import type { AttestationRecord } from "../workload/history.ts";
import type { LocalCaller } from "./caller.ts";

export interface AttestationApiOptions {
  readonly attestor: Pick<WorkloadAttestor, "recent">;
}

const ROOT = 0;

/**
 * What was found of the last callers. Selectors may tell what only a caller should know, an environment for one, and
 * delegates come to the same socket: only root and the agent's own user may see them.
 */
export function attestationApi({ attestor }: AttestationApiOptions): ServiceImplementation<LocalCaller> {
  return service<NonNullable<(typeof AttestationApi)["types"]>, LocalCaller>(AttestationApi, {
    ListAttestations: unary(async (request, { auth }) => {
      refuseOthers(auth.process.uid);
      return { attestations: chosen(attestor.recent, request).map((record) => toProto(record, request.selectors)) };
    }),
  });
}

function refuseOthers(uid: number): void {
  if (uid === ROOT || uid === process.geteuid?.()) return;
  throw new Fault("denied", "attestations are shown to root and to the user of the agent only", {
    code: "attestations-private",
    hint: "ask as root",
  });
}

/** The newest first. */
function chosen(
  records: readonly AttestationRecord[],
  { pid, limit }: Pick<ListAttestationsRequest__Output, "pid" | "limit">,
): readonly AttestationRecord[] {
  if (pid < 0 || limit < 0)
    throw new Fault("invalid", "pid and limit must not be negative", { code: "attestations-request" });
  const wanted = records.filter((record) => pid === 0 || record.pid === pid).reverse();
  return limit === 0 ? wanted : wanted.slice(0, limit);
}

function toProto(record: AttestationRecord, withSelectors: boolean): WorkloadAttestation {
  const { at, pid, uid, gid, tookMs, sources, error = "" } = record;
  const results = sources.map((source) => ({
    attestor: source.attestor,
    took_ms: source.tookMs,
    selector_count: source.selectors.length,
    selectors: withSelectors ? source.selectors.map(({ type, value }) => ({ type, value })) : [],
    error: source.error ?? "",
  }));
  return { at_ms: at.getTime(), pid, uid, gid, took_ms: tookMs, results, error };
}
