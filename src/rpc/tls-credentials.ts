import type { Socket } from "node:net";
import { createSecureContext, type SecureContext, type TLSSocket, connect as tlsConnect } from "node:tls";
import { CallCredentials, ChannelCredentials } from "@grpc/grpc-js";
import type { Certificate } from "../crypto/certificate.ts";
import { Fault } from "../runtime/fault.ts";
import { contextOptions, peerChain, serverName, type TlsIdentity } from "./tls.ts";

/** Decides on the server's certificate, leaf first. Throws to refuse the connection. */
export type VerifyServer = (chain: readonly Certificate[]) => void;

export interface TlsCredentialsOptions {
  /** For server name indication. */
  readonly address?: string;
  /** Asked for each connection; throws when there is nothing to show. */
  readonly identity: () => TlsIdentity | undefined;
  readonly verifyServer: VerifyServer;
  /** Told why a handshake failed; gRPC keeps no more than a text of it. */
  readonly failed?: (fault: Fault) => void;
}

type Connector = ReturnType<ChannelCredentials["_createSecureConnector"]>;

/**
 * TLS in which nothing but our own function decides on the server. gRPC's own credentials insist on a trust store and a
 * host name; SPIFFE knows neither. gRPC gets the socket once the server is verified, not a byte earlier.
 */
export class TlsCredentials extends ChannelCredentials {
  readonly #options: TlsCredentialsOptions;
  /** Of the last connection: most connections show the same identity. */
  #last: { readonly identity: TlsIdentity | undefined; readonly context: SecureContext } | undefined;

  constructor(options: TlsCredentialsOptions) {
    super();
    this.#options = options;
  }

  override _isSecure(): boolean {
    return true;
  }

  override _equals(other: ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(_target: unknown, _options: unknown, call?: CallCredentials): Connector {
    const callCredentials = call ?? CallCredentials.createEmpty();
    return {
      connect: async (socket) => ({ socket: await this.#connect(socket), secure: true }),
      waitForReady: () => Promise.resolve(),
      getCallCredentials: () => callCredentials,
      destroy: () => {},
    };
  }

  async #connect(socket: Socket): Promise<TLSSocket> {
    const secure = tlsConnect({
      socket,
      secureContext: this.#context(),
      servername: serverName(this.#options.address ?? "") ?? "",
      ALPNProtocols: ["h2"],
      // The chain is verified below, and the name in it is a SPIFFE ID, not a host.
      rejectUnauthorized: false,
    });
    try {
      await handshake(secure);
      this.#verify(secure);
      return secure;
    } catch (error) {
      secure.destroy();
      const fault = Fault.from(error);
      this.#options.failed?.(fault);
      throw fault;
    }
  }

  #context(): SecureContext {
    const identity = this.#options.identity();
    if (this.#last === undefined || this.#last.identity !== identity)
      this.#last = { identity, context: createSecureContext(contextOptions(identity)) };
    return this.#last.context;
  }

  #verify(socket: TLSSocket): void {
    if (socket.alpnProtocol !== "h2")
      throw new Fault("unavailable", "the server does not speak HTTP/2", { code: "alpn" });
    const chain = peerChain(socket);
    if (chain.length === 0)
      throw new Fault("denied", "the server shows no certificate", { code: "server-certificate-missing" });
    this.#options.verifyServer(chain);
  }
}

function handshake(socket: TLSSocket): Promise<void> {
  return new Promise((done, fail) => {
    const unavailable = (why: string, cause?: unknown): void =>
      fail(new Fault("unavailable", `TLS handshake failed: ${why}`, { code: "tls-handshake", cause }));
    socket.once("secureConnect", done);
    socket.on("error", (error) => unavailable(error.message, error));
    socket.once("close", () => unavailable("the server closed the connection"));
  });
}
