import * as v from "valibot";
import type { Certificate } from "../crypto/certificate.ts";
import { isSignedBy, readSignedMessage, type SignedMessage, verifiedContent } from "../crypto/cms.ts";
import { Fault } from "../runtime/fault.ts";
import { bytes, readJson, writeJson } from "./json.ts";

/*
 * The instance identity document of EC2, as SPIRE has it on the wire: spire-contract 11.5.
 */

export const AWS_IID = "aws_iid";

/** Base64 in lines, as the metadata service has it. */
const signature = v.pipe(
  v.string(),
  v.transform((text) => text.replaceAll(/[\r\n]/g, "")),
  bytes,
);
const Evidence = v.object({
  document: v.optional(v.string(), ""),
  signature: v.optional(signature, ""),
  rsa2048: v.optional(signature, ""),
});
export type AwsIidEvidence = v.InferOutput<typeof Evidence>;

/** As the metadata service gives them. */
export type InstanceDocument = v.InferInput<typeof Evidence>;

const Document = v.object({
  accountId: v.pipe(v.string(), v.regex(/^\d{12}$/)),
  instanceId: v.pipe(v.string(), v.regex(/^i-[0-9a-f]{8,32}$/)),
  region: v.pipe(v.string(), v.regex(/^[a-z]{2,8}(-[a-z]{2,16}){1,3}-\d{1,2}$/)),
  availabilityZone: v.pipe(v.string(), v.regex(/^[a-z0-9-]{1,64}$/)),
  imageId: v.pipe(v.string(), v.regex(/^[a-z0-9-]{1,64}$/)),
});

/** What AWS says of an instance. */
export type InstanceIdentity = v.InferOutput<typeof Document>;

/** A certificate that signs the documents of one region. */
export interface RegionCertificate {
  readonly region: string;
  readonly certificate: Certificate;
}

/** Throws `invalid`. */
export function readEvidence(payload: Uint8Array): AwsIidEvidence {
  return readJson(Evidence, payload, "failed to unmarshal the attestation data");
}

export function writeEvidence(evidence: InstanceDocument): Uint8Array {
  return writeJson(evidence);
}

/**
 * The identity that AWS signed. It is read from the bytes that the PKCS #7 signature covers, and from no others; the
 * document beside them has to be the same (T-N1). The certificate is that of the region, whose documents alone it signs.
 * A signature by an RSA key of 1024 bits, which `signature` holds, proves nothing. Throws `invalid`, `denied`.
 */
export function verifyIdentity(
  { document, signature: older, rsa2048 }: AwsIidEvidence,
  certificates: readonly RegionCertificate[],
): InstanceIdentity {
  if (rsa2048.length === 0 && older.length === 0)
    throw invalid("instance identity cryptographic signature is required");
  if (rsa2048.length === 0)
    throw new Fault("denied", "instance identity signature of RSA-2048 is required", {
      code: "aws-iid-refused",
      hint: "run an agent that sends it: those that send RSA-1024 alone are refused",
    });
  const message = readSignedMessage(rsa2048);
  const signer = certificates.find(({ certificate }) => isSignedBy(message, certificate));
  if (signer === undefined)
    throw new Fault("denied", "instance identity document is signed by no known region of AWS", {
      code: "aws-iid-refused",
      hint: "name the region's certificate in regions, if AWS has opened it after this version",
    });
  const content = contentOf(message, signer.certificate);
  if (Buffer.compare(content, Buffer.from(document, "utf8")) !== 0)
    throw invalid("instance identity document does not match the verified PKCS7 content");
  const identity = readJson(Document, content, "failed to unmarshal the IID");
  if (identity.region === signer.region) return identity;
  throw new Fault("denied", "instance identity document is of another region than its signature", {
    code: "aws-iid-refused",
  });
}

function contentOf(message: SignedMessage, certificate: Certificate): Uint8Array {
  try {
    return verifiedContent(message, certificate);
  } catch (cause) {
    const { message: reason } = Fault.from(cause);
    throw new Fault("denied", `failed verification of instance identity cryptographic signature: ${reason}`, {
      code: "aws-iid-refused",
      cause,
    });
  }
}

function invalid(message: string): Fault {
  return new Fault("invalid", message, { code: "aws-iid-evidence" });
}
