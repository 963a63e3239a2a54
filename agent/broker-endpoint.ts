import type { Certificate } from "../src/crypto/certificate.ts";
import { RpcServer } from "../src/rpc/serve.ts";
import type { TlsIdentity } from "../src/rpc/tls.ts";
import type { Clock } from "../src/runtime/clock.ts";
import { Feed } from "../src/runtime/feed.ts";
import type { Log } from "../src/runtime/log.ts";
import type { Task } from "../src/runtime/task.ts";
import type { SpiffeId } from "../src/spiffe/id.ts";
import type { BrokerApiOptions } from "./api/broker.ts";
import { brokerServices } from "./api/routes.ts";
import { callEvents } from "./call-events.ts";
import type { BrokerConfig } from "./config/broker.ts";
import { brokerStarted } from "./events.ts";

export interface BrokerEndpointOptions extends BrokerApiOptions {
  readonly broker: BrokerConfig;
  /** The agent's own, shown to brokers. */
  readonly identity: Feed<TlsIdentity | undefined>;
  /** Decides on the certificate of a broker, leaf first. Throws to refuse it. */
  readonly verify: (chain: readonly Certificate[]) => SpiffeId;
  readonly maxStreamsPerConnection: number;
  readonly clock: Clock;
  readonly log: Log;
}

/** Only brokers may connect. */
const SOCKET_MODE = 0o770;

/** The SPIFFE Broker API on its Unix socket and TCP port, open once the agent has an SVID to show. */
export function openBroker(options: BrokerEndpointOptions, scope: AsyncDisposableStack): Task {
  const { broker, identity, log, clock, maxStreamsPerConnection } = options;
  const { services, admit } = brokerServices({ ...options, rules: broker.brokers });
  const rpc = scope.use(
    new RpcServer({
      ...{ services, log, clock, maxStreamsPerConnection },
      ...callEvents(log, admit),
    }),
  );
  return async (signal) => {
    const first = await identity.until((value) => value !== undefined, signal);
    if (first === undefined) return;
    const shown = new Feed<TlsIdentity>(first);
    await listen(rpc, options, shown);
    for await (const next of identity.watch(signal)) if (next !== undefined) shown.set(next);
  };
}

async function listen<Auth>(
  rpc: RpcServer<Auth>,
  { broker: { socketPath, bind }, verify: verifyPeer, log }: BrokerEndpointOptions,
  identity: Feed<TlsIdentity>,
): Promise<void> {
  if (socketPath !== undefined) {
    await rpc.listenUnixTls({ path: socketPath, mode: SOCKET_MODE }, { identity, verifyPeer });
    brokerStarted(log, "unix", socketPath);
  }
  if (bind !== undefined) {
    const bound = await rpc.listenTls({ ...bind, identity, verifyPeer, requirePeer: true });
    brokerStarted(log, "tcp", `${bound.address}:${bound.port}`);
  }
}
