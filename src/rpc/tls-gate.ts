import type { Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import type { Certificate } from "../crypto/certificate.ts";
import { Fault } from "../runtime/fault.ts";
import type { Feed } from "../runtime/feed.ts";
import type { Log } from "../runtime/log.ts";
import type { SpiffeId } from "../spiffe/id.ts";
import type { PeerIdentity } from "./caller.ts";
import type { Source } from "./proxy-protocol.ts";
import type { Refusals } from "./refusals.ts";
import { contextOptions, peerChain, type TlsIdentity } from "./tls.ts";

/** Decides on a client certificate, leaf first. Throws to refuse the connection. */
export type VerifyPeer = (chain: readonly Certificate[]) => SpiffeId;

export interface TlsGateOptions {
  readonly identity: Feed<TlsIdentity>;
  readonly verifyPeer: VerifyPeer;
  /** Refuses clients that show no certificate. */
  readonly requirePeer?: boolean;
  readonly log: Log;
  readonly refusals: Refusals;
  /** Gets the sockets whose handshake succeeded and whose certificate, if any, was accepted. */
  readonly accept: (socket: TLSSocket, peer: PeerIdentity | undefined, source: Source) => void;
}

const HANDSHAKE_TIMEOUT_MS = 10_000;
/** With more at once the oldest makes room: one that is meant to succeed takes milliseconds, an idle one waits (T-X9). */
const MAX_HANDSHAKES = 1024;
/** Of one address, so that it makes room for itself first. */
const MAX_HANDSHAKES_PER_ADDRESS = 512;

interface Handshake {
  readonly socket: Socket;
  readonly source: Source;
}

/** Turns TCP connections into verified TLS connections. */
export class TlsGate {
  readonly #options: TlsGateOptions;
  readonly #server: Server;
  readonly #handshakes = new Map<string, Handshake>();

  constructor(options: TlsGateOptions) {
    this.#options = options;
    const settings = {
      ALPNProtocols: ["h2"],
      requestCert: true,
      rejectUnauthorized: false,
      handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
    };
    this.#server = createServer({ ...contextOptions(options.identity.value), ...settings }, (socket) =>
      this.#verify(socket),
    );
    this.#server.on("tlsClientError", (error, socket) => {
      const { source } = this.#handshakes.get(endsOf(socket)) ?? {};
      options.log.debug("TLS handshake failed", { error, address: source?.address });
      socket.destroy();
    });
  }

  /** Shows the newest identity to new connections, until the signal ends it. One that OpenSSL refuses is skipped. */
  async follow(signal: AbortSignal): Promise<void> {
    for await (const identity of this.#options.identity.watch(signal)) {
      try {
        this.#server.setSecureContext(contextOptions(identity));
      } catch (error) {
        this.#options.log.error("TLS identity cannot be used; the one before it stays", { error: Fault.from(error) });
      }
    }
  }

  receive(socket: Socket, source: Source): void {
    const key = endsOf(socket);
    this.#handshakes.set(key, { socket, source });
    this.#dropOldest(MAX_HANDSHAKES_PER_ADDRESS, (other) => other.source.address === source.address);
    this.#dropOldest(MAX_HANDSHAKES, () => true);
    socket.once("close", () => this.#release(key, socket));
    this.#server.emit("connection", socket);
  }

  /** Ends the handshakes that are under way. */
  close(): void {
    for (const { socket } of this.#handshakes.values()) socket.destroy();
  }

  #verify(socket: TLSSocket): void {
    const key = endsOf(socket);
    const source = this.#handshakes.get(key)?.source;
    this.#handshakes.delete(key);
    socket.on("error", () => socket.destroy());
    if (source === undefined) {
      socket.destroy();
      return;
    }
    try {
      if (socket.alpnProtocol !== "h2")
        throw new Fault("invalid", "the client does not speak HTTP/2", { code: "alpn" });
      this.#options.accept(socket, this.#peer(socket), source);
    } catch (error) {
      this.#options.refusals.add(error, source.address);
      socket.destroy();
    }
  }

  #release(key: string, socket: Socket): void {
    if (this.#handshakes.get(key)?.socket === socket) this.#handshakes.delete(key);
  }

  #dropOldest(most: number, counts: (handshake: Handshake) => boolean): void {
    if (this.#handshakes.size <= most) return;
    const alike = [...this.#handshakes].filter(([, handshake]) => counts(handshake));
    // Whoever has sent something is likely to go on: a herd of real clients is let through.
    const victim = alike.find(([, { socket }]) => socket.bytesRead === 0) ?? alike[0];
    if (alike.length <= most || victim === undefined) return;
    const [key, { socket }] = victim;
    this.#handshakes.delete(key);
    socket.destroy();
  }

  #peer(socket: TLSSocket): PeerIdentity | undefined {
    const chain = peerChain(socket);
    if (chain.length === 0 && this.#options.requirePeer === true)
      throw new Fault("unauthenticated", "the client shows no certificate", { code: "client-certificate-missing" });
    return chain.length === 0 ? undefined : { id: this.#options.verifyPeer(chain), chain };
  }
}

/** The same for a TCP socket and the TLS socket above it. */
function endsOf(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort} ${socket.localAddress}`;
}
