import { createHash } from "node:crypto";
import { urlToHttpOptions } from "node:url";
import { decodePem } from "../../../src/crypto/pem.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { parseUniqueJson } from "../../../src/runtime/json.ts";
import { httpAsk, jsonOf } from "../http.ts";
import { listOf, objectOf, textOf } from "../pods.ts";
import { holds } from "./holds.ts";
import { isValidAt, type TrustedRoot } from "./trusted-root.ts";

/** One entry of Rekor, with the log's promise to keep it. */
export interface LogEntry {
  /** Base64 of the canonical JSON. */
  readonly body: string;
  /** Seconds since 1970. */
  readonly integratedTime: number;
  readonly logIndex: number;
  /** Hexadecimal. */
  readonly logId: string;
  /** Signed entry timestamp, base64. */
  readonly promise: string;
}

/** What an entry must be about. */
export interface LoggedContent {
  readonly kind: "signature" | "attestation";
  /** The bytes that the log knows by their hash. */
  readonly payload: Uint8Array;
  /** Base64; empty for an attestation, whose payload holds it. */
  readonly signature: string;
  /** DER. */
  readonly certificate: Uint8Array;
}

type Json = Readonly<Record<string, unknown>>;
type Path = readonly (string | number)[];

interface Kind {
  readonly of: LoggedContent["kind"];
  readonly hash: Path;
  /** Base64 of the PEM certificate that signed. */
  readonly signer: Path;
  readonly signature?: Path;
  /** Has one item exactly; what an entry says of a second signature is not read. */
  readonly single?: Path;
}

const PLAIN: Kind = {
  of: "signature",
  hash: ["data", "hash"],
  signer: ["signature", "publicKey", "content"],
  signature: ["signature", "content"],
};
const ENVELOPES: Path = ["content", "envelope", "signatures"];

/** Kinds of entries, with their version, by which images were signed since cosign can. */
const KINDS: ReadonlyMap<string, Kind> = new Map<string, Kind>([
  ["hashedrekord 0.0.1", PLAIN],
  ["rekord 0.0.1", PLAIN],
  [
    "dsse 0.0.1",
    { of: "attestation", hash: ["envelopeHash"], signer: ["signatures", 0, "verifier"], single: ["signatures"] },
  ],
  ["intoto 0.0.1", { of: "attestation", hash: ["content", "hash"], signer: ["publicKey"] }],
  [
    "intoto 0.0.2",
    { of: "attestation", hash: ["content", "hash"], signer: [...ENVELOPES, 0, "publicKey"], single: ENVELOPES },
  ],
]);

const REQUEST_BYTES_MAX = 4 * 1024 * 1024;
const MAX_FOUND = 100;

/** The entry that cosign keeps beside a signature. Throws `denied` when it is malformed. */
export function bundledEntry(annotation: string): LogEntry {
  const bundle = objectOf(parsed(annotation));
  return entryOf(objectOf(bundle["Payload"]), textOf(bundle["SignedEntryTimestamp"]));
}

/**
 * When the content was logged. Throws `denied` unless a log of the trusted root promised this entry, and it is about
 * this content.
 */
export function checkEntry(entry: LogEntry, content: LoggedContent, { transparencyLogs }: TrustedRoot): Date {
  const { body, integratedTime, logIndex, logId } = entry;
  const at = new Date(integratedTime * 1000);
  const log = transparencyLogs.get(logId);
  if (log === undefined || !isValidAt(log, at)) throw denied(`the entry is of an unknown transparency log, ${logId}`);
  /** RFC 8785, which these members and values come out of as they are. */
  const signed = JSON.stringify({ body, integratedTime, logID: logId, logIndex });
  if (!holds(log.key, Buffer.from(signed), Buffer.from(entry.promise, "base64")))
    throw denied("the transparency log's signed entry timestamp does not verify");
  checkContent(objectOf(parsed(Buffer.from(body, "base64").toString("utf8"))), content);
  return at;
}

