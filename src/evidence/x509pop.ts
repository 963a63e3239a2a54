import { constants, createHash, type KeyObject, randomBytes, sign, verify } from "node:crypto";
import * as v from "valibot";
import type { Certificate } from "../crypto/certificate.ts";
import { Fault } from "../runtime/fault.ts";
import { base64, bytes, optionalBytes, readJson, writeJson } from "./json.ts";

/*
 * Proof of possession of a certificate's key, as SPIRE has it on the wire: spire-contract 11.5. Both sides add a nonce,
 * so that neither chooses alone what is signed.
 */

export const X509POP = "x509pop";
const NONCE_BYTES = 32;

const Evidence = v.object({ certificates: v.nullish(v.array(bytes), []) });
const Nonce = v.object({ nonce: bytes });
const ChallengeMessage = v.object({ rsa_signature: v.nullish(Nonce), ecdsa_signature: v.nullish(Nonce) });
const ResponseMessage = v.object({
  rsa_signature: v.nullish(v.object({ nonce: optionalBytes, signature: optionalBytes })),
  ecdsa_signature: v.nullish(v.object({ nonce: optionalBytes, r: optionalBytes, s: optionalBytes })),
});

/** Certificates in DER, leaf first. Not parsed. Throws `invalid`. */
export function readEvidence(payload: Uint8Array): readonly Uint8Array[] {
  return readJson(Evidence, payload, "failed to unmarshal data").certificates ?? [];
}

export function writeEvidence(certificates: readonly Uint8Array[]): Uint8Array {
  return writeJson({ certificates: certificates.map(base64) });
}

type Scheme = "rsa_signature" | "ecdsa_signature";

export interface Challenge {
  readonly nonce: Uint8Array;
  readonly message: Uint8Array;
}

/** Throws `denied` for a key that can't answer. */
export function makeChallenge(key: KeyObject): Challenge {
  const nonce = randomBytes(NONCE_BYTES);
  const asked: Record<Scheme, unknown> = { rsa_signature: null, ecdsa_signature: null };
  return { nonce, message: writeJson({ ...asked, [schemeOf(key)]: { nonce: base64(nonce) } }) };
}

/** Throws `invalid` for a challenge that is malformed, or meant for another kind of key. */
export function answerChallenge(key: KeyObject, challenge: Uint8Array): Uint8Array {
  const scheme = schemeOf(key);
  const asked = readJson(ChallengeMessage, challenge, "unable to unmarshal challenge")[scheme];
  if (asked == null) throw malformed(`expecting ${NAMES[scheme]} challenge`);
  if (asked.nonce.length !== NONCE_BYTES) throw malformed("invalid challenge nonce");
  const nonce = randomBytes(NONCE_BYTES);
  const signed = Buffer.concat([asked.nonce, nonce]);
  const fields =
    scheme === "rsa_signature"
      ? { signature: base64(sign("sha256", signed, { key, ...PSS })) }
      : halves(sign("sha256", signed, { key, dsaEncoding: "ieee-p1363" }));
  const answers: Record<Scheme, unknown> = { rsa_signature: null, ecdsa_signature: null };
  return writeJson({ ...answers, [scheme]: { nonce: base64(nonce), ...fields } });
}

/** Returns when the peer holds the private key. Throws `invalid` for a malformed answer, `denied` for a wrong one. */
export function verifyResponse(key: KeyObject, challenge: Challenge, response: Uint8Array): void {
  const answer = readJson(ResponseMessage, response, "unable to unmarshal challenge response");
  const scheme = schemeOf(key);
  const given = answer[scheme];
  if (given == null) throw wrong(`expecting ${NAMES[scheme]} response`);
  if (given.nonce.length !== NONCE_BYTES) throw wrong("invalid response nonce");
  const signed = Buffer.concat([challenge.nonce, given.nonce]);
  const holds =
    "signature" in given
      ? given.signature.length > 0 &&
        verify("sha256", signed, { key, ...PSS, saltLength: constants.RSA_PSS_SALTLEN_AUTO }, given.signature)
      : ecdsaHolds(key, signed, given);
  if (!holds) throw wrong(`${NAMES[scheme]} signature verify failed`);
}

const NAMES: Readonly<Record<Scheme, string>> = { rsa_signature: "RSA", ecdsa_signature: "ECDSA" };
const PSS = {
  padding: constants.RSA_PKCS1_PSS_PADDING,
  saltLength: constants.RSA_PSS_SALTLEN_DIGEST,
} as const;

function schemeOf(key: KeyObject): Scheme {
  if (key.asymmetricKeyType === "rsa") return "rsa_signature";
  if (key.asymmetricKeyType === "ec") return "ecdsa_signature";
  throw new Fault("denied", `unsupported key type "${key.asymmetricKeyType}"`, {
    code: "x509pop-key-type",
    hint: "use a certificate with an RSA or ECDSA key",
  });
}

function halves(signature: Buffer): { readonly r: string; readonly s: string } {
  const half = signature.length / 2;
  return { r: base64(signature.subarray(0, half)), s: base64(signature.subarray(half)) };
}

interface Halves {
  readonly r: Uint8Array;
  readonly s: Uint8Array;
}

/** Go leaves leading zeros out. */
function ecdsaHolds(key: KeyObject, signed: Uint8Array, { r, s }: Halves): boolean {
  const size = FIELD_BYTES[key.asymmetricKeyDetails?.namedCurve ?? ""];
  if (size === undefined || r.length === 0 || s.length === 0 || r.length > size || s.length > size) return false;
  const signature = Buffer.alloc(2 * size);
  signature.set(r, size - r.length);
  signature.set(s, 2 * size - s.length);
  return verify("sha256", signed, { key, dsaEncoding: "ieee-p1363" }, signature);
}

const FIELD_BYTES: Readonly<Record<string, number>> = { prime256v1: 32, secp384r1: 48, secp521r1: 66 };

function wrong(reason: string): Fault {
  return new Fault("denied", `challenge response verification failed: ${reason}`, { code: "x509pop-proof" });
}

function malformed(message: string): Fault {
  return new Fault("invalid", message, { code: "evidence-malformed" });
}

/** SHA-1 of the whole certificate, lower-case hex. An identifier, not a protection. */
export function certificateFingerprint({ raw }: Pick<Certificate, "raw">): string {
  return createHash("sha1").update(raw).digest("hex");
}

/** Lower-case hex of an even length. */
export function serialNumberHex({ serialNumber }: Pick<Certificate, "serialNumber">): string {
  const hex = BigInt(serialNumber).toString(16);
  return hex.length % 2 === 0 ? hex : `0${hex}`;
}
