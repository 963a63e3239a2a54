import { randomInt } from "node:crypto";
import * as v from "valibot";
import type { Certificate } from "../crypto/certificate.ts";
import { readSignedMessage, signerCertificate, verifiedContent } from "../crypto/cms.ts";
import { EXT_KEY_USAGE } from "../crypto/extensions.ts";
import { Fault } from "../runtime/fault.ts";
import { bytes, readJson, writeJson } from "./json.ts";

/*
 * The attested document of Azure's instance metadata service over a nonce of the server's, as SPIRE has it on the wire:
 * spire-contract 11.5.
 */

export const AZURE_IMDS = "azure_imds";
/** The whole payload: the agent has nothing to show before it knows the nonce. */
const PAYLOAD = "non_empty_payload";
const NONCE_CHARACTERS = 32;
const ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

export const uuid = v.pipe(
  v.string(),
  v.regex(/^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$/, "expected a UUID"),
);

const Answer = v.object({
  document: v.object({ encoding: v.optional(v.string(), ""), signature: bytes }),
  metadata: v.object({
    agentDomain: v.pipe(v.string(), v.maxLength(253)),
    vmssName: v.nullish(v.pipe(v.string(), v.regex(/^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?$/))),
  }),
});
export type ImdsAnswer = v.InferOutput<typeof Answer>;

const Document = v.object({ nonce: v.string(), vmId: uuid, subscriptionId: uuid });

/** What Azure says of a machine. */
export type AttestedMachine = v.InferOutput<typeof Document>;

export function writeEvidence(): Uint8Array {
  return Buffer.from(PAYLOAD);
}

/** Throws `invalid`. */
export function checkEvidence(payload: Uint8Array): void {
  if (Buffer.compare(payload, writeEvidence()) === 0) return;
  throw new Fault("invalid", `expected the payload ${PAYLOAD}`, { code: "evidence-malformed" });
}

export function makeNonce(): string {
  return Array.from({ length: NONCE_CHARACTERS }, () => ALPHABET[randomInt(ALPHABET.length)]).join("");
}

/** Throws `invalid` for a nonce that would be more than one in a URL. */
export function readNonce(challenge: Uint8Array): string {
  const text = Buffer.from(challenge.buffer, challenge.byteOffset, challenge.length).toString("latin1");
  if (/^[A-Za-z0-9]{1,64}$/.test(text)) return text;
  throw new Fault("invalid", "the server's challenge is not a nonce", { code: "evidence-malformed" });
}

/** Throws `invalid`. What its metadata say is the peer's. */
export function readAnswer(answer: Uint8Array): ImdsAnswer {
  return readJson(Answer, answer, "failed to unmarshal data payload");
}

export function writeAnswer(answer: v.InferInput<typeof Answer>): Uint8Array {
  return writeJson(answer);
}

/** An attested document whose signature holds under a certificate that proves nothing yet. */
export interface SignedDocument {
  readonly content: Uint8Array;
  /** That of the signer, which is the one to build the chain from (T-N2). */
  readonly signer: Certificate;
  /** The others in the message, as they came. */
  readonly others: readonly Uint8Array[];
}

/** Throws `invalid`, `denied`. */
export function readDocument(signature: Uint8Array): SignedDocument {
  const message = readSignedMessage(signature);
  const signer = signerCertificate(message);
  const content = verifiedContent(message, signer);
  return { content, signer, others: message.certificates.filter((der) => Buffer.compare(der, signer.raw) !== 0) };
}

/** Whether the certificate may sign documents, for one of the domains or a name below. Throws `denied`. */
export function checkSigner({ dnsNames, extKeyUsage }: Certificate, domains: readonly string[]): void {
  const isNamed = dnsNames.some((name) => domains.some((domain) => name === domain || name.endsWith(`.${domain}`)));
  if (!isNamed) throw refused("certificate does not have any valid domain in SAN");
  const purposes = extKeyUsage ?? [EXT_KEY_USAGE.any];
  if (!purposes.includes(EXT_KEY_USAGE.any) && !purposes.includes(EXT_KEY_USAGE.serverAuth))
    throw refused("certificate is not for servers");
}

/** What the document says, once its signer is believed. Throws `invalid`, `denied`. */
export function readMachine(content: Uint8Array, nonce: string): AttestedMachine {
  const machine = readJson(Document, content, "failed to unmarshal attested document payload");
  if (machine.nonce === nonce) return machine;
  throw new Fault("denied", "nonce mismatch", { code: "azure-imds-refused", hint: "attest again" });
}

function refused(reason: string): Fault {
  return new Fault("denied", `signing certificate validation failed: ${reason}`, { code: "azure-imds-refused" });
}
