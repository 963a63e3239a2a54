import type { Call } from "../../src/rpc/caller.ts";
import { idToProto } from "../../src/rpc/convert.ts";
import type { X509SVID } from "../../src/rpc/gen/spire/api/types/X509SVID.ts";
import type { Service } from "../../src/rpc/protos.ts";
import type { Handlers } from "../../src/rpc/service.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { SpiffeId } from "../../src/spiffe/id.ts";
import type { X509Svid } from "../ca/issue.ts";
import type { Authorization } from "./admission.ts";

/** Handlers of a service by method; types of requests and responses are checked, and none may be left out. */
export type HandlersOf<S> = S extends Service<infer M> ? Handlers<M, Authorization> : never;

export function svidMessage(svid: X509Svid): X509SVID {
  return {
    id: idToProto(svid.id),
    cert_chain: svid.chain.map((der) => Buffer.from(der)),
    expires_at: Math.floor(svid.notAfter.getTime() / 1000),
  };
}

/** An agent, by the SVID with which it calls. */
interface Caller {
  readonly id: SpiffeId;
  readonly serialNumber: string;
  readonly expiresAt: Date;
}

/** The agent that calls, by the certificate that was verified; for methods that only agents may call. */
export function agentOf(call: Call<Authorization>): Caller {
  const { peer } = call.caller;
  const leaf = peer?.chain[0];
  if (call.auth.as !== "agent" || peer === undefined || leaf === undefined) {
    throw new Fault("internal", "caller ID missing from request context");
  }
  return { id: peer.id, serialNumber: leaf.serialNumber, expiresAt: leaf.notAfter };
}
