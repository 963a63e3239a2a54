import { createHash } from "node:crypto";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { privateKeyFromPkcs8 } from "../../src/crypto/key.ts";
import type { ExportingKeyManager, ManagedKey } from "../../src/keys/keys.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { isMember, type SpiffeId, serverId, type TrustDomain } from "../../src/spiffe/id.ts";
import { readUnverifiedX509SvidId } from "../../src/spiffe/x509-svid.ts";
import type { AgentIdentity } from "./credentials.ts";
import { type RotationPolicy, rotationOfKept, rotationOfNew } from "./rotation.ts";

/** The two places of the agent's key, named as SPIRE names them: a new key never overwrites the one in use. */
export function nextKeyId(currentKeyId: string | undefined): string {
  return currentKeyId === "agent-svid-A" ? "agent-svid-B" : "agent-svid-A";
}

export interface KeyAndCsr {
  readonly key: ManagedKey;
  /** PKCS#10, DER. */
  readonly csr: Uint8Array;
}

/** As SPIRE's agent makes it: spire-contract 11.6. */
export function csrOf(signer: ManagedKey): Promise<Uint8Array> {
  return createCertificateRequest({ signer, subject: { country: "US", organization: "SPIRE" } });
}

/** SHA-256 of the public key, hex. */
export function fingerprintOf({ publicKey }: ManagedKey): string {
  return createHash("sha256").update(publicKey).digest("hex");
}

/** The key that the kept SVID was made for. */
export function findKey(keys: readonly ManagedKey[], chain: readonly Uint8Array[]): ManagedKey | undefined {
  const [leaf] = chain;
  if (leaf === undefined) return undefined;
  const { publicKey } = parseCertificate(leaf);
  return keys.find((key) => Buffer.compare(key.publicKey, publicKey) === 0);
}

export interface SvidContext extends RotationPolicy {
  readonly trustDomain: TrustDomain;
  readonly keys: ExportingKeyManager;
}

/** An SVID as it came from the server or the disk, with the key it is said to be for. */
export interface SvidSource {
  /** DER, leaf first. */
  readonly svid: readonly Uint8Array[];
  readonly reattestable: boolean;
  readonly key: ManagedKey;
  readonly from: "server" | "disk";
}

/** Checks that the chain is an agent's of this trust domain and fits the key. Throws `internal` when the server erred. */
export async function readSvid(
  { svid, reattestable, key, from }: SvidSource,
  context: SvidContext,
): Promise<AgentIdentity> {
  const certificates = svid.map(parseCertificate);
  const [leaf] = certificates;
  if (leaf === undefined) throw new Fault("internal", "empty SVID cert chain", { code: "svid-chain-empty" });
  if (Buffer.compare(leaf.publicKey, key.publicKey) !== 0)
    throw new Fault("internal", "the agent's SVID is for another key", { code: "svid-key" });
  const pkcs8 = await context.keys.exportPrivateKey(key.id);
  if (pkcs8 === undefined) throw new Fault("internal", `key "${key.id}" has gone`, { code: "svid-key" });
  return Object.freeze({
    id: agentIdOf(leaf, context.trustDomain),
    chain: svid,
    leaf,
    authorityKeyId: certificates.at(-1)?.authorityKeyId ?? "",
    privateKey: privateKeyFromPkcs8(pkcs8),
    keyId: key.id,
    reattestable,
    rotation: from === "server" ? rotationOfNew(leaf, context) : rotationOfKept(leaf, context),
  });
}

function agentIdOf(leaf: Certificate, trustDomain: TrustDomain): SpiffeId {
  const id = readUnverifiedX509SvidId(leaf);
  if (isMember(id, trustDomain) && id !== serverId(trustDomain)) return id;
  throw new Fault("internal", `the agent's SVID names ${id}`, { code: "svid-id" });
}
