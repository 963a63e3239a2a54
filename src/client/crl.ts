import type { Certificate } from "../crypto/certificate.ts";
import { contextTag, DerReader, readOctets, readOnly, readTime, readUnsigned, TAG } from "../crypto/der.ts";
import { checkPublicKey } from "../crypto/public-key.ts";
import { type SignedData, signatureHolds } from "../crypto/signature.ts";
import { Fault } from "../runtime/fault.ts";

/** A certificate revocation list as received: shape checked, signature not. RFC 5280, section 5. */
export interface RevocationList {
  readonly raw: Uint8Array;
  /** DER Name. */
  readonly issuer: Uint8Array;
  readonly thisUpdate: Date;
  readonly nextUpdate: Date | undefined;
  /** Serial numbers, decimal. */
  readonly revoked: ReadonlySet<string>;
  readonly signedData: SignedData;
}

const MAX_BYTES = 4 * 1024 * 1024;

/** Throws `invalid` for anything that is not the DER of one list. */
export function parseRevocationList(der: Uint8Array): RevocationList {
  if (der.length > MAX_BYTES) throw new Fault("invalid", "CRL is too large", { code: "crl-size" });
  const list = readOnly(der);
  const tbs = list.read(TAG.sequence);
  const signatureAlgorithm = list.read(TAG.sequence).raw;
  const signature = readOctets(list.read(TAG.bitString));
  list.end();
  const signedData = { signed: tbs.raw, signatureAlgorithm, signature };
  return { raw: der, ...readBody(new DerReader(tbs.body)), signedData };
}

function readBody(body: DerReader): Omit<RevocationList, "raw" | "signedData"> {
  body.optional(TAG.integer);
  body.read(TAG.sequence);
  const issuer = body.read(TAG.sequence).raw;
  const thisUpdate = readTime(body.read());
  const next = body.optional(TAG.utcTime) ?? body.optional(TAG.generalizedTime);
  const entries = body.optional(TAG.sequence);
  body.optional(contextTag(0, true));
  body.end();
  return {
    issuer,
    thisUpdate,
    nextUpdate: next === undefined ? undefined : readTime(next),
    revoked: new Set(entries === undefined ? [] : readSerials(new DerReader(entries.body))),
  };
}

function* readSerials(entries: DerReader): Generator<string, void, undefined> {
  for (const entry of entries.rest(TAG.sequence)) {
    yield readUnsigned(new DerReader(entry.body).read(TAG.integer)).toString();
  }
}

/**
 * Throws `denied` when a certificate of the chain stands on a list that its own issuer signed. The issuer is looked
 * for in the rest of the chain and among the authorities; a list that nobody here signed says nothing.
 */
export function checkRevocation(
  chain: readonly Certificate[],
  authorities: readonly Certificate[],
  lists: readonly RevocationList[],
): void {
  const issuers = [...chain, ...authorities].filter((certificate) => certificate.isCa);
  for (const certificate of chain) {
    const against = lists.filter(
      (list) => list.revoked.has(certificate.serialNumber) && same(list.issuer, certificate.issuer),
    );
    const signed = against.some((list) =>
      issuers.some(({ subject, publicKey }) => {
        return same(subject, list.issuer) && signatureHolds(list.signedData, checkPublicKey(publicKey));
      }),
    );
    if (signed) {
      throw new Fault("denied", `certificate ${certificate.serialNumber} is revoked`, { code: "certificate-revoked" });
    }
  }
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}
