import type { Certificate } from "../crypto/certificate.ts";
import { verifyChain } from "../crypto/chain.ts";
import { EXT_KEY_USAGE } from "../crypto/extensions.ts";
import { Fault } from "../runtime/fault.ts";
import { parseSpiffeId, pathOf, type SpiffeId, type TrustDomain, trustDomainOf } from "./id.ts";

export interface X509SvidOptions {
  /** Leaf first, as the peer sent it. */
  readonly chain: readonly Certificate[];
  /** The X.509 authorities of one trust domain, or undefined without its bundle. Asked for the leaf's own, and no other. */
  readonly authorities: (trustDomain: TrustDomain) => readonly Certificate[] | undefined;
  readonly at: Date;
}

/**
 * Who the leaf is, after every check of X509-SVID, section 5: its form, and a chain to an authority of its own trust
 * domain. An extended key usage, in the leaf or in a CA between leaf and authority, has to allow both roles of TLS.
 * Throws `denied`. The caller still has to see that the peer holds the private key.
 */
export function validateX509Svid({ chain, authorities, at }: X509SvidOptions): SpiffeId {
  const [leaf] = chain;
  if (leaf === undefined) throw denied("empty certificates chain", "empty-chain");
  const id = readUnverifiedX509SvidId(leaf);
  checkLeaf(leaf);
  const trustDomain = trustDomainOf(id);
  const roots = authorities(trustDomain);
  if (roots === undefined)
    throw denied(`could not get X509 bundle: no X.509 bundle for trust domain "${trustDomain}"`, "no-bundle");
  const path = verifyChain({ chain, roots, at });
  path.slice(1, -1).forEach(checkIntermediatePurpose);
  return id;
}

/**
 * The SPIFFE ID that the certificate claims: its only URI name, with a path. Nothing about the signature is known.
 * Throws `denied`.
 */
export function readUnverifiedX509SvidId(leaf: Certificate): SpiffeId {
  const [uri, ...others] = leaf.uris;
  if (uri === undefined) throw denied("certificate contains no URI SAN", "no-uri-san");
  if (others.length > 0) throw denied("certificate contains more than one URI SAN", "several-uri-sans");
  const id = readId(uri);
  if (pathOf(id) === "") throw denied("leaf certificate SPIFFE ID has no path", "no-path");
  return id;
}

function readId(uri: string): SpiffeId {
  try {
    return parseSpiffeId(uri);
  } catch (error) {
    const { message, code } = Fault.from(error);
    throw denied(`could not get leaf SPIFFE ID: ${message}`, code);
  }
}

function checkLeaf(leaf: Certificate): void {
  const { isCa, keyUsage } = leaf;
  if (isCa) throw denied("leaf certificate with CA flag set to true", "leaf-is-ca");
  if (keyUsage?.has("keyCertSign")) throw denied("leaf certificate with KeyCertSign key usage", "leaf-key-cert-sign");
  if (keyUsage?.has("cRLSign")) throw denied("leaf certificate with KeyCrlSign key usage", "leaf-crl-sign");
  if (!keyUsage?.has("digitalSignature"))
    throw denied("leaf certificate without DigitalSignature key usage", "leaf-no-digital-signature");
  checkPurpose(leaf, "leaf certificate");
}

/** An authority between leaf and root may restrict what is below it to other purposes than TLS. Throws `denied`. */
export function checkIntermediatePurpose(authority: Certificate): void {
  checkPurpose(authority, "an intermediate certificate");
}

function checkPurpose({ extKeyUsage, isCa }: Certificate, what: string): void {
  if (extKeyUsage === undefined || (isCa && extKeyUsage.includes(EXT_KEY_USAGE.any))) return;
  const both = extKeyUsage.includes(EXT_KEY_USAGE.serverAuth) && extKeyUsage.includes(EXT_KEY_USAGE.clientAuth);
  if (!both) throw denied(`${what} has an extended key usage without serverAuth and clientAuth`, "ext-key-usage");
}

function denied(reason: string, code: string): Fault {
  return new Fault("denied", `x509svid: ${reason}`, { code });
}
