import { createPublicKey, type KeyObject } from "node:crypto";
import { type Certificate, parseCertificates } from "../crypto/certificate.ts";
import { privateKeyFromPkcs8 } from "../crypto/key.ts";
import type { X509BundlesResponse__Output } from "../rpc/gen/X509BundlesResponse.ts";
import type { X509SVID__Output } from "../rpc/gen/X509SVID.ts";
import type { X509SVIDResponse__Output } from "../rpc/gen/X509SVIDResponse.ts";
import { Fault } from "../runtime/fault.ts";
import { parseSpiffeId, pathOf, type SpiffeId, type TrustDomain, trustDomainOf } from "../spiffe/id.ts";
import { readUnverifiedX509SvidId } from "../spiffe/x509-svid.ts";
import { parseRevocationList, type RevocationList } from "./crl.ts";

/** One identity of the caller: what it proves itself with. Immutable. */
export interface X509Svid {
  readonly id: SpiffeId;
  /** What the operator calls this identity; empty when there is no name. */
  readonly hint: string;
  /** Leaf first. */
  readonly chain: readonly Certificate[];
  readonly privateKey: KeyObject;
  readonly expiresAt: Date;
}

/** The certificates that anchor X509-SVIDs of one trust domain, and nothing else: no other kind of SVID. Immutable. */
export interface X509Bundle {
  readonly trustDomain: TrustDomain;
  readonly authorities: readonly Certificate[];
}

/** The bundles by trust domain; a trust domain that is missing is not trusted. */
export interface X509Bundles {
  readonly bundles: ReadonlyMap<TrustDomain, X509Bundle>;
  readonly crls: readonly RevocationList[];
}

/** Everything the endpoint last said. Immutable; a new message gives a new context and nothing of the old one stays. */
export interface X509Context extends X509Bundles {
  /** Never empty; the first is the default identity. SPIFFE Workload API, section 8. */
  readonly svids: readonly [X509Svid, ...X509Svid[]];
}

/** Reads one message of FetchX509SVID whole. Throws `invalid` when anything mandatory is unset or does not fit. */
export function readX509Context(message: X509SVIDResponse__Output): X509Context {
  const bundles = readBundles(message.federated_bundles);
  const svids: X509Svid[] = [];
  const hints = new Set<string>();
  for (const part of message.svids) {
    if (part.hint !== "" && hints.has(part.hint)) continue;
    hints.add(part.hint);
    const svid = readSvid(part);
    const trustDomain = trustDomainOf(svid.id);
    bundles.set(trustDomain, readBundle(trustDomain, part.bundle));
    svids.push(svid);
  }
  const [first, ...others] = svids;
  if (first === undefined) throw bad("no SVIDs in response");
  return { svids: [first, ...others], bundles, crls: message.crl.map(parseRevocationList) };
}

/** Reads one message of FetchX509Bundles whole. Throws `invalid`. */
export function readX509Bundles(message: X509BundlesResponse__Output): X509Bundles {
  const bundles = readBundles(message.bundles);
  if (bundles.size === 0) throw bad("no bundles in response");
  return { bundles, crls: message.crl.map(parseRevocationList) };
}

function readSvid(part: X509SVID__Output): X509Svid {
  if (part.spiffe_id === "") throw bad("X.509-SVID without SPIFFE ID");
  const id = parseSpiffeId(part.spiffe_id);
  if (part.x509_svid.length === 0) throw bad(`missing certificate for SVID with SPIFFE ID "${id}"`);
  if (part.x509_svid_key.length === 0) throw bad(`missing private key for SVID with SPIFFE ID "${id}"`);
  if (part.bundle.length === 0) throw bad(`missing bundle for SVID with SPIFFE ID "${id}"`);
  const chain = parseCertificates(part.x509_svid);
  const leaf = chain[0];
  if (leaf === undefined) throw bad(`missing certificate for SVID with SPIFFE ID "${id}"`);
  if (leaf.isCa) throw bad(`first certificate of SVID "${id}" is a CA certificate: the leaf must come first`);
  if (readUnverifiedX509SvidId(leaf) !== id) throw bad(`certificate of SVID "${id}" names another SPIFFE ID`);
  const privateKey = privateKeyFromPkcs8(part.x509_svid_key);
  if (!matches(privateKey, leaf)) throw bad(`private key of SVID "${id}" does not match its certificate`);
  return { id, hint: part.hint, chain, privateKey, expiresAt: leaf.notAfter };
}

function matches(privateKey: KeyObject, leaf: Certificate): boolean {
  return createPublicKey(privateKey).equals(
    createPublicKey({ key: Buffer.from(leaf.publicKey), format: "der", type: "spki" }),
  );
}

function readBundles(parts: Readonly<Record<string, Buffer>>): Map<TrustDomain, X509Bundle> {
  const bundles = new Map<TrustDomain, X509Bundle>();
  for (const [key, der] of Object.entries(parts)) {
    const id = parseSpiffeId(key);
    if (pathOf(id) !== "") throw bad(`bundle key "${key}" is not the SPIFFE ID of a trust domain`);
    bundles.set(trustDomainOf(id), readBundle(trustDomainOf(id), der));
  }
  return bundles;
}

function readBundle(trustDomain: TrustDomain, der: Buffer): X509Bundle {
  return { trustDomain, authorities: der.length === 0 ? [] : parseCertificates(der) };
}

function bad(message: string): Fault {
  return new Fault("invalid", message, { code: "workload-api-response" });
}
