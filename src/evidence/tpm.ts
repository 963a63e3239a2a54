import { createHash, createPublicKey, type KeyObject } from "node:crypto";
import * as v from "valibot";
import type { Certificate } from "../crypto/certificate.ts";
import { decodePem, encodePem } from "../crypto/pem.ts";
import { checkPublicKey } from "../crypto/public-key.ts";
import { Fault } from "../runtime/fault.ts";
import { parseEndorsement } from "../tpm/endorsement.ts";
import { sized, TpmReader } from "../tpm/wire.ts";
import { base64, bytes, optionalBytes, readJson, writeJson } from "./json.ts";

/*
 * An endorsement key, on the wire of the community's `tpm` plug-in for SPIRE, and a quote on top that its servers and
 * agents pass over: tpm.md 5.
 */

export const TPM = "tpm";

const Evidence = v.object({
  EK: bytes,
  AK: v.object({
    Public: bytes,
    UseTCSDActivationFormat: v.optional(v.boolean(), false),
    CreateData: bytes,
    CreateAttestation: bytes,
    CreateSignature: bytes,
  }),
});

export interface TpmEvidence {
  readonly endorsementKey: KeyObject;
  readonly endorsement: Certificate | undefined;
  /** TPMT_PUBLIC. */
  readonly attestationPublic: Uint8Array;
  readonly creationData: Uint8Array;
  /** TPMS_ATTEST and TPMT_SIGNATURE. */
  readonly attested: Uint8Array;
  readonly signature: Uint8Array;
}

/** The key is the certificate's when there is one: a bare key beside it must be the same. Throws `invalid`. */
export function readEvidence(payload: Uint8Array): TpmEvidence {
  const { EK, AK } = readJson(Evidence, payload, "failed to unmarshal attestation data");
  if (AK.UseTCSDActivationFormat) throw malformed("TPM 1.2 is not supported");
  const pem = Buffer.from(EK).toString("latin1");
  const [certificate, ...more] = decodePem(pem, "CERTIFICATE");
  const [bare, ...others] = decodePem(pem, "PUBLIC KEY");
  if (more.length + others.length > 0) throw malformed("there is more than one endorsement key");
  const endorsement = certificate === undefined ? undefined : parseEndorsement(certificate);
  const key = endorsement?.key() ?? (bare === undefined ? undefined : checkPublicKey(bare));
  if (key === undefined) throw malformed("there is no endorsement key");
  if (bare !== undefined && Buffer.compare(spkiOf(checkPublicKey(bare)), spkiOf(key)) !== 0)
    throw malformed("the endorsement certificate is for another key");
  return {
    ...{ endorsementKey: key, endorsement, attestationPublic: AK.Public, creationData: AK.CreateData },
    ...{ attested: AK.CreateAttestation, signature: AK.CreateSignature },
  };
}

export function writeEvidence(evidence: TpmEvidence): Uint8Array {
  const { endorsementKey, endorsement, attestationPublic, creationData, attested, signature } = evidence;
  const key = encodePem("PUBLIC KEY", spkiOf(endorsementKey));
  const certificate = endorsement === undefined ? "" : encodePem("CERTIFICATE", endorsement.raw);
  return writeJson({
    EK: base64(Buffer.from(certificate + key)),
    AK: {
      Public: base64(attestationPublic),
      UseTCSDActivationFormat: false,
      CreateData: base64(creationData),
      CreateAttestation: base64(attested),
      CreateSignature: base64(signature),
    },
  });
}

function spkiOf(key: KeyObject): Buffer {
  return (key.type === "private" ? createPublicKey(key) : key).export({ type: "spki", format: "der" });
}

/** By which an endorsement key is registered: lower-case hex of the SHA-256. */
export function endorsementHash(key: KeyObject): string {
  return createHash("sha256").update(spkiOf(key)).digest("hex");
}

const QuoteRequest = v.object({ Nonce: bytes, Bank: v.literal("sha256"), Pcrs: v.array(v.number()) });
const ChallengeMessage = v.object({
  EC: v.object({ Credential: bytes, Secret: bytes }),
  Quote: v.nullish(QuoteRequest),
});

export interface TpmChallenge {
  /** Without TPM2B lengths. */
  readonly blob: Uint8Array;
  readonly secret: Uint8Array;
  /** Registers of the SHA-256 bank to be quoted with this nonce. */
  readonly quote?: { readonly nonce: Uint8Array; readonly pcrs: readonly number[] };
}

export function writeChallenge({ blob, secret, quote }: TpmChallenge): Uint8Array {
  const asked = quote === undefined ? {} : { Quote: { Nonce: base64(quote.nonce), Bank: "sha256", Pcrs: quote.pcrs } };
  return writeJson({ EC: { Credential: base64(sized(blob)), Secret: base64(sized(secret)) }, ...asked });
}

/** Throws `invalid`. */
export function readChallenge(challenge: Uint8Array): TpmChallenge {
  const { EC, Quote } = readJson(ChallengeMessage, challenge, "failed to unmarshal challenge");
  const quote = Quote == null ? {} : { quote: { nonce: Quote.Nonce, pcrs: Quote.Pcrs } };
  return { blob: unsized(EC.Credential), secret: unsized(EC.Secret), ...quote };
}

function unsized(data: Uint8Array): Uint8Array {
  const reader = new TpmReader(data);
  const body = reader.sized();
  reader.end();
  return body;
}

const ResponseMessage = v.object({
  Secret: bytes,
  Quote: v.nullish(v.object({ Quote: bytes, Signature: bytes, Pcrs: v.array(bytes), EventLog: optionalBytes })),
});

export interface TpmResponse {
  readonly credential: Uint8Array;
  readonly quote?: {
    readonly quoted: Uint8Array;
    readonly signature: Uint8Array;
    readonly values: readonly Uint8Array[];
    /** As the firmware wrote it; empty when there is none. */
    readonly eventLog: Uint8Array;
  };
}

/** Throws `invalid`. */
export function readResponse(response: Uint8Array): TpmResponse {
  const { Secret, Quote } = readJson(ResponseMessage, response, "failed to unmarshal challenge response");
  if (Quote == null) return { credential: Secret };
  const { Quote: quoted, Signature: signature, Pcrs: values, EventLog: eventLog } = Quote;
  return { credential: Secret, quote: { quoted, signature, values, eventLog } };
}

export function writeResponse({ credential, quote }: TpmResponse): Uint8Array {
  if (quote === undefined) return writeJson({ Secret: base64(credential) });
  const { quoted, signature, values, eventLog } = quote;
  return writeJson({
    Secret: base64(credential),
    Quote: {
      Quote: base64(quoted),
      Signature: base64(signature),
      Pcrs: values.map(base64),
      EventLog: base64(eventLog),
    },
  });
}

function malformed(message: string): Fault {
  return new Fault("invalid", `failed to unmarshal attestation data: ${message}`, { code: "evidence-malformed" });
}
