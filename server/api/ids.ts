import { idFromProto } from "../../src/rpc/convert.ts";
import type { SPIFFEID__Output } from "../../src/rpc/gen/spire/api/types/SPIFFEID.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import {
  checkMemberId,
  checkWorkloadId,
  isAgentId,
  pathOf,
  type SpiffeId,
  type TrustDomain,
} from "../../src/spiffe/id.ts";
import { checked } from "./fail.ts";

// biome-ignore lint/suspicious/noControlCharactersInRegex: exactly these are refused, as they reach terminals
export const CONTROL = /[\u0000-\u001f\u007f-\u009f]/;

/** IDs as they arrive: byte for byte, never decoded and never normalised (T-S1, T-S2). */
export type ProtoId = SPIFFEID__Output | null | undefined;

/** Any pathful ID of the trust domain. Throws `invalid`. */
export function memberId(trustDomain: TrustDomain, proto: ProtoId): SpiffeId {
  const id = idFromProto(proto);
  checkMemberId(id, trustDomain);
  return id;
}

/** An ID that a workload may have: outside the reserved namespace (T-S10). Throws `invalid`. */
export function workloadId(trustDomain: TrustDomain, proto: ProtoId): SpiffeId {
  const id = idFromProto(proto);
  checkWorkloadId(id, trustDomain);
  return id;
}

/** The agent that a request names. Logs, and throws `invalid`. */
export function requestedAgent(log: Log, trustDomain: TrustDomain, id: ProtoId): SpiffeId {
  return checked(log, "invalid agent ID", () => agentIdOf(trustDomain, id));
}

/** An ID in the agent namespace. Throws `invalid`. */
function agentIdOf(trustDomain: TrustDomain, proto: ProtoId): SpiffeId {
  const id = idFromProto(proto);
  if (pathOf(id) !== "") checkMemberId(id, trustDomain);
  if (isAgentId(id)) return id;
  const reason = pathOf(id) === "" ? "path is empty" : "path is not in the agent namespace";
  throw new Fault("invalid", `"${id}" is not an agent in trust domain "${trustDomain}"; ${reason}`, {
    code: "spiffe-id-role",
  });
}
