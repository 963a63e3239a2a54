import type { Certificate } from "../../../src/crypto/certificate.ts";
import { TAG } from "../../../src/crypto/der.ts";
import { encodeOctets, encodeTime, encodeUnsigned, explicit, sequence } from "../../../src/crypto/der-writer.ts";
import type { LocalSigner } from "../../../src/crypto/key.ts";
import { signatureAlgorithm } from "../../../src/crypto/signature.ts";

/** A version 2 list with CRL number, as a CA publishes it. */
export async function makeCrl(
  issuer: { readonly certificate: Certificate; readonly signer: LocalSigner },
  serials: readonly bigint[],
  signer = issuer.signer,
): Promise<Uint8Array> {
  const algorithm = signatureAlgorithm(signer.keyType);
  const at = new Date("2026-01-01T00:00:00Z");
  const entries = serials.map((serial) => sequence(encodeUnsigned(serial), encodeTime(at)));
  const number = sequence(Buffer.from("0603551d14", "hex"), Buffer.from([TAG.octetString, 3, 2, 1, 1]));
  const tbs = sequence(
    encodeUnsigned(1n),
    algorithm,
    issuer.certificate.subject,
    encodeTime(at),
    encodeTime(new Date("2036-01-01T00:00:00Z")),
    ...(entries.length === 0 ? [] : [sequence(...entries)]),
    explicit(0, sequence(number)),
  );
  return sequence(tbs, algorithm, encodeOctets(await signer.sign(tbs)));
}
