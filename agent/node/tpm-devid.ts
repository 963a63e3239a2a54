import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { encodeUnsigned, sequence } from "../../src/crypto/der-writer.ts";
import { decodePem } from "../../src/crypto/pem.ts";
import { readChallenge, TPM_DEVID, writeEvidence, writeResponse } from "../../src/evidence/tpm-devid.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { ALG } from "../../src/tpm/structures.ts";
import { TpmReader } from "../../src/tpm/wire.ts";
import type { NodeAttestor } from "./attestor.ts";
import { type TpmAccess, TpmSession } from "./tpm-keys.ts";

export interface TpmDevIdConfig extends TpmAccess {
  readonly certPath: string;
  readonly privPath: string;
  readonly pubPath: string;
  readonly devidPassword: string;
}

interface Opened {
  readonly session: TpmSession;
  readonly devid: number;
  readonly attestation: number;
  readonly endorsement: number;
}

/** Shows a DevID certificate whose key is in this machine's TPM. */
export function tpmDevIdAttestor(config: TpmDevIdConfig): NodeAttestor {
  let opened: Opened | undefined;
  let session: TpmSession | undefined;
  return {
    type: TPM_DEVID,
    async evidence() {
      const files = await loadFiles(config);
      session = await TpmSession.open(config);
      const devid = await session.loadKey(files);
      // SPIRE's server knows RSA attestation keys alone.
      const ak = await session.attestationKey("rsa");
      const ek = await session.endorsementKey();
      opened = { session, devid, attestation: ak.handle, endorsement: ek.handle };
      const certified = await session.tpm.certify(devid, ak.handle, { object: config.devidPassword });
      return writeEvidence({
        DevIDCert: [...files.certificates],
        DevIDPub: files.publicArea,
        EKCert: await endorsement(session),
        EKPub: ek.publicArea,
        AKPub: ak.publicArea,
        CertifiedDevID: certified.attested,
        CertificationSignature: certified.signature,
      });
    },
    async respond(message) {
      if (opened === undefined) throw new Fault("internal", "the server sent a challenge before it had evidence");
      const { tpm } = opened.session;
      const { nonce, ...activation } = readChallenge(message);
      const digest = createHash("sha256").update(nonce).digest();
      const signature = rawSignature(await tpm.sign(opened.devid, digest, config.devidPassword));
      const passwords = { endorsementHierarchy: config.endorsementPassword };
      return writeResponse({ signature, credential: await tpm.activateCredential(opened, activation, passwords) });
    },
    async done() {
      opened = undefined;
      await session?.[Symbol.asyncDispose]();
      session = undefined;
    },
  };
}

async function endorsement(session: TpmSession): Promise<Uint8Array> {
  const certificate = await session.endorsementCertificate();
  if (certificate !== undefined) return certificate;
  throw new Fault("precondition", "unable to get endorsement certificate: the TPM holds none", {
    code: "tpm-no-endorsement",
    hint: "attest by the tpm attestor and the hash of the endorsement key instead",
  });
}

/** RSASSA as it is, ECDSA in DER. */
function rawSignature(signature: Uint8Array): Uint8Array {
  const reader = new TpmReader(signature);
  const algorithm = reader.u16();
  reader.u16();
  if (algorithm !== ALG.ecdsa) return reader.sized();
  const [r, s] = [reader.sized(), reader.sized()].map((half) => encodeUnsigned(BigInt(`0x${half.toString("hex")}`)));
  return sequence(r ?? Buffer.alloc(0), s ?? Buffer.alloc(0));
}

async function loadFiles({ certPath, privPath, pubPath }: TpmDevIdConfig) {
  const certificates = decodePem((await load(certPath)).toString("latin1"), "CERTIFICATE");
  if (certificates.length === 0) throw unusable(certPath, "no certificates found");
  for (const der of certificates) parseCertificate(der);
  return {
    certificates,
    privateBlob: withoutLength(await load(privPath)),
    publicArea: withoutLength(await load(pubPath)),
  };
}

/** tpm2-tools write a length before the blob, others don't. */
function withoutLength(blob: Buffer): Buffer {
  return blob.length > 2 && blob.readUInt16BE() === blob.length - 2 ? blob.subarray(2) : blob;
}

async function load(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw unusable(path, messageOf(error));
  }
}

function unusable(path: string, reason: string): Fault {
  return new Fault("precondition", `unable to load DevID files: ${path}: ${reason}`, {
    code: "tpm-devid-files",
    hint: "check devid_cert_path, devid_priv_path and devid_pub_path",
  });
}
