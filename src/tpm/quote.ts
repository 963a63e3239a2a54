import { createHash } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import { hashName, type PcrSelection, parseAttested, type TpmPublic, tpmSignatureHolds } from "./structures.ts";

export interface QuoteCheck {
  readonly attestationKey: TpmPublic;
  /** TPMS_ATTEST and TPMT_SIGNATURE. */
  readonly quoted: Uint8Array;
  readonly signature: Uint8Array;
  readonly nonce: Uint8Array;
  /** What was asked for. */
  readonly selection: PcrSelection;
  /** Claimed values, in the order of the selection. */
  readonly values: readonly Uint8Array[];
}

/** Values by register, as hex, once the TPM has vouched for each of them with this nonce. Throws `denied` (T-N11). */
export function verifyQuote(check: QuoteCheck): ReadonlyMap<number, string> {
  const { attestationKey, quoted, signature, nonce, selection, values } = check;
  if (!tpmSignatureHolds(attestationKey, quoted, signature)) throw refused("quote signature does not verify");
  const attested = parseAttested(quoted);
  if (attested.kind !== "quote") throw refused("attested data are no quote");
  if (Buffer.compare(attested.extraData, nonce) !== 0) throw refused("quote is for another nonce");
  // A TPM without the bank quotes an empty selection, and signs that.
  const [quotedBank, ...more] = attested.selection;
  const isAsked =
    quotedBank !== undefined &&
    more.length === 0 &&
    quotedBank.hash === selection.hash &&
    quotedBank.pcrs.join() === selection.pcrs.join();
  if (!isAsked || selection.pcrs.length === 0) throw refused("quote is over other PCRs than those asked for");
  const length = createHash(hashName(selection.hash)).digest().length;
  if (values.length !== selection.pcrs.length || values.some((value) => value.length !== length))
    throw refused("PCR values do not fit the selection");
  const scheme = attestationKey.scheme?.hash ?? 0;
  const digest = createHash(hashName(scheme));
  for (const value of values) digest.update(value);
  if (Buffer.compare(digest.digest(), attested.pcrDigest) !== 0) throw refused("PCR values are not the quoted ones");
  return new Map(selection.pcrs.map((pcr, at) => [pcr, Buffer.from(values[at] ?? []).toString("hex")]));
}

function refused(message: string): Fault {
  return new Fault("denied", message, { code: "tpm-refused" });
}
