import type { KeyObject } from "node:crypto";
import { type Certificate, parseCertificate } from "../../../src/crypto/certificate.ts";
import { decodePem, encodePem } from "../../../src/crypto/pem.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { parseUniqueJson } from "../../../src/runtime/json.ts";
import { listOf, objectOf, textOf } from "../pods.ts";
import { holds } from "./holds.ts";
import { type Signer, verifySigner } from "./signer.ts";
import { bundledEntry, checkEntry, findEntries, type LogEntry, type LoggedContent } from "./transparency-log.ts";
import type { TrustedRoot } from "./trusted-root.ts";

/** What cosign keeps as one layer of an image's companion. */
export interface Layer {
  readonly kind: LoggedContent["kind"];
  readonly payload: Buffer;
  readonly annotations: Readonly<Record<string, unknown>>;
}

export interface SignaturePolicy {
  readonly allows: (signer: { readonly issuer: string; readonly subjects: readonly string[] }) => boolean;
  readonly ignoreSct: boolean;
  readonly ignoreTlog: boolean;
  readonly rekorUrl: string;
}

export interface SignatureQuestion {
  readonly layer: Layer;
  /** Of the image, with `sha256:`. */
  readonly digest: string;
  readonly policy: SignaturePolicy;
  readonly trust: TrustedRoot;
  readonly now: Date;
  readonly signal: AbortSignal;
}

/** A signature, or attestation, that holds for the image. */
export interface Verified {
  readonly signer: Signer;
  /** Base64; empty for an attestation. */
  readonly signature: string;
  /** Undefined when the transparency log does not count. */
  readonly entry: LogEntry | undefined;
}

/**
 * Throws `denied` unless the layer is about this image, signed with the key of a certificate that the trusted root
 * vouches for at the time of the transparency log's entry (or now, without one), by somebody who is allowed to.
 */
export async function verifyLayer(question: SignatureQuestion): Promise<Verified> {
  const { layer, policy, trust, digest } = question;
  const certificate = certificateOf(layer.annotations);
  const signature = layer.kind === "attestation" ? "" : base64(textOf(layer.annotations[SIGNATURE]));
  const { entry, at } = await logged(question, { ...layer, signature, certificate: certificate.raw });
  const signer = verifySigner({ certificate, at, trust, ignoreSct: policy.ignoreSct });
  if (!policy.allows(signer))
    throw denied(`${signer.subjects.join(", ")} of ${signer.issuer} is not among allowed_identities`);
  CHECKS[layer.kind](layer.payload, { key: signer.key, signature, digest });
  return { signer, signature, entry };
}

/** One spelling for one signature: its text becomes a selector. */
function base64(text: string): string {
  if (text !== "" && Buffer.from(text, "base64").toString("base64") === text) return text;
  throw denied("its signature is missing or not base64");
}

const PREFIX = "dev.sigstore.cosign";
const SIGNATURE = "dev.cosignproject.cosign/signature";

function certificateOf(annotations: Layer["annotations"]): Certificate {
  const [der] = decodePem(textOf(annotations[`${PREFIX}/certificate`]), "CERTIFICATE");
  if (der === undefined) throw denied("it holds no certificate of its signer");
  return parseCertificate(der);
}

interface Logged {
  readonly entry: LogEntry | undefined;
  readonly at: Date;
}

/** The entry that the signature carries; Rekor is asked only where it carries none. */
async function logged(
  { layer, policy, trust, now, signal }: SignatureQuestion,
  content: LoggedContent,
): Promise<Logged> {
  if (policy.ignoreTlog) return { entry: undefined, at: now };
  const bundle = textOf(layer.annotations[`${PREFIX}/bundle`]);
  if (bundle !== "") {
    const entry = bundledEntry(bundle);
    return { entry, at: checkEntry(entry, content, trust) };
  }
  const pem = encodePem("CERTIFICATE", content.certificate);
  const found = await findEntries(policy.rekorUrl, content, pem, signal);
  let failure = denied("the transparency log has no entry about it");
  for (const entry of [...found].sort((a, b) => a.integratedTime - b.integratedTime)) {
    try {
      return { entry, at: checkEntry(entry, content, trust) };
    } catch (error) {
      failure = Fault.from(error);
    }
  }
  throw failure;
}

interface Claim {
  readonly key: KeyObject;
  readonly signature: string;
  readonly digest: string;
}

const CHECKS: Readonly<Record<Layer["kind"], (payload: Buffer, claim: Claim) => void>> = {
  signature: checkSimpleSigning,
  attestation: checkAttestation,
};

/** Simple signing, as containers/image describes it, of cosign's type. */
function checkSimpleSigning(payload: Buffer, { key, signature, digest }: Claim): void {
  if (!holds(key, payload, Buffer.from(signature, "base64"))) throw denied("the signature does not verify");
  const critical = objectOf(objectOf(parsed(payload))["critical"]);
  if (critical["type"] !== "cosign container image signature")
    throw denied("the signed payload is not of cosign's type");
  if (objectOf(critical["image"])["docker-manifest-digest"] !== digest)
    throw denied("it is the signature of another image");
}

const IN_TOTO = "application/vnd.in-toto+json";
/** Each takes a look at the whole statement; cosign makes one. */
const MAX_SIGNATURES = 10;

/** An in-toto statement in a DSSE envelope (v1) with one signature at least that holds. */
function checkAttestation(envelope: Buffer, { key, digest }: Claim): void {
  const { payloadType, payload, signatures } = objectOf(parsed(envelope));
  if (payloadType !== IN_TOTO) throw denied("the envelope holds no in-toto statement");
  const statement = Buffer.from(textOf(payload), "base64");
  const signed = Buffer.concat([Buffer.from(`DSSEv1 ${IN_TOTO.length} ${IN_TOTO} ${statement.length} `), statement]);
  const given = listOf(signatures);
  if (given.length > MAX_SIGNATURES) throw denied(`the envelope has more than ${MAX_SIGNATURES} signatures`);
  if (!given.some(({ sig }) => holds(key, signed, Buffer.from(textOf(sig), "base64"))))
    throw denied("the envelope's signature does not verify");
  const subjects = listOf(objectOf(parsed(statement))["subject"]);
  const isAbout = subjects.some((subject) => `sha256:${objectOf(subject["digest"])["sha256"]}` === digest);
  if (!isAbout) throw denied("it is the attestation of another image");
}

function parsed(text: Buffer): unknown {
  try {
    return parseUniqueJson(text.toString("utf8"));
  } catch (cause) {
    throw new Fault("denied", "the signed payload is not JSON", { code: "image-signature", cause });
  }
}

function denied(message: string): Fault {
  return new Fault("denied", message, { code: "image-signature" });
}
