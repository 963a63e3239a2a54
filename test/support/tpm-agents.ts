import { tpmAttestor } from "../../agent/node/tpm.ts";
import { tpmDevIdAttestor } from "../../agent/node/tpm-devid.ts";
import { TAG } from "../../src/crypto/der.ts";
import { encodeAscii, encodeOid, explicit, sequence, setOf } from "../../src/crypto/der-writer.ts";
import { EXTENSION } from "../../src/crypto/extensions.ts";
import { endorsementHash, readEvidence } from "../../src/evidence/tpm.ts";
import type { Evidence } from "./attest.ts";
import type { DevId, Simulator } from "./swtpm.ts";

export const signal = new AbortController().signal;

/** Critical, since the subject is empty: TCG EK Credential Profile. */
export function makerName() {
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
  data[data.length - 5] = (data[data.length - 5] ?? 0) ^ 1;
  return data.toString("base64");
};

/** By which its registrar knows the TPM. */
export async function hashOf(of: Simulator): Promise<string> {
  const attestor = tpmAgentOf(of);
  const payload = await attestor.evidence(signal);
  await attestor.done?.();
  return endorsementHash(readEvidence(payload).endorsementKey);
}
