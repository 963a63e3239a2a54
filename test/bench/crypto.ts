import { generateKeyPairSync, sign, verify, webcrypto } from "node:crypto";
import "reflect-metadata";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest, parseCertificateRequest, verifyCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { checkPublicKey } from "../../src/crypto/public-key.ts";
import { id, makeAuthority, makeIssuer } from "../server/ca/support.ts";
import { perSecond, perSecondInFlight } from "./stats.ts";

/** Where the time of one signature goes, beside the two operations that no implementation can do without. */
export async function measureCrypto(): Promise<string[]> {
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const data = Buffer.alloc(300, 1);
  const signature = sign("sha256", data, privateKey);
  const rawSign = await perSecond(() => sign("sha256", data, privateKey));
  const rawVerify = await perSecond(() => verify("sha256", data, publicKey, signature));
  const floor = 1 / (1 / rawSign + 1 / rawVerify);

  const key = await generateKey("ec-p256");
  const csr = Buffer.from(await createCertificateRequest({ signer: key, uris: ["spiffe://example.org/web"] }));
  const issuer = makeIssuer(await makeAuthority());
  const mint = (publicKey: Uint8Array) =>
    issuer.mint({ id: id("/web"), publicKey, ttlSeconds: 60, dnsNames: [], subject: {} });
  const parse = await perSecond(() => parseCertificateRequest(csr));
  const imported = await perSecond(() => checkPublicKey(key.publicKey));
  const proof = await perSecond(() => verifyCertificateRequest(parseCertificateRequest(csr)));
  const issue = await perSecond(() => mint(key.publicKey));
  const whole = async (): Promise<void> => {
    const request = parseCertificateRequest(csr);
    await verifyCertificateRequest(request);
    await mint(request.publicKey);
  };
  const one = await perSecond(whole);
  const many = await perSecondInFlight(whole, 16);
  const leaf = (await mint(key.publicKey)).chain[0] ?? new Uint8Array();
  const parseLeaf = await perSecond(() => parseCertificate(leaf));
  const peculiar = await measurePeculiar(csr);
  const us = (rate: number): string => `${(1_000_000 / rate).toFixed(1)} us`;
  return [
    `floor: verify ${us(rawVerify)} + sign ${us(rawSign)} with node:crypto = ${Math.round(floor)}/s on one core`,
    `parse CSR ${us(parse)}, import public key ${us(imported)}, parse and verify CSR ${us(proof)}, lint, sign and look again ${us(issue)}`,
    `CSR to certificate: ${Math.round(one)}/s one at a time, ${Math.round(many)}/s with 16 in flight; ${(one / floor).toFixed(2)} and ${(many / floor).toFixed(2)} of the floor`,
    `parse certificate ${us(parseLeaf)}`,
    `@peculiar/x509, parse and verify the same CSR: ${us(peculiar)}; ours is ${(proof / peculiar).toFixed(1)} times as fast`,
  ];
}

async function measurePeculiar(csr: Buffer): Promise<number> {
  const x509 = await import("@peculiar/x509");
  x509.cryptoProvider.set(webcrypto as Crypto);
  return perSecond(() => new x509.Pkcs10CertificateRequest(csr).verify());
}
