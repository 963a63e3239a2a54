import type { Socket } from "node:net";
import { createSecureContext, type SecureContext, TLSSocket } from "node:tls";
import type { Clock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import type { Feed } from "../runtime/feed.ts";
import type { Log } from "../runtime/log.ts";
import type { PeerIdentity } from "./caller.ts";
import type { Refusals } from "./refusals.ts";
import { contextOptions, peerChain, type TlsIdentity } from "./tls.ts";
import type { VerifyPeer } from "./tls-gate.ts";

export interface UnixTlsOptions {
  readonly identity: Feed<TlsIdentity>;
  readonly verifyPeer: VerifyPeer;
  readonly clock: Clock;
  readonly log: Log;
  readonly refusals: Refusals;
}

/** From the first byte to the last, however slowly they come. */
const HANDSHAKE_TIMEOUT_MS = 10_000;

/** Mutual TLS inside Unix connections: a client that shows no certificate is refused. */
export class UnixTls {
  readonly #options: UnixTlsOptions;
  #context: SecureContext;

  constructor(options: UnixTlsOptions) {
    this.#options = options;
    this.#context = createSecureContext(contextOptions(options.identity.value));
  }

  /** Shows the newest identity to new connections, until the signal ends it. One that OpenSSL refuses is skipped. */
  async follow(signal: AbortSignal): Promise<void> {
    for await (const identity of this.#options.identity.watch(signal)) {
      try {
        this.#context = createSecureContext(contextOptions(identity));
      } catch (error) {
        this.#options.log.error("TLS identity cannot be used; the one before it stays", { error: Fault.from(error) });
      }
    }
  }

  /** `accept` gets the socket once its client's certificate was accepted. */
  receive(socket: Socket, accept: (socket: TLSSocket, peer: PeerIdentity) => void): void {
    const secure = new TLSSocket(socket, {
      ...{ isServer: true, secureContext: this.#context, ALPNProtocols: ["h2"] },
      ...{ requestCert: true, rejectUnauthorized: false },
    });
    const done = new AbortController();
    this.#options.clock.sleep(HANDSHAKE_TIMEOUT_MS, done.signal).then(
      () => secure.destroy(),
      () => undefined,
    );
    secure.once("close", () => done.abort());
    secure.on("error", () => secure.destroy());
    secure.once("secure", () => {
      done.abort();
      try {
        accept(secure, this.#peer(secure));
      } catch (error) {
        this.#options.refusals.add(error);
        secure.destroy();
      }
    });
  }

  #peer(socket: TLSSocket): PeerIdentity {
    if (socket.alpnProtocol !== "h2") throw new Fault("invalid", "the client does not speak HTTP/2", { code: "alpn" });
    const chain = peerChain(socket);
    if (chain.length === 0)
      throw new Fault("unauthenticated", "the client shows no certificate", { code: "client-certificate-missing" });
    return { id: this.#options.verifyPeer(chain), chain };
  }
}
