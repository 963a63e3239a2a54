import { randomBytes, timingSafeEqual, verify } from "node:crypto";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { verifyChain, verifyChains } from "../../src/crypto/chain.ts";
import { parseName } from "../../src/crypto/name.ts";
import {
  type DevIdEvidence,
  type DevIdResponse,
  readEvidence,
  readResponse,
  TPM_DEVID,
  writeChallenge,
} from "../../src/evidence/tpm-devid.ts";
import { certificateFingerprint } from "../../src/evidence/x509pop.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Log } from "../../src/runtime/log.ts";
import type { Reloaded } from "../../src/runtime/reloaded.ts";
import { agentId, type TrustDomain } from "../../src/spiffe/id.ts";
import { type CredentialChallenge, makeCredential } from "../../src/tpm/credential.ts";
import { parseEndorsement } from "../../src/tpm/endorsement.ts";
import {
  checkAttestationKey,
  checkDeviceKey,
  endorsementPublic,
  nameOf,
  parseAttested,
  parsePublic,
  type TpmPublic,
  tpmSignatureHolds,
} from "../../src/tpm/structures.ts";
import type { Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";
import { caBundles } from "./ca-bundle.ts";

export interface TpmDevIdConfig {
  readonly devidCaPath: string;
  readonly endorsementCaPath: string;
}

export interface TpmDevIdOptions extends TpmDevIdConfig {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly log: Log;
}

const MAX_CERTIFICATES = 6;

/**
 * The node shows a DevID certificate, that it holds its key, and that the key is in a TPM of a maker that is trusted.
 * Stricter than SPIRE: keys are judged by their attributes, the key in the TPM is the certificate's, and the endorsement
 * key is taken from its certificate (T-N11).
 */
export class TpmDevIdAttestor implements NodeAttestor {
  readonly type = TPM_DEVID;
  readonly #options: TpmDevIdOptions;
  readonly #devidRoots: Reloaded<readonly Certificate[]>;
  readonly #endorsementRoots: Reloaded<readonly Certificate[]>;

  private constructor(options: TpmDevIdOptions) {
    this.#options = options;
    this.#devidRoots = caBundles([options.devidCaPath], options.log);
    this.#endorsementRoots = caBundles([options.endorsementCaPath], options.log);
  }

  /** Throws `invalid` when the authorities can't be read. */
  static async open(options: TpmDevIdOptions): Promise<TpmDevIdAttestor> {
    const attestor = new TpmDevIdAttestor(options);
    await Promise.all([attestor.#devidRoots.value(), attestor.#endorsementRoots.value()]);
    return attestor;
  }

  async attest(payload: Uint8Array, challenge: Challenge): Promise<NodeClaim> {
    const evidence = readEvidence(payload);
    const { leaf, paths } = await this.#verifyDevId(evidence.DevIDCert ?? []);
    const credential = randomBytes(32);
    const activation = await this.#residency(evidence, leaf, credential);
    const nonce = randomBytes(32);
    const response = readResponse(await challenge(writeChallenge({ nonce, ...activation })));
    checkResponse(response, { leaf, nonce, credential });
    const { commonName: subject = "" } = parseName(leaf.subject);
    const { commonName: issuer = "" } = parseName(leaf.issuer);
    const authorities = new Set(paths.flatMap((path) => path.slice(1).map(certificateFingerprint)));
    const values = [
      ...(subject === "" ? [] : [`subject:cn:${subject}`]),
      ...(issuer === "" ? [] : [`issuer:cn:${issuer}`]),
      ...[...authorities].map((fingerprint) => `ca:fingerprint:${fingerprint}`),
    ];
    return {
      id: agentId(this.#options.trustDomain, `${TPM_DEVID}/${certificateFingerprint(leaf)}`),
      selectors: values.map((value) => ({ type: TPM_DEVID, value })),
      canReattest: true,
    };
  }

  async #verifyDevId(ders: readonly Uint8Array[]) {
    if (ders.length === 0) throw invalid("no DevID certificate to attest");
    if (ders.length > MAX_CERTIFICATES) throw invalid("too many DevID certificates");
    const chain = ders.map((der) => parsed("unable to parse DevID certificate", () => parseCertificate(der)));
    const [leaf] = chain;
    if (leaf === undefined) throw invalid("no DevID certificate to attest");
    const roots = await this.#devidRoots.value();
    const at = this.#options.clock.now();
    const paths = trusted("unable to verify DevID signature", () => verifyChains({ chain, roots, at }));
    return { leaf, paths };
  }

  /** That the DevID key is in the TPM of the endorsement key, once the credential comes back. */
  async #residency(evidence: DevIdEvidence, leaf: Certificate, credential: Uint8Array): Promise<CredentialChallenge> {
    for (const [name, what] of PARTS) if (evidence[name].length === 0) throw invalid(`missing ${what}`);
    const endorsement = parsed("cannot parse endorsement certificate", () => parseEndorsement(evidence.EKCert));
    const roots = await this.#endorsementRoots.value();
    const at = this.#options.clock.now();
    trusted("cannot verify EK signature", () => verifyChain({ chain: [endorsement], roots, at }));
    const key = endorsement.key();
    if (Buffer.compare(endorsementPublic(key), evidence.EKPub) !== 0)
      throw denied("public key in EK certificate differs from public key created via EK template");
    const attestationKey = parsed("cannot decode attestation key public blob", () => parsePublic(evidence.AKPub));
    const devid = parsed("cannot decode DevID key public blob", () => parsePublic(evidence.DevIDPub));
    checkAttestationKey(attestationKey);
    checkCertification(attestationKey, devid, evidence);
    checkDeviceKey(devid);
    if (Buffer.compare(devid.key.export({ type: "spki", format: "der" }), leaf.publicKey) !== 0)
      throw denied("DevID certificate is for another key than the one in the TPM");
    return makeCredential(key, nameOf(attestationKey), credential);
  }
}

const PARTS = [
  ["AKPub", "attestation key public blob"],
  ["DevIDPub", "DevID key public blob"],
  ["EKCert", "endorsement certificate"],
  ["EKPub", "endorsement key public blob"],
] as const;

function checkCertification(attestationKey: TpmPublic, devid: TpmPublic, evidence: DevIdEvidence): void {
  const what = "cannot verify that DevID is in the same TPM than AK";
  const { CertifiedDevID: data, CertificationSignature: signature } = evidence;
  if (!parsed(what, () => tpmSignatureHolds(attestationKey, data, signature)))
    throw denied(`${what}: signature does not verify`);
  const attested = parsed(what, () => parseAttested(data));
  if (attested.kind !== "certify") throw denied(`${what}: missing certify info`);
  if (Buffer.compare(attested.name, nameOf(devid)) !== 0) throw denied(`${what}: certify failed`);
}

interface Expected {
  readonly leaf: Certificate;
  readonly nonce: Uint8Array;
  readonly credential: Uint8Array;
}

function checkResponse(response: DevIdResponse, { leaf, nonce, credential }: Expected): void {
  const { signature } = response;
  if (signature.length === 0 || !verify("sha256", nonce, leaf.key(), signature))
    throw denied("devID challenge verification failed");
  if (response.credential.length !== credential.length || !timingSafeEqual(response.credential, credential))
    throw denied("credential activation failed: nonces are different");
}

/** What the peer sent can't be read. */
function parsed<T>(what: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    const { kind, message } = Fault.from(error);
    throw kind === "internal" ? error : new Fault(kind, `${what}: ${message}`, { code: "tpm-devid-evidence" });
  }
}

/** What the peer sent leads to nobody who is trusted. */
function trusted<T>(what: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    const { kind, message } = Fault.from(error);
    throw kind === "internal" ? error : denied(`${what}: ${message}`);
  }
}

function invalid(message: string): Fault {
  return new Fault("invalid", message, { code: "tpm-devid-evidence" });
}

function denied(message: string): Fault {
  return new Fault("denied", message, { code: "tpm-devid-refused" });
}
