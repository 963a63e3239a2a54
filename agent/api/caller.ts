import type { Call } from "../../src/rpc/caller.ts";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";

/** A local process that may ask; who it is for the purpose of identities is up to attestation. */
export interface LocalCaller {
  readonly process: PeerProcess;
  /** The agent asking itself whether it works: not worth a line in the log. */
  readonly isAgent: boolean;
  /** Carries the PID. */
  readonly log: Log;
}

const HEADER = "workload.spiffe.io";
/**
 * What stock clients call without the header: health checks, whose answer says nothing about anybody, and Envoy. A
 * confused web client reaches neither: it would have to speak gRPC over HTTP/2 to a Unix socket.
 */
const WITHOUT_HEADER = ["/grpc.health.v1.Health/", "/envoy.service.secret.v3.SecretDiscoveryService/"] as const;

/**
 * Lets local processes in that send the security header: a request that a confused web client was made to send has
 * none. Runs before anything is asked about the caller. SPIFFE Workload Endpoint, section 3; T-W5.
 */
export async function admitLocalCaller(call: Call): Promise<LocalCaller> {
  if (!WITHOUT_HEADER.some((service) => call.method.startsWith(service)) && !hasSecurityHeader(call)) {
    throw new Fault("invalid", "security header missing from request", {
      code: "security-header-missing",
      hint: `send the metadata "${HEADER}: true" with every request`,
    });
  }
  return localCaller(call);
}

/** Lets whoever may connect in: the socket's own permissions say who that is. */
export async function admitAdministrator(call: Call): Promise<LocalCaller> {
  return localCaller(call);
}

function localCaller(call: Call): LocalCaller {
  const { process: peer } = call.caller;
  if (peer === undefined) {
    throw new Fault("unavailable", "workload attestation failed", { code: "caller-unknown" });
  }
  const log = call.log.child({ service: loggedService(call.method), pid: peer.pid });
  return { process: peer, isAgent: peer.pid === process.pid, log };
}

/** Services as SPIRE's logs name them. */
const LOGGED_SERVICES: Readonly<Record<string, string>> = {
  SpiffeWorkloadAPI: "WorkloadAPI",
  "grpc.health.v1.Health": "Health",
  "envoy.service.secret.v3.SecretDiscoveryService": "SDS.v3",
};

function loggedService(method: string): string {
  const name = method.slice(1, method.lastIndexOf("/"));
  return LOGGED_SERVICES[name] ?? name;
}

function hasSecurityHeader(call: Call): boolean {
  const values = call.metadata.get(HEADER);
  return values.length === 1 && values[0] === "true";
}
