import { createServer, type Server as TlsServer } from "node:tls";
import { type CallPeer, InjectedConnections } from "../rpc/injected.ts";
import { peerChain, type TlsIdentity } from "../rpc/tls.ts";
import { TlsCredentials } from "../rpc/tls-credentials.ts";
import { Fault } from "../runtime/fault.ts";
import type { SpiffeId } from "../spiffe/id.ts";
import { guardServer, type MtlsOptions, mtlsServerOptions } from "./tls.ts";
import type { X509Svid } from "./x509-context.ts";

/**
 * Channel credentials for clients of `@grpc/grpc-js`. Each connection shows the identity of its moment and is made only
 * to a server that is proved and authorised; connections that are open stay.
 */
export function grpcChannelCredentials({ source, authorize, pick }: MtlsOptions): TlsCredentials {
  let last: { readonly svid: X509Svid; readonly identity: TlsIdentity } | undefined;
  const identity = (): TlsIdentity => {
    const svid = pick === undefined ? source.svid : pick(source);
    if (last?.svid !== svid)
      last = { svid, identity: { chain: svid.chain.map(({ raw }) => raw), privateKey: svid.privateKey } };
    return last.identity;
  };
  return new TlsCredentials({ identity, verifyServer: (chain) => authorize(source.verify(chain)) });
}

/** A gRPC server's way in: connections whose peers are proved and authorised, and who they are. */
export interface GrpcListener {
  /** To `listen` on, and to `close`. */
  readonly tls: TlsServer;
  /** The SPIFFE ID of a call's peer. Throws `unauthenticated` for a call that came another way. */
  peerId(call: CallPeer): SpiffeId;
}

/**
 * Serves a `Server` of `@grpc/grpc-js` with mutual TLS, in place of its `bindAsync`. New connections see the newest
 * identity; those that are open stay.
 */
export function grpcListener(
  server: ConstructorParameters<typeof InjectedConnections>[0],
  options: MtlsOptions,
): GrpcListener {
  const connections = new InjectedConnections<SpiffeId>(server);
  const tls = createServer({ ...mtlsServerOptions(options), ALPNProtocols: ["h2"] }, (socket) => {
    if (socket.destroyed) return;
    try {
      connections.inject(socket, options.source.verify(peerChain(socket)));
    } catch {
      socket.destroy();
    }
  });
  guardServer(tls, options);
  tls.once("close", () => connections.close());
  return {
    tls,
    peerId(call) {
      const peer = connections.peerOf(call);
      if (peer !== undefined) return peer;
      throw new Fault("unauthenticated", "the call did not come over mutual TLS", { code: "peer-unknown" });
    },
  };
}
