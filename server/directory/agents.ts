import type { SpiffeId } from "../../src/spiffe/id.ts";
import type { AttestedNode } from "../store/store.ts";

/** What the server thinks of an agent's certificate. `pending` is a renewed one that is used for the first time. */
export type AgentStanding =
  | { readonly state: "active" }
  | { readonly state: "pending" }
  | {
      readonly state: "denied";
      readonly reason: "expired" | "not_attested" | "banned" | "not_active";
      readonly message: string;
    };

/** The certificate as the TLS layer verified it. `serialNumber` is decimal. */
export interface AgentCertificate {
  readonly serialNumber: string;
  readonly notAfter: Date;
}

/** A ban empties the serial and keeps the record. */
export function isBanned(node: AttestedNode): boolean {
  return node.serialNumber === "";
}

/**
 * Judges by the node's record alone, in SPIRE's order: a certificate that is valid for TLS is of no use once its serial
 * is not the node's current or pending one (T-N14, T-C5).
 */
export function standingOf(
  id: SpiffeId,
  node: AttestedNode | undefined,
  svid: AgentCertificate,
  now: Date,
): AgentStanding {
  if (now > svid.notAfter) return denied("expired", `agent "${id}" SVID is expired`);
  if (node === undefined || node.id !== id) return denied("not_attested", `agent "${id}" is not attested`);
  if (isBanned(node)) return denied("banned", `agent "${id}" is banned`);
  if (svid.serialNumber === node.serialNumber) return { state: "active" };
  if (svid.serialNumber !== "" && svid.serialNumber === node.newSerialNumber) return { state: "pending" };
  return denied(
    "not_active",
    `agent "${id}" expected to have serial number ${node.serialNumber}; has ${svid.serialNumber}`,
  );
}

function denied(reason: "expired" | "not_attested" | "banned" | "not_active", message: string): AgentStanding {
  return { state: "denied", reason, message };
}
