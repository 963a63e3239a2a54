import "reflect-metadata";
import { webcrypto } from "node:crypto";
import * as x509 from "@peculiar/x509";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";

x509.cryptoProvider.set(webcrypto);

/** A CSR by a library that is not ours, with whatever extensions. Its subject is `CN=evil, O=Evil`. */
export async function strangeCsr(...extensions: x509.Extension[]): Promise<Uint8Array> {
  const algorithm = { name: "ECDSA", namedCurve: "P-256" };
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: "CN=evil, O=Evil",
    keys: keys as webcrypto.CryptoKeyPair,
    signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
    extensions,
  });
  return new Uint8Array(request.rawData);
}

export function names(
  ...list: readonly { readonly type: x509.GeneralNameType; readonly value: string }[]
): x509.Extension {
  return new x509.SubjectAlternativeNameExtension([...list]);
}

export async function plainCsr(): Promise<Uint8Array> {
  return createCertificateRequest({ signer: await generateKey("ec-p256") });
}

/** Signed, and then changed in its last bit. */
export async function tamperedCsr(): Promise<Uint8Array> {
  const csr = Buffer.from(await plainCsr());
  csr[csr.length - 1] = (csr.at(-1) ?? 0) ^ 1;
  return csr;
}

/** For a key that its maker does not hold. */
export async function csrFor(publicKey: Uint8Array): Promise<Uint8Array> {
  return createCertificateRequest({ signer: { ...(await generateKey("ec-p256")), publicKey } });
}