function checkContent({ kind, apiVersion, spec }: Json, content: LoggedContent): void {
  const found = KINDS.get(`${textOf(kind)} ${textOf(apiVersion)}`);
  if (found?.of !== content.kind)
    throw denied(`the transparency log's entry is of a kind that says nothing of an image's ${content.kind}`);
  const { algorithm, value } = objectOf(valueAt(spec, found.hash));
  const hash = createHash("sha256").update(content.payload).digest("hex");
  if (algorithm !== "sha256" || value !== hash) throw denied("the transparency log's entry is about other content");
  if (found.signature !== undefined && valueAt(spec, found.signature) !== content.signature)
    throw denied("the transparency log's entry is about another signature");
  const several = found.single === undefined ? undefined : valueAt(spec, found.single);
  if (Array.isArray(several) && several.length !== 1)
    throw denied("the transparency log's entry has several signatures");
  const [certificate] = decodePem(
    Buffer.from(textOf(valueAt(spec, found.signer)), "base64").toString("latin1"),
    "CERTIFICATE",
  );
  if (certificate === undefined || Buffer.compare(certificate, content.certificate) !== 0)
    throw denied("the transparency log's entry is about another signer");
}

function valueAt(value: unknown, path: Path): unknown {
  return path.reduce<unknown>((found, key) => {
    if (typeof found !== "object" || found === null || !Object.hasOwn(found, key)) return undefined;
    return (found as Readonly<Record<string | number, unknown>>)[key];
  }, value);
}

function entryOf({ body, integratedTime, logIndex, logID }: Json, promise: string): LogEntry {
  const numbers = [integratedTime, logIndex].every((value) => Number.isSafeInteger(value) && Number(value) >= 0);
  if (!numbers || textOf(body) === "" || textOf(logID) === "" || promise === "")
    throw denied("the transparency log's entry is malformed");
  return {
    ...{ body: textOf(body), logId: textOf(logID), promise },
    ...{ integratedTime: Number(integratedTime), logIndex: Number(logIndex) },
  };
}

/** Entries about the content, by asking Rekor, as its API (v1) has it. Throws `unavailable`. */
export async function findEntries(
  rekorUrl: string,
  content: LoggedContent,
  pem: string,
  signal: AbortSignal,
): Promise<readonly LogEntry[]> {
  const url = new URL(`${rekorUrl.replace(/\/+$/, "")}/api/v1/log/entries/retrieve`);
  const peer = `the transparency log at ${url.host}`;
  const headers = { accept: "application/json", "content-type": "application/json", "user-agent": "steeple-agent" };
  const question = {
    ...{ secure: url.protocol === "https:", options: { ...urlToHttpOptions(url), headers } },
    ...{ maxBytes: REQUEST_BYTES_MAX, peer, body: JSON.stringify({ entries: proposals(content, pem) }) },
  };
  const answer = await httpAsk(question, signal);
  if (answer.status !== 200)
    throw new Fault("unavailable", `${peer} answered with status ${answer.status}`, { code: "transparency-log" });
  const found = listOf(jsonOf(answer.body, peer)).flatMap((byId) => Object.values(byId).map(objectOf));
  return found.slice(0, MAX_FOUND).map((entry) => {
    return entryOf(entry, textOf(objectOf(entry["verification"])["signedEntryTimestamp"]));
  });
}

/** What the entries would be if they were made now, for Rekor to compare with. */
function proposals({ kind, payload, signature }: LoggedContent, pem: string): readonly object[] {
  const signer = Buffer.from(pem).toString("base64");
  const entry = (of: string, spec: object): object => ({ apiVersion: "0.0.1", kind: of, spec });
  if (kind === "attestation") {
    const envelope = Buffer.from(payload).toString("utf8");
    return [
      entry("dsse", { proposedContent: { envelope, verifiers: [signer] } }),
      entry("intoto", { content: { envelope }, publicKey: signer }),
    ];
  }
  const hash = { algorithm: "sha256", value: createHash("sha256").update(payload).digest("hex") };
  return [entry("hashedrekord", { data: { hash }, signature: { content: signature, publicKey: { content: signer } } })];
}

function parsed(text: string): unknown {
  try {
    return parseUniqueJson(text);
  } catch (cause) {
    throw new Fault("denied", "the transparency log's entry is not JSON", { code: "image-transparency", cause });
  }
}

function denied(message: string): Fault {
  return new Fault("denied", message, { code: "image-transparency" });
}
