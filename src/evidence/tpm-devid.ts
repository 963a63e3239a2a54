import * as v from "valibot";
import { base64, bytes, optionalBytes, readJson, writeJson } from "./json.ts";

/*
 * A DevID key in a TPM, as SPIRE has it on the wire: spire-contract 11.5 and tpm.md 5.
 */

export const TPM_DEVID = "tpm_devid";

const Evidence = v.object({
  DevIDCert: v.nullish(v.array(bytes), []),
  DevIDPub: optionalBytes,
  EKCert: optionalBytes,
  EKPub: optionalBytes,
  AKPub: optionalBytes,
  CertifiedDevID: optionalBytes,
  CertificationSignature: optionalBytes,
});
export type DevIdEvidence = v.InferOutput<typeof Evidence>;

/** Throws `invalid`. */
export function readEvidence(payload: Uint8Array): DevIdEvidence {
  return readJson(Evidence, payload, "unable to unmarshall attestation data");
}

export function writeEvidence(evidence: Required<DevIdEvidence>): Uint8Array {
  const { DevIDCert, ...rest } = evidence;
  const blobs = Object.entries(rest).map(([name, value]) => [name, base64(value)]);
  return writeJson({ DevIDCert: (DevIDCert ?? []).map(base64), ...Object.fromEntries(blobs) });
}

const ChallengeMessage = v.object({
  DevID: bytes,
  CredActivation: v.object({ Credential: bytes, Secret: bytes }),
});

export interface DevIdChallenge {
  readonly nonce: Uint8Array;
  /** Without TPM2B lengths. */
  readonly blob: Uint8Array;
  readonly secret: Uint8Array;
}

export function writeChallenge({ nonce, blob, secret }: DevIdChallenge): Uint8Array {
  return writeJson({
    DevID: base64(nonce),
    CredActivation: { Credential: base64(blob), Secret: base64(secret) },
  });
}

/** Throws `invalid`. */
export function readChallenge(challenge: Uint8Array): DevIdChallenge {
  const { DevID, CredActivation } = readJson(ChallengeMessage, challenge, "unable to unmarshall challenges");
  return { nonce: DevID, blob: CredActivation.Credential, secret: CredActivation.Secret };
}

const ResponseMessage = v.object({ DevID: optionalBytes, CredActivation: optionalBytes });

export interface DevIdResponse {
  /** Raw RSASSA, or ECDSA in DER. */
  readonly signature: Uint8Array;
  readonly credential: Uint8Array;
}

/** Throws `invalid`. */
export function readResponse(response: Uint8Array): DevIdResponse {
  const { DevID, CredActivation } = readJson(ResponseMessage, response, "unable to unmarshall challenges response");
  return { signature: DevID, credential: CredActivation };
}

export function writeResponse({ signature, credential }: DevIdResponse): Uint8Array {
  return writeJson({ DevID: base64(signature), CredActivation: base64(credential) });
}
