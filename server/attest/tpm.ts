import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { type Certificate, parseCertificate } from "../../src/crypto/certificate.ts";
import { verifyChain } from "../../src/crypto/chain.ts";
import { decodePem } from "../../src/crypto/pem.ts";
import {
  endorsementHash,
  readEvidence,
  readResponse,
  TPM,
  type TpmEvidence,
  type TpmResponse,
  writeChallenge,
} from "../../src/evidence/tpm.ts";
import { certificateFingerprint } from "../../src/evidence/x509pop.ts";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import { agentId, type TrustDomain } from "../../src/spiffe/id.ts";
import { makeCredential } from "../../src/tpm/credential.ts";
import { makerOf } from "../../src/tpm/endorsement.ts";
import {
  BOOT_PROGRAM_PCR,
  bootPrograms,
  type MeasuredEvent,
  parseEventLog,
  replay,
  SECURE_BOOT_PCR,
  secureBoot,
  secureBootAuthorities,
} from "../../src/tpm/event-log.ts";
import { verifyQuote } from "../../src/tpm/quote.ts";
import {
  ALG,
  checkAttestationKey,
  endorsementPublic,
  hashName,
  nameOf,
  parseAttested,
  parsePublic,
  type TpmPublic,
  tpmSignatureHolds,
} from "../../src/tpm/structures.ts";
import type { Challenge, NodeAttestor, NodeClaim } from "./attestor.ts";

/** Values that registers of the SHA-256 bank must all have; lower-case hex. */
export interface PcrSet {
  readonly name: string;
  readonly values: ReadonlyMap<number, string>;
}

export interface TpmConfig {
  /** Folder with certificates of TPM makers, PEM or DER. */
  readonly caPath: string;
  /** Folder with a file for each endorsement key, named by its hash. */
  readonly hashPath: string;
  /** Registers to be quoted; none means no quote. */
  readonly pcrs: readonly number[];
  /** A node must be in one of these states; without any, it may be in every state. */
  readonly pcrSets: readonly PcrSet[];
}

export interface TpmOptions extends TpmConfig {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
}

const MAX_CA_FILES = 1000;

/**
 * The node shows the endorsement key of its TPM, which is known by its hash or by its maker, and in what state it was
 * booted. Stricter than the plug-in whose wire it shares: the key is the certificate's, and the attestation key is judged.
 */
export class TpmAttestor implements NodeAttestor {
  readonly type = TPM;
  readonly #options: TpmOptions;

  constructor(options: TpmOptions) {
    this.#options = options;
  }

  async attest(payload: Uint8Array, challenge: Challenge): Promise<NodeClaim> {
    const { trustDomain, pcrs } = this.#options;
    const evidence = readEvidence(payload);
    const hash = endorsementHash(evidence.endorsementKey);
    const maker = await this.#known(evidence, hash);
    const attestationKey = checkAttestation(evidence);
    endorsementPublic(evidence.endorsementKey);
    const credential = randomBytes(32);
    const nonce = randomBytes(32);
    const activation = makeCredential(evidence.endorsementKey, nameOf(attestationKey), credential);
    const quote = pcrs.length === 0 ? {} : { quote: { nonce, pcrs } };
    const response = readResponse(await challenge(writeChallenge({ ...activation, ...quote })));
    if (response.credential.length !== credential.length || !timingSafeEqual(response.credential, credential))
      throw denied("credential activation failed");
    const claim = { id: agentId(trustDomain, `${TPM}/${hash}`), selectors: [], canReattest: true };
    const state = this.#state(response, attestationKey, nonce);
    if (state === undefined) return { ...claim, refused: wrongState() };
    const values = [`pub_hash:${hash}`, ...maker, ...state];
    return { ...claim, selectors: values.map((value) => ({ type: TPM, value })) };
  }

