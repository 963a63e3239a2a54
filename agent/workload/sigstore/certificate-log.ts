import { createHash } from "node:crypto";
import type { Certificate } from "../../../src/crypto/certificate.ts";
import { DerReader, TAG } from "../../../src/crypto/der.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { extensionValue, withoutExtension } from "./extensions.ts";
import { holds } from "./holds.ts";
import { isValidAt, type Log } from "./trusted-root.ts";

/** Of certificates that carry their timestamps with them. RFC 6962, section 3.3. */
const SCT_LIST = "1.3.6.1.4.1.11129.2.4.2";
const V1 = 0;
const SHA256 = 4;
const LOG_ID_BYTES = 32;
/** Kind of signature: a timestamp. Kind of entry: a certificate before it got its timestamps. */
const CERTIFICATE_TIMESTAMP = 0;
const PRECERT_ENTRY = 1;

/**
 * Holds when logs of the trusted root promised, in the certificate, to publish it: at least one did, and no promise is
 * false or of another log. Throws `denied`.
 */
export function checkCertificateTimestamps(
  certificate: Certificate,
  issuer: Certificate,
  logs: ReadonlyMap<string, Log>,
): void {
  const value = extensionValue(certificate, SCT_LIST);
  const timestamps = value === undefined ? [] : timestampsOf(value);
  if (timestamps.length === 0) throw denied("the signer's certificate holds no signed certificate timestamp (SCT)");
  const entry = precertEntry(certificate, issuer);
  for (const timestamp of timestamps) {
    const log = logs.get(timestamp.logId);
    if (log === undefined || !isValidAt(log, timestamp.at))
      throw denied(`the signed certificate timestamp (SCT) is of an unknown log, ${timestamp.logId}`);
    const signed = Buffer.concat([
      ...[Buffer.from([V1, CERTIFICATE_TIMESTAMP]), timestamp.time],
      ...[entry, sized(2, timestamp.extensions)],
    ]);
    if (timestamp.hash !== SHA256 || !holds(log.key, signed, timestamp.signature))
      throw denied("the signed certificate timestamp (SCT) does not verify");
  }
}

interface Timestamp {
  /** Hexadecimal. */
  readonly logId: string;
  /** Milliseconds, as signed. */
  readonly time: Buffer;
  readonly at: Date;
  readonly extensions: Buffer;
  readonly hash: number;
  readonly signature: Buffer;
}

/** SignedCertificateTimestampList, in an OCTET STRING of its own. */
function timestampsOf(value: Uint8Array): readonly Timestamp[] {
  const outer = new DerReader(value);
  const list = new TlsReader(Buffer.from(outer.read(TAG.octetString).body));
  outer.end();
  const items = new TlsReader(list.vector(2));
  list.end();
  const found: Timestamp[] = [];
  while (!items.atEnd) found.push(timestampOf(new TlsReader(items.vector(2))));
  return found;
}

function timestampOf(reader: TlsReader): Timestamp {
  if (reader.number(1) !== V1) throw denied("the signed certificate timestamp (SCT) has an unknown version");
  const logId = reader.bytes(LOG_ID_BYTES).toString("hex");
  const time = reader.bytes(8);
  const extensions = reader.vector(2);
  const hash = reader.number(1);
  reader.number(1);
  const signature = reader.vector(2);
  reader.end();
  return { logId, time, at: new Date(Number(time.readBigUInt64BE())), extensions, hash, signature };
}

/** PreCert with its kind. RFC 6962, section 3.2. */
function precertEntry(certificate: Certificate, issuer: Certificate): Buffer {
  const issuerKeyHash = createHash("sha256").update(issuer.publicKey).digest();
  const tbs = withoutExtension(certificate, SCT_LIST);
  return Buffer.concat([Buffer.from([0, PRECERT_ENTRY]), issuerKeyHash, sized(3, tbs)]);
}

function sized(lengthBytes: number, bytes: Uint8Array): Buffer {
  const length = Buffer.alloc(lengthBytes);
  length.writeUIntBE(bytes.length, 0, lengthBytes);
  return Buffer.concat([length, bytes]);
}

/** The presentation language of TLS. RFC 8446, section 3. */
class TlsReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get atEnd(): boolean {
    return this.#at >= this.#bytes.length;
  }

  bytes(length: number): Buffer {
    if (length > this.#bytes.length - this.#at) throw denied("a signed certificate timestamp (SCT) is truncated");
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  number(length: number): number {
    return this.bytes(length).readUIntBE(0, length);
  }

  vector(lengthBytes: number): Buffer {
    return this.bytes(this.number(lengthBytes));
  }

  end(): void {
    if (!this.atEnd) throw denied("a signed certificate timestamp (SCT) has trailing bytes");
  }
}

function denied(message: string): Fault {
  return new Fault("denied", message, { code: "image-signer" });
}
