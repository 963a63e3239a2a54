import { createHash, type KeyObject } from "node:crypto";
import { type Certificate, parseCertificate } from "../../../src/crypto/certificate.ts";
import { checkPublicKey } from "../../../src/crypto/public-key.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import { parseUniqueJson } from "../../../src/runtime/json.ts";
import { listOf, objectOf, textOf } from "../pods.ts";

/** Whom a Sigstore deployment says to believe. */
export interface TrustedRoot {
  /** Issuers of signers' certificates. */
  readonly authorities: readonly Authority[];
  /** Rekor's keys. By the log's id: the hexadecimal SHA-256 of its key. */
  readonly transparencyLogs: ReadonlyMap<string, Log>;
  /** Keys of certificate transparency logs, by id. */
  readonly certificateLogs: ReadonlyMap<string, Log>;
}

interface Period {
  readonly from: Date;
  readonly to: Date;
}

interface Authority extends Period {
  readonly root: Certificate;
  readonly intermediates: readonly Certificate[];
}

export interface Log extends Period {
  readonly key: KeyObject;
}

/**
 * Reads Sigstore's `trusted_root.json`. Logs with kinds of keys that sign nothing here are passed over. Throws
 * `invalid`.
 */
export function parseTrustedRoot(text: string): TrustedRoot {
  try {
    const root = objectOf(parseUniqueJson(text));
    const found = {
      authorities: listOf(root["certificateAuthorities"]).map(authorityOf),
      transparencyLogs: logsOf(root["tlogs"]),
      certificateLogs: logsOf(root["ctlogs"]),
    };
    if (found.authorities.length === 0) throw new Error("it names no certificate authority");
    return found;
  } catch (cause) {
    const message = `Sigstore's trusted root cannot be used: ${messageOf(cause)}`;
    throw new Fault("invalid", message, { code: "trusted-root", cause });
  }
}

export function isValidAt({ from, to }: Period, at: Date): boolean {
  return from <= at && at <= to;
}

type Json = Readonly<Record<string, unknown>>;

function authorityOf(authority: Json): Authority {
  const certificates = listOf(objectOf(authority["certChain"])["certificates"]).map(({ rawBytes }) =>
    parseCertificate(bytesOf(rawBytes)),
  );
  const root = certificates.at(-1);
  if (root === undefined) throw new Error("a certificate authority has no certificate");
  return { root, intermediates: certificates.slice(0, -1), ...periodOf(authority["validFor"]) };
}

function logsOf(value: unknown): ReadonlyMap<string, Log> {
  return new Map(
    listOf(value).flatMap((log) => {
      const publicKey = objectOf(log["publicKey"]);
      const spki = bytesOf(publicKey["rawBytes"]);
      const key = keyOf(spki);
      if (key === undefined) return [];
      const id = createHash("sha256").update(spki).digest("hex");
      return [[id, { key, ...periodOf(publicKey["validFor"]) }]];
    }),
  );
}

function keyOf(spki: Uint8Array): KeyObject | undefined {
  try {
    return checkPublicKey(spki);
  } catch {
    return undefined;
  }
}

function periodOf(value: unknown): Period {
  const { start, end } = objectOf(value);
  return { from: timeOf(start, 0), to: timeOf(end, 8.64e15) };
}

function timeOf(value: unknown, otherwise: number): Date {
  const time = new Date(value === undefined ? otherwise : textOf(value));
  if (Number.isNaN(time.getTime())) throw new Error("a period has a malformed time");
  return time;
}

function bytesOf(value: unknown): Buffer {
  return Buffer.from(textOf(value), "base64");
}
