import { createHash } from "node:crypto";
import { HANDLE, type Tpm } from "../tpm/commands.ts";
import { parsePublic, TEMPLATE } from "../tpm/structures.ts";

/** NV index of the certificate for the default RSA endorsement key. */
export const EK_CERTIFICATE = 0x01c00002;

/** The endorsement key as registrars know it: SHA-256 of its SubjectPublicKeyInfo, hex. */
export async function endorsementOf(tpm: Tpm) {
  const { handle, publicArea } = await tpm.createPrimary(HANDLE.endorsement, TEMPLATE.ekRsa);
  await tpm.flush(handle);
  const spki = parsePublic(publicArea).key.export({ type: "spki", format: "der" });
  return { spki, hash: createHash("sha256").update(spki).digest("hex") };
}
