import { constants, type KeyObject, type X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import type { SecureContextOptions, TLSSocket } from "node:tls";
import { type Certificate, parseCertificate } from "../crypto/certificate.ts";
import { encodePem } from "../crypto/pem.ts";
import { Fault } from "../runtime/fault.ts";

/** What one end of a TLS connection shows: an X.509-SVID with its key. */
export interface TlsIdentity {
  /** DER, leaf first. */
  readonly chain: readonly Uint8Array[];
  readonly privateKey: KeyObject;
}

/** Longer chains are refused before anything in them is read (T-X5). */
const MAX_CHAIN = 10;

/**
 * Settings of both ends. No tickets, no session cache and no renegotiation: every connection verifies its peer anew (T-C6). No trust
 * store: OpenSSL checks that the peer holds its key, the chain is ours to verify.
 */
export function contextOptions(identity: TlsIdentity | undefined): SecureContextOptions {
  const options: SecureContextOptions = {
    ca: [],
    minVersion: "TLSv1.2",
    secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
  };
  if (identity === undefined) return options;
  return {
    ...options,
    cert: identity.chain.map((der) => encodePem("CERTIFICATE", der)).join(""),
    key: identity.privateKey.export({ type: "pkcs8", format: "pem" }),
  };
}

/** The certificates the peer showed, leaf first; empty when it showed none. Nothing is verified. */
export function peerChain(socket: TLSSocket): readonly Certificate[] {
  const chain: Certificate[] = [];
  let next: X509Certificate | undefined = socket.getPeerX509Certificate();
  while (next !== undefined) {
    if (chain.length === MAX_CHAIN) {
      throw new Fault("denied", `certificate chain is too long: at most ${MAX_CHAIN} certificates are allowed`, {
        code: "chain-too-long",
      });
    }
    chain.push(parseCertificate(next.raw));
    next = next.issuerCertificate === next ? undefined : next.issuerCertificate;
  }
  return chain;
}

/** Server name indication: names only, addresses are not allowed there (RFC 6066, section 3). */
export function serverName(address: string): string | undefined {
  return isIP(address) === 0 ? address : undefined;
}
