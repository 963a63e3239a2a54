import type { TLSSocket } from "node:tls";
import { type Server, ServerCredentials, type ServerUnaryCall } from "@grpc/grpc-js";

/** What gRPC tells a handler of its caller. */
export type CallPeer = Pick<ServerUnaryCall<unknown, unknown>, "getPeer">;

/** Hands verified connections to a gRPC server, and knows again who is at the other end of each. */
export class InjectedConnections<P> {
  readonly #injector: ReturnType<Server["createConnectionInjector"]>;
  readonly #peers = new Map<string, P>();

  constructor(server: Pick<Server, "createConnectionInjector">) {
    this.#injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  }

  inject(socket: TLSSocket, peer: P): void {
    const key = `${socket.remoteAddress}:${socket.remotePort}`;
    this.#peers.set(key, peer);
    socket.once("close", () => {
      if (this.#peers.get(key) === peer) this.#peers.delete(key);
    });
    this.#injector.injectConnection(socket);
  }

  /** Undefined for a call over another connection. */
  peerOf(call: CallPeer): P | undefined {
    return this.#peers.get(call.getPeer());
  }

  close(): void {
    this.#injector.destroy();
  }
}
