import { type CertificateRequest, parseCertificateRequest, verifyCertificateRequest } from "../../src/crypto/csr.ts";
import type { Log } from "../../src/runtime/log.ts";
import { failure } from "./fail.ts";

/** How SPIRE words the two ways in which a CSR fails, by method. */
export interface CsrWords {
  readonly malformed: string;
  readonly badSignature: string;
}

/** Parses a CSR, refuses weak keys (T-X6), and makes the sender prove that it holds the private key. Throws `invalid`. */
export async function readCsr(log: Log, der: Uint8Array, words: CsrWords): Promise<CertificateRequest> {
  let csr: CertificateRequest;
  try {
    csr = parseCertificateRequest(der);
  } catch (error) {
    throw failure(log, "invalid", words.malformed, error);
  }
  try {
    await verifyCertificateRequest(csr);
  } catch (error) {
    throw failure(log, "invalid", words.badSignature, error);
  }
  return csr;
}

/** All that the certificate of an agent or of an entry takes from a CSR (T-C1, T-C2). */
export async function publicKeyOf(log: Log, der: Uint8Array, malformed: string): Promise<Uint8Array> {
  return (await readCsr(log, der, { malformed, badSignature: "invalid CSR signature" })).publicKey;
}