  /** Selectors of who made the TPM. Throws `denied` when neither its hash nor its maker is known. */
  async #known({ endorsement }: TpmEvidence, hash: string): Promise<readonly string[]> {
    const { caPath, hashPath, clock } = this.#options;
    const isRegistered = await stat(join(hashPath, hash)).then(
      (found) => found.isFile(),
      () => false,
    );
    if (endorsement === undefined) {
      if (isRegistered) return [];
      throw denied("could not validate EK: its hash is not registered");
    }
    const roots = await certificatesIn(caPath);
    try {
      const path = verifyChain({ chain: [endorsement], roots, at: clock.now() });
      const { manufacturer, model } = makerOf(endorsement);
      return [
        ...(manufacturer === "" ? [] : [`ek:manufacturer:${manufacturer}`]),
        ...(model === "" ? [] : [`ek:model:${model}`]),
        ...path.slice(1).map((authority) => `ek:ca:fingerprint:${certificateFingerprint(authority)}`),
      ];
    } catch (error) {
      if (isRegistered) return [];
      throw denied(`could not validate EK: its hash is not registered, and ${Fault.from(error).message}`);
    }
  }

  /** Selectors of the state in which the node was booted; undefined when it has to be another. Throws `denied`. */
  #state({ quote }: TpmResponse, attestationKey: TpmPublic, nonce: Uint8Array): readonly string[] | undefined {
    const { pcrs, pcrSets } = this.#options;
    if (quote === undefined || pcrs.length === 0) {
      if (pcrSets.length === 0) return [];
      throw denied("the agent sent no quote, and the server requires one");
    }
    const selection = { hash: ALG.sha256, pcrs };
    const { quoted, signature, values: claimed } = quote;
    const values = verifyQuote({ attestationKey, quoted, signature, nonce, selection, values: claimed });
    const matching = pcrSets.filter((set) => [...set.values].every(([pcr, value]) => values.get(pcr) === value));
    if (pcrSets.length > 0 && matching.length === 0) return undefined;
    return [
      ...[...values].map(([pcr, value]) => `pcr:sha256:${pcr}:${value}`),
      ...matching.map(({ name }) => `pcr:set:${name}`),
      ...measured(quote.eventLog, values),
    ];
  }
}

/** What the event log says, where the quoted registers bear it out; a log that is absent or wrong says nothing. */
function measured(log: Uint8Array, quoted: ReadonlyMap<number, string>): readonly string[] {
  if (log.length === 0) return [];
  try {
    const events = parseEventLog(log);
    const replayed = replay(events);
    return TOLD.flatMap(({ pcr, selectors }) => {
      const value = quoted.get(pcr);
      return value !== undefined && replayed.get(pcr) === value ? selectors(events) : [];
    });
  } catch (error) {
    if (isFault(error, "invalid")) return [];
    throw error;
  }
}

interface Told {
  readonly pcr: number;
  readonly selectors: (events: readonly MeasuredEvent[]) => readonly string[];
}

/** Of a list in one selector: more do not fit. */
const MOST_TOLD = 32;

/** By the register that bears it out. */
const TOLD: readonly Told[] = [
  {
    pcr: BOOT_PROGRAM_PCR,
    selectors: (events) => {
      const programs = bootPrograms(events);
      const [first] = programs;
      if (first === undefined || programs.length > MOST_TOLD) return [];
      return [`boot:program:sha256:${first}`, `boot:programs:sha256:${programs.join(",")}`];
    },
  },
  {
    pcr: SECURE_BOOT_PCR,
    selectors: (events) => {
      const isOn = secureBoot(events);
      const authorities = secureBootAuthorities(events);
      const isTold = authorities.length > 0 && authorities.length <= MOST_TOLD;
      return [
        ...(isOn === undefined ? [] : [`secureboot:${isOn ? "enabled" : "disabled"}`]),
        ...(isTold ? [`secureboot:authority:sha256:${authorities.join(",")}`] : []),
      ];
    },
  },
];

/** The attestation key was made in a TPM as what it says, and has signed that itself. */
function checkAttestation(evidence: TpmEvidence): TpmPublic {
  const { attestationPublic, attested: data, signature, creationData } = evidence;
  const key = parsePublic(attestationPublic);
  checkAttestationKey(key);
  if (!tpmSignatureHolds(key, data, signature)) throw denied("attestation key's signature does not verify");
  const attested = parseAttested(data);
  if (attested.kind !== "creation") throw denied("attestation key comes without proof of its creation");
  const creationHash = createHash(hashName(key.nameAlg)).update(creationData).digest();
  const isIts =
    Buffer.compare(attested.name, nameOf(key)) === 0 && Buffer.compare(attested.creationHash, creationHash) === 0;
  if (!isIts) throw denied("proof of creation is for another key");
  return key;
}

/** Read each time: makers are added without a restart. Throws `unavailable` when one can't be read. */
async function certificatesIn(folder: string): Promise<readonly Certificate[]> {
  const names = await readdir(folder).catch(() => []);
  if (names.length > MAX_CA_FILES) throw new Fault("unavailable", `there are too many files in ${folder}`);
  const found = await Promise.all(names.map((name) => readFile(join(folder, name)).catch(() => Buffer.alloc(0))));
  return found.flatMap((content) => {
    const text = content.toString("latin1");
    const ders = text.includes("-----BEGIN") ? decodePem(text, "CERTIFICATE") : content.length === 0 ? [] : [content];
    return ders.map(parseCertificate);
  });
}

function wrongState(): Fault {
  return new Fault("denied", "PCR values are in none of the required sets", {
    code: "tpm-pcrs",
    hint: 'see them on the node with "steeple tpm show", and add a set to pcr_sets if they are right',
  });
}

function denied(message: string): Fault {
  return new Fault("denied", message, { code: "tpm-refused" });
}
