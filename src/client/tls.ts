import { Agent, type RequestOptions } from "node:https";
import { type ConnectionOptions, connect, type PeerCertificate, type Server, type TLSSocket } from "node:tls";
import { type Certificate, parseCertificate } from "../crypto/certificate.ts";
import { encodePem } from "../crypto/pem.ts";
import { contextOptions, peerChain } from "../rpc/tls.ts";
import { Fault } from "../runtime/fault.ts";
import { pathOf, type SpiffeId, type TrustDomain, trustDomainOf } from "../spiffe/id.ts";
import type { X509Svid } from "./x509-context.ts";
import type { X509Source } from "./x509-source.ts";

/** Decides about a peer whose SPIFFE ID is proved. Throws to refuse it. */
export type Authorize = (peer: SpiffeId) => void;

export function authorizeId(...allowed: readonly SpiffeId[]): Authorize {
  return (peer) => {
    if (!allowed.includes(peer)) throw new Fault("denied", `unexpected ID "${peer}"`, { code: "unexpected-id" });
  };
}

export function authorizeMemberOf(trustDomain: TrustDomain): Authorize {
  return (peer) => {
    if (trustDomainOf(peer) === trustDomain) return;
    throw new Fault("denied", `unexpected trust domain "${trustDomainOf(peer)}"`, { code: "unexpected-trust-domain" });
  };
}

/**
 * Agents of this trust domain, whose IDs begin with `/spire/agent/`, as Steeple and SPIRE give them: the endpoints that
 * hand out identities. Other members are refused.
 */
export function authorizeAgentOf(trustDomain: TrustDomain): Authorize {
  return (peer) => {
    if (trustDomainOf(peer) === trustDomain && pathOf(peer).startsWith("/spire/agent/")) return;
    throw new Fault("denied", `unexpected ID "${peer}": no agent of ${trustDomain}`, { code: "unexpected-id" });
  };
}

/** Any peer of a trust domain whose bundle is known. */
export const authorizeAny: Authorize = () => undefined;

export interface MtlsOptions {
  readonly source: X509Source;
  readonly authorize: Authorize;
  /** Picks the identity to show. Default: the source's default identity. */
  readonly pick?: (source: X509Source) => X509Svid;
}

const MAX_CHAIN = 10;

/**
 * Options for `tls.createServer`, `https.createServer` and `http2.createSecureServer`. They ask for a client
 * certificate and leave its check to `guardServer`, without which the server would take anybody.
 */
export function mtlsServerOptions({ source, pick }: Pick<MtlsOptions, "source" | "pick">) {
  return {
    ...shown((pick ?? defaultIdentity)(source)),
    requestCert: true,
    rejectUnauthorized: false,
  };
}

/**
 * Closes every connection whose peer is not proved and authorised, before anything else sees it, and keeps the
 * server's own identity current; with the identity withdrawn, handshakes fail. Call before `listen`.
 */
export function guardServer(server: Server, options: MtlsOptions): void {
  const closed = new AbortController();
  server.once("close", () => closed.abort());
  server.prependListener("secureConnection", (socket: TLSSocket) => {
    try {
      options.authorize(options.source.verify(peerChain(socket)));
    } catch (error) {
      socket.destroy();
      server.emit("tlsClientError", Fault.from(error), socket);
    }
  });
  void follow(server, options, closed.signal);
}

/** The proved SPIFFE ID at the other end of a guarded connection. Throws `denied` when there is none. */
export function peerId(socket: TLSSocket, source: X509Source): SpiffeId {
  return source.verify(peerChain(socket));
}

/**
 * Options for one `tls.connect`: a snapshot of the identity and bundles, with a check of the server's SPIFFE ID in
 * place of its host name. Throws when there is no identity.
 */
export function mtlsClientOptions({ source, authorize, pick }: MtlsOptions) {
  return {
    ...shown((pick ?? defaultIdentity)(source)),
    ca: [...source.context.bundles.values()].flatMap(({ authorities }) => authorities.map(pemOf)),
    allowPartialTrustChain: true,
    rejectUnauthorized: true,
    // A resumed session would skip the check, and carry the peer's identity past its withdrawal.
    maxCachedSessions: 0,
    checkServerIdentity: (_host: string, certificate: PeerCertificate): Error | undefined => {
      try {
        authorize(source.verify(chainOf(certificate)));
        return undefined;
      } catch (error) {
        return Fault.from(error);
      }
    },
  };
}

/** For `https.request`: every connection is made with the identity of its moment. */
export class MtlsAgent extends Agent {
  readonly #mtls: MtlsOptions;

  constructor(options: MtlsOptions) {
    super({ keepAlive: true, maxCachedSessions: 0 });
    this.#mtls = options;
  }

  override createConnection(options: RequestOptions): TLSSocket {
    return connect({ ...(options as ConnectionOptions), ...mtlsClientOptions(this.#mtls) });
  }
}

async function follow(server: Server, options: MtlsOptions, closed: AbortSignal): Promise<void> {
  for await (const context of options.source.watch(closed)) {
    server.setSecureContext(context === undefined ? {} : currentOptions(options));
  }
}

/** Nothing to show is shown when the picked identity has gone. */
function currentOptions(options: MtlsOptions) {
  try {
    return mtlsServerOptions(options);
  } catch {
    return {};
  }
}

function shown({ chain, privateKey }: X509Svid) {
  return contextOptions({ chain: chain.map(({ raw }) => raw), privateKey });
}

function defaultIdentity(source: X509Source): X509Svid {
  return source.svid;
}

function pemOf(certificate: Certificate): string {
  return encodePem("CERTIFICATE", certificate.raw);
}

/** Leaf first, ending with a root when OpenSSL found it among ours. */
function chainOf(leaf: PeerCertificate): Certificate[] {
  const chain: Certificate[] = [];
  let next: { readonly raw?: Uint8Array | undefined; readonly issuerCertificate?: unknown } | undefined = leaf;
  while (next?.raw !== undefined && chain.length < MAX_CHAIN) {
    chain.push(parseCertificate(next.raw));
    const issuer = next.issuerCertificate as typeof next;
    next = issuer === next ? undefined : issuer;
  }
  return chain;
}
