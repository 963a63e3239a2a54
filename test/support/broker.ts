import { Client } from "@grpc/grpc-js";
import { typedClient } from "../../src/rpc/client.ts";
import { type Channel, dialTls } from "../../src/rpc/dial.ts";
import type { WorkloadReference } from "../../src/rpc/gen/spiffe/broker/WorkloadReference.ts";
import { errorInfo, kubernetesObjectReference, workloadPidReference } from "../../src/rpc/protos.ts";
import type { TlsIdentity } from "../../src/rpc/tls.ts";
import { TlsCredentials, type VerifyServer } from "../../src/rpc/tls-credentials.ts";
import type { Fault } from "../../src/runtime/fault.ts";

export const BROKER_HEADER = { "broker.spiffe.io": "true" } as const;
const PREFIX = "type.googleapis.com/spiffe.broker.";

interface DialBroker {
  readonly identity?: TlsIdentity | undefined;
  readonly verifyServer?: VerifyServer;
}

/** Mutual TLS over a Unix socket. */
export function dialBroker(path: string, { identity, verifyServer = () => {} }: DialBroker = {}): Channel {
  let last: Fault | undefined;
  const failed = (fault: Fault): void => {
    last = fault;
  };
  const trust = new TlsCredentials({ address: "localhost", identity: () => identity, verifyServer, failed });
  const client = new Client(`unix://${path}`, trust, { "grpc.use_local_subchannel_pool": 1 });
  const connection = { client, target: path, lastFault: () => last };
  return { client: (service) => typedClient(connection, service), [Symbol.dispose]: () => client.close() };
}

/** The same over TCP on loopback. */
export function dialBrokerTcp(port: number, { identity, verifyServer = () => {} }: DialBroker = {}): Channel {
  return dialTls({ address: "127.0.0.1", port, verifyServer, ...(identity && { identity }) });
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
  const infos = ((error as Fault).details ?? [])
    .filter(({ typeUrl }) => typeUrl === "type.googleapis.com/google.rpc.ErrorInfo")
    .map(({ value }) => errorInfo().deserialize(Buffer.from(value)));
  return infos.find(({ domain }) => domain === "spiffe.io")?.reason;
}
