import { open } from "node:fs/promises";
import { readChallenge, TPM, writeEvidence, writeResponse } from "../../src/evidence/tpm.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { parseEndorsement } from "../../src/tpm/endorsement.ts";
import { ALG, parsePublic } from "../../src/tpm/structures.ts";
import type { NodeAttestor } from "./attestor.ts";
import { type TpmAccess, TpmSession } from "./tpm-keys.ts";

export interface TpmAttestorConfig extends TpmAccess {
  readonly attestationKey: "rsa" | "ecc";
  readonly eventLogPath: string;
  /** How often the state is quoted anew; 0 is with the agent's SVID. */
  readonly requoteMs: number;
}

interface Opened {
  readonly session: TpmSession;
  readonly attestation: number;
  readonly endorsement: number;
}

const MAX_EVENT_LOG_BYTES = 256 * 1024;

/** Shows the TPM's endorsement key, and quotes the state in which the machine was booted when the server asks for it. */
export function tpmAttestor(config: TpmAttestorConfig): NodeAttestor {
  let opened: Opened | undefined;
  let session: TpmSession | undefined;
  return {
    type: TPM,
    ...(config.requoteMs === 0 ? {} : { refreshMs: config.requoteMs }),
    async evidence() {
      session = await TpmSession.open(config);
      const ak = await session.attestationKey(config.attestationKey);
      const ek = await session.endorsementKey();
      opened = { session, attestation: ak.handle, endorsement: ek.handle };
      const { attested, signature } = await session.tpm.certifyCreation(ak.handle, ak);
      const stored = await session.endorsementCertificate();
      return writeEvidence({
        endorsementKey: parsePublic(ek.publicArea).key,
        endorsement: stored === undefined ? undefined : parseEndorsement(stored),
        attestationPublic: ak.publicArea,
        creationData: ak.creationData,
        attested,
        signature,
      });
    },
    async respond(message) {
      if (opened === undefined) throw new Fault("internal", "the server sent a challenge before it had evidence");
      const { tpm } = opened.session;
      const { quote, ...activation } = readChallenge(message);
      const passwords = { endorsementHierarchy: config.endorsementPassword };
      const credential = await tpm.activateCredential(opened, activation, passwords);
      if (quote === undefined) return writeResponse({ credential });
      const selection = { hash: ALG.sha256, pcrs: quote.pcrs };
      const { attested: quoted, signature } = await tpm.quote(opened.attestation, quote.nonce, selection);
      const values = await tpm.pcrRead(selection);
      if (values === undefined) return writeResponse({ credential });
      const eventLog = await startOf(config.eventLogPath);
      return writeResponse({ credential, quote: { quoted, signature, values, eventLog } });
    },
    async done() {
      opened = undefined;
      await session?.[Symbol.asyncDispose]();
      session = undefined;
    },
  };
}

/** Empty when there is no log, or more of it than a server would take. */
async function startOf(path: string): Promise<Uint8Array> {
  try {
    await using file = await open(path, "r");
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAX_EVENT_LOG_BYTES + 1), 0, MAX_EVENT_LOG_BYTES + 1, 0);
    return bytesRead > MAX_EVENT_LOG_BYTES ? Buffer.alloc(0) : buffer.subarray(0, bytesRead);
  } catch {
    return Buffer.alloc(0);
  }
}
