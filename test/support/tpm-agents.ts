import type { KeyObject } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { tpmAttestor } from "../../agent/node/tpm.ts";
import { tpmDevIdAttestor } from "../../agent/node/tpm-devid.ts";
import { readOnly, TAG } from "../../src/crypto/der.ts";
import { encode, encodeAscii, encodeOid, explicit, sequence, setOf } from "../../src/crypto/der-writer.ts";
import { EXTENSION } from "../../src/crypto/extensions.ts";
import { endorsementHash, readEvidence } from "../../src/evidence/tpm.ts";
import type { Evidence } from "./attest.ts";
import { type CertificateOptions, createCa, type Issued, type TestCa } from "./pki.ts";
import { certifyEndorsement, type DevId, type Simulator } from "./swtpm.ts";
import { temporaryDirectory } from "./workload.ts";

export const signal = new AbortController().signal;

/** Who makes TPMs, with a folder of what a server has to know of them. */
export interface TpmMaker extends AsyncDisposable {
  readonly folder: string;
  readonly ca: TestCa;
  /** Of the server's attestor. */
  readonly config: { readonly ca_path: string; readonly hash_path: string };
  /** Puts its certificate into a TPM, with the names of maker and model if asked to. */
  certify(machine: Simulator, options?: { readonly isNamed?: boolean } & CertificateOptions): Promise<void>;
  /** Makes the TPM known by its hash alone. */
  register(machine: Simulator): Promise<void>;
}

export async function openTpmMaker(): Promise<TpmMaker> {
  const folder = await temporaryDirectory();
  const ca = await createCa({ uris: [] });
  const config = { ca_path: join(folder.path, "certs"), hash_path: join(folder.path, "hashes") };
  for (const path of Object.values(config)) await mkdir(path);
  await writeFile(join(config.ca_path, "maker.pem"), ca.pem);
  return {
    ...{ folder: folder.path, ca, config },
    async certify(machine, { isNamed = false, ...options } = {}) {
      await certifyEndorsement(machine, ca, { ...(isNamed ? { extensions: [makerName()] } : {}), ...options });
    },
    register: async (machine) => writeFile(join(config.hash_path, await hashOf(machine)), ""),
    [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose](),
  };
}

/** Certificates that an honest maker never gave to the endorsement key, and why they count for nothing. */
export const BAD_ENDORSEMENTS: Readonly<Record<string, CertificateOptions & { readonly says: string }>> = {
  "that has expired": { notBefore: new Date(0), notAfter: new Date(1000), says: "x509: certificate has expired" },
  "that is not valid yet": {
    notBefore: new Date("2090-01-01"),
    notAfter: new Date("2099-01-01"),
    says: "not yet valid",
  },
  "for a web server": { extKeyUsage: ["1.3.6.1.5.5.7.3.1"], says: "the certificate is not for an endorsement key" },
  "of an authority": { ca: true, keyUsage: ["keyCertSign"], says: "the endorsement certificate is an authority's" },
  "with a critical extension that nobody knows": {
    extensions: [{ oid: "1.2.3.4", critical: true, value: Buffer.of(5, 0) }],
    says: "unhandled critical extension",
  },
  "that was changed": { tamper: (der) => flipAt(der, der.length - 5), says: "signature does not verify" },
};

/** A maker's certificate for the endorsement key of these evidence, with changes. */
export async function endorse(by: TestCa, key: KeyObject, options: CertificateOptions = {}): Promise<Issued> {
  const publicKey = key.export({ type: "spki", format: "der" });
  const usual = { uris: [], publicKey, keyUsage: ["keyEncipherment"], extKeyUsage: ["2.23.133.8.1"], subject: {} };
  return by.issue({ ...usual, ...options } as CertificateOptions);
}

/** The key as some makers write it: RSA for OAEP, with SHA-256 and the label that TPMs used before version 2. */
export function oaepOf(key: KeyObject, parameters: readonly Uint8Array[] = [OAEP_PARAMETERS]): Buffer {
  const info = readOnly(key.export({ type: "spki", format: "der" }));
  info.read(TAG.sequence);
  return sequence(sequence(encodeOid("1.2.840.113549.1.1.7"), ...parameters), info.read(TAG.bitString).raw);
}

const SHA256 = sequence(encodeOid("2.16.840.1.101.3.4.2.1"), encode(TAG.null));
const OAEP_PARAMETERS = sequence(
  explicit(0, SHA256),
  explicit(1, sequence(encodeOid("1.2.840.113549.1.1.8"), SHA256)),
  explicit(2, sequence(encodeOid("1.2.840.113549.1.1.9"), encode(TAG.octetString, Buffer.from("TCPA")))),
);

/** Critical, since the subject is empty: TCG EK Credential Profile. */
function makerName() {
  const attribute = (oid: string, value: string) => setOf(sequence(encodeOid(oid), encodeAscii(TAG.utf8String, value)));
  const name = sequence(
    attribute("2.23.133.2.1", "id:53544550"),
    attribute("2.23.133.2.2", "steeple"),
    attribute("2.23.133.2.3", "id:1"),
  );
  return { oid: EXTENSION.subjectAltName, critical: true, value: sequence(explicit(4, name)) };
}

const access = (devicePath: string) => ({ devicePath, ownerPassword: "", endorsementPassword: "" });

type Change = (message: Readonly<Record<string, unknown>>) => object;
export interface Bend {
  readonly payload?: Change;
  readonly answer?: Change;
  readonly challenge?: Change;
}

const bent = (data: Uint8Array, change: Change | undefined): Uint8Array => {
  if (change === undefined) return data;
  return Buffer.from(JSON.stringify(change(JSON.parse(Buffer.from(data).toString()))));
};

/** What the agent's half says, with some of it changed; the TPM is free again afterwards. */
export async function withAgent<T>(
  attestor: ReturnType<typeof tpmAttestor>,
  bend: Bend,
  work: (evidence: Evidence) => Promise<T>,
): Promise<T> {
  try {
    const payload = bent(await attestor.evidence(signal), bend.payload);
    const respond = async (challenge: Buffer) =>
      bent(await attestor.respond(bent(challenge, bend.challenge), signal), bend.answer);
    return await work({ type: attestor.type, payload, respond });
  } finally {
    await attestor.done?.();
  }
}

/** The agent's half of `tpm`, with an attestation key that is quickly made. */
export const tpmAgentOf = ({ devicePath }: Simulator) =>
  tpmAttestor({ ...access(devicePath), attestationKey: "ecc", eventLogPath: "/nowhere", requoteMs: 0 });
export const devidAgentOf = ({ devicePath }: Simulator, files: DevId) =>
  tpmDevIdAttestor({ ...access(devicePath), ...files, devidPassword: "" });

/** One bit of a base64 member, near its end, and so in what matters. */
export const flip = (text: unknown): string => {
  const data = Buffer.from(String(text), "base64");
  return flipAt(data, data.length - 5).toString("base64");
};

function flipAt(data: Buffer, at: number): Buffer {
  const changed = Buffer.from(data);
  changed[at] = (changed[at] ?? 0) ^ 1;
  return changed;
}

export async function endorsementKeyOf(of: Simulator): Promise<KeyObject> {
  const attestor = tpmAgentOf(of);
  const payload = await attestor.evidence(signal);
  await attestor.done?.();
  return readEvidence(payload).endorsementKey;
}

/** By which its registrar knows the TPM. */
export async function hashOf(of: Simulator): Promise<string> {
  return endorsementHash(await endorsementKeyOf(of));
}
