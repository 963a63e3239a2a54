import { createHash, type KeyObject, randomBytes } from "node:crypto";
import * as v from "valibot";
import { Fault } from "../runtime/fault.ts";
import { base64, bytes, optionalBytes, readJson, writeJson } from "./json.ts";
import {
  readPublicFields,
  readPublicKey,
  readSignature,
  type SshSignature,
  signatureHolds,
  signSsh,
} from "./ssh-key.ts";
import { SshReader, sshFault } from "./ssh-wire.ts";

/*
 * Proof of possession of a host's SSH certificate, as SPIRE has it on the wire: spire-contract 11.5. The certificate's
 * form is OpenSSH's PROTOCOL.certkeys.
 */

export const SSHPOP = "sshpop";
const NONCE_BYTES = 32;
const SUFFIX = "-cert-v01@openssh.com";
const HOST = 2;
const MAX_CERTIFICATE_BYTES = 16 * 1024;
/** As good as never. */
const FOREVER = 2n ** 64n - 1n;

const Evidence = v.object({ Certificate: bytes });
const ChallengeMessage = v.object({ Nonce: bytes });
const ResponseMessage = v.object({
  Nonce: optionalBytes,
  Signature: v.nullish(v.object({ Format: v.string(), Blob: optionalBytes, Rest: optionalBytes })),
});

export interface SshCertificate {
  readonly raw: Uint8Array;
  readonly key: KeyObject;
  readonly serial: bigint;
  readonly type: number;
  readonly keyId: string;
  readonly principals: readonly string[];
  /** Unix seconds. */
  readonly validAfter: bigint;
  readonly validBefore: bigint;
  readonly criticalOptions: readonly string[];
  /** The CA's public key, in its binary form. */
  readonly authority: Uint8Array;
  readonly signed: Uint8Array;
  readonly signature: SshSignature;
}

/** Strict, at most 16 KiB; proves nothing about who signed it. Throws `invalid`. */
export function parseSshCertificate(raw: Uint8Array): SshCertificate {
  if (raw.length > MAX_CERTIFICATE_BYTES) throw sshFault("the certificate is larger than 16 KiB");
  const reader = new SshReader(raw);
  const name = reader.text();
  if (!name.endsWith(SUFFIX))
    throw new Fault("invalid", "pubkey in response is not a certificate", { code: "ssh-malformed" });
  reader.bytes();
  const key = readPublicFields(name.slice(0, -SUFFIX.length), reader);
  const fields = {
    serial: reader.uint64(),
    type: reader.uint32(),
    keyId: reader.text(),
    principals: texts(reader.bytes()),
    validAfter: reader.uint64(),
    validBefore: reader.uint64(),
    criticalOptions: texts(reader.bytes()).filter((_, index) => index % 2 === 0),
  };
  reader.bytes();
  reader.bytes();
  const authority = reader.bytes();
  const signed = raw.subarray(0, reader.position);
  const signature = readSignature(reader.bytes());
  reader.end();
  return { raw, key, ...fields, authority, signed, signature };
}

function texts(packed: Uint8Array): readonly string[] {
  const reader = new SshReader(packed);
  const all: string[] = [];
  while (!reader.isAtEnd) all.push(reader.text());
  return all;
}

export interface SshTrust {
  /** CA public keys in their binary form. */
  readonly authorities: readonly Uint8Array[];
  readonly at: Date;
}

/** The host that the certificate is for: its first principal. Throws `denied` when no authority vouches for it. */
export function verifySshCertificate(certificate: SshCertificate, { authorities, at }: SshTrust): string {
  const { type, principals, authority, criticalOptions, validAfter, validBefore, signed, signature } = certificate;
  const [principal] = principals;
  if (type !== HOST) throw denied("certificate is not a host certificate");
  if (principal === undefined || principal === "") throw denied("cert has no valid principals");
  if (!authorities.some((known) => Buffer.compare(known, authority) === 0))
    throw denied("no authorities for the certificate");
  if (criticalOptions.length > 0) throw denied("certificate has an unsupported critical option");
  const now = BigInt(Math.floor(at.getTime() / 1000));
  if (now < validAfter) throw denied("cert is not yet valid");
  if (now >= validBefore && validBefore !== FOREVER) throw denied("cert has expired");
  if (!signatureHolds(readPublicKey(authority), signed, { signature }))
    throw denied("certificate signature does not verify");
  return principal;
}

/** Base64url of the SHA-256. */
export function sshFingerprint({ raw }: Pick<SshCertificate, "raw">): string {
  return createHash("sha256").update(raw).digest("base64url");
}

/** Throws `invalid`. */
export function readEvidence(payload: Uint8Array): Uint8Array {
  return readJson(Evidence, payload, "failed to unmarshal data").Certificate;
}

export function writeEvidence(certificate: Uint8Array): Uint8Array {
  return writeJson({ Certificate: base64(certificate) });
}

export interface SshChallenge {
  readonly nonce: Uint8Array;
  readonly message: Uint8Array;
}

export function makeChallenge(): SshChallenge {
  const nonce = randomBytes(NONCE_BYTES);
  return { nonce, message: writeJson({ Nonce: base64(nonce) }) };
}

/** Throws `invalid`. */
export function answerChallenge(privateKey: KeyObject, challenge: Uint8Array): Uint8Array {
  const { Nonce } = readJson(ChallengeMessage, challenge, "failed to unmarshal challenge request");
  if (Nonce.length !== NONCE_BYTES) throw sshFault("invalid challenge nonce size");
  const nonce = randomBytes(NONCE_BYTES);
  const { format, blob } = signSsh(privateKey, combined(Nonce, nonce));
  return writeJson({ Nonce: base64(nonce), Signature: { Format: format, Blob: base64(blob), Rest: null } });
}

/**
 * Returns when the peer holds the private key. SHA-1 is accepted here alone, since SPIRE's agent signs so with an RSA key:
 * what is signed has our nonce in it. Throws `invalid` or `denied`.
 */
export function verifyResponse(key: KeyObject, challenge: SshChallenge, response: Uint8Array): void {
  const { Nonce, Signature } = readJson(ResponseMessage, response, "failed to unmarshal challenge response");
  if (Nonce.length !== NONCE_BYTES) throw denied("failed to combine nonces: invalid response nonce size");
  if (Signature == null || Signature.Rest.length > 0) throw denied("failed to verify signature: there is none");
  const signature = { format: Signature.Format, blob: Signature.Blob };
  if (!signatureHolds(key, combined(challenge.nonce, Nonce), { signature, allowSha1: true }))
    throw denied("failed to verify signature");
}

function combined(challenge: Uint8Array, response: Uint8Array): Buffer {
  return createHash("sha256").update(challenge).update(response).digest();
}

function denied(message: string): Fault {
  return new Fault("denied", message, { code: "sshpop-refused" });
}
