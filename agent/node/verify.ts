import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { type SpiffeId, serverId, type TrustDomain } from "../../src/spiffe/id.ts";
import { readUnverifiedX509SvidId, validateX509Svid } from "../../src/spiffe/x509-svid.ts";

export interface ServerCheck {
  /** As the server showed it, leaf first. */
  readonly chain: readonly Certificate[];
  readonly bundle: Bundle;
  readonly at: Date;
}

/**
 * Accepts the server of the bundle's trust domain and nobody else in it. Host names are never looked at. Throws
 * `denied`, or `precondition` when this machine's clock is what is wrong.
 */
export function verifyServer({ chain, bundle, at }: ServerCheck): void {
  const leaf = chain[0];
  if (leaf !== undefined && at < leaf.notBefore) throw clockTooEarly(leaf, at);
  const roots = bundle.x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
  const id = validateX509Svid({ chain, authorities: (name) => (name === bundle.trustDomain ? roots : undefined), at });
  requireServer(id, bundle.trustDomain);
}

/** For insecure bootstrap alone: the leaf must name the server of the trust domain, and nothing is proved by it. */
export function verifyServerIdOnly(chain: readonly Certificate[], trustDomain: TrustDomain): void {
  const leaf = chain[0];
  if (leaf === undefined)
    throw new Fault("denied", "server chain is unexpectedly empty", { code: "server-chain-empty" });
  requireServer(readUnverifiedX509SvidId(leaf), trustDomain);
}

function requireServer(id: SpiffeId, trustDomain: TrustDomain): void {
  const expected = serverId(trustDomain);
  if (id === expected) return;
  throw new Fault("denied", `expected server SPIFFE ID "${expected}"; got "${id}"`, {
    code: "server-id",
    hint: "check server_address, server_port and trust_domain",
  });
}

function clockTooEarly(leaf: Certificate, at: Date): Fault {
  const message = `the clock of this machine (${at.toISOString()}) is earlier than the start of the server's certificate (${leaf.notBefore.toISOString()})`;
  return new Fault("precondition", message, {
    code: "clock-too-early",
    hint: "set the clock of this machine, or of the server",
  });
}
