import { type Channel, dialTls, dialUnixTls } from "../../src/rpc/dial.ts";
import type { WorkloadReference } from "../../src/rpc/gen/spiffe/broker/WorkloadReference.ts";
import { kubernetesObjectReference, workloadPidReference } from "../../src/rpc/protos.ts";
import { spiffeReasonOf as reasonOf } from "../../src/rpc/status.ts";
import type { TlsIdentity } from "../../src/rpc/tls.ts";
import type { VerifyServer } from "../../src/rpc/tls-credentials.ts";
import { isFault } from "../../src/runtime/fault.ts";

export const BROKER_HEADER = { "broker.spiffe.io": "true" } as const;
const PREFIX = "type.googleapis.com/spiffe.broker.";

interface DialBroker {
  readonly identity?: TlsIdentity | undefined;
  readonly verifyServer?: VerifyServer;
}

/** Mutual TLS over a Unix socket. */
export function dialBroker(path: string, { identity, verifyServer = () => {} }: DialBroker = {}): Channel {
  return dialUnixTls({ path, identity, verifyServer });
}

/** The same over TCP on loopback. */
export function dialBrokerTcp(port: number, { identity, verifyServer = () => {} }: DialBroker = {}): Channel {
  return dialTls({ address: "127.0.0.1", port, verifyServer, identity });
}

export function reference(type_url: string, value: Uint8Array = Buffer.alloc(0)): WorkloadReference {
  return { reference: { type_url, value: Buffer.from(value) } };
}

export function pidReference(pid: number, prefix = PREFIX): WorkloadReference {
  return reference(`${prefix}WorkloadPIDReference`, workloadPidReference().serialize({ pid }));
}

export function objectReference(
  object: Parameters<ReturnType<typeof kubernetesObjectReference>["serialize"]>[0],
): WorkloadReference {
  return reference(`${PREFIX}KubernetesObjectReference`, kubernetesObjectReference().serialize(object));
}

/** The reason by which SPIFFE names the cause of an error, when there is one. */
export function spiffeReasonOf(error: unknown): string | undefined {
  return isFault(error) ? reasonOf(error) : undefined;
}
