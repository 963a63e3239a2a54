import { generateKeyPairSync, sign, verify, webcrypto } from "node:crypto";
import "reflect-metadata";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest, parseCertificateRequest, verifyCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { checkPublicKey } from "../../src/crypto/public-key.ts";
import { id, makeAuthority, makeIssuer } from "../server/ca/support.ts";
import { scenario } from "./scenario.ts";
import { perCpuSecond } from "./stats.ts";

/** Where the time of one signature goes, beside the two operations that no implementation can do without. */
export const crypto = scenario({
  summary: "the parts of one X.509 signature by CPU time of one process, beside node:crypto and @peculiar/x509",
  async run({ figure, limits, of }) {
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const data = Buffer.alloc(300, 1);
    const signature = sign("sha256", data, privateKey);
    const us = async (work: () => Promise<unknown> | unknown): Promise<number> =>
      1_000_000 / (await perCpuSecond(work));
    const signing = await limits.signing("ec-p256", "sign");
    const both = await limits.signing("ec-p256", "sign and verify");
    const checking = { name: "openssl speed ec-p256, verify", value: both.value - signing.value };
    const rawSign = await us(() => sign("sha256", data, privateKey));
    const rawVerify = await us(() => verify("sha256", data, publicKey, signature));
    const node = of("node:crypto");
    node.figure({ name: "sign", unit: "us", values: rawSign, limit: signing });
    node.figure({ name: "verify", unit: "us", values: rawVerify, limit: checking });

    const key = await generateKey("ec-p256");
    const csr = Buffer.from(await createCertificateRequest({ signer: key, uris: ["spiffe://example.org/web"] }));
    const issuer = makeIssuer(await makeAuthority());
    const mint = (publicKey: Uint8Array) =>
      issuer.mint({ id: id("/web"), publicKey, ttlSeconds: 60, dnsNames: [], subject: {} });
    const proveRequest = (): Promise<unknown> => verifyCertificateRequest(parseCertificateRequest(csr));
    const whole = async (): Promise<void> => {
      const request = parseCertificateRequest(csr);
      await verifyCertificateRequest(request);
      await mint(request.publicKey);
    };
    const leaf = (await mint(key.publicKey)).chain[0] ?? new Uint8Array();
    figure({ name: "parse CSR", unit: "us", values: await us(() => parseCertificateRequest(csr)) });
    figure({ name: "import public key", unit: "us", values: await us(() => checkPublicKey(key.publicKey)) });
    figure({ name: "parse certificate", unit: "us", values: await us(() => parseCertificate(leaf)) });
    figure({ name: "parse and verify CSR", unit: "us", values: await us(proveRequest), limit: checking });
    of("@peculiar/x509").figure({ name: "parse and verify CSR", unit: "us", values: await us(await peculiar(csr)) });
    figure({
      name: "lint, sign and look again",
      unit: "us",
      values: await us(() => mint(key.publicKey)),
      limit: signing,
    });
    const name = "CSR to certificate";
    const limit = { name: "one core at openssl speed ec-p256, sign and verify", value: 1_000_000 / both.value };
    figure({ name, unit: "/s", values: await perCpuSecond(whole), at: { "in flight": 1 }, limit });
    figure({ name, unit: "/s", values: await perCpuSecond(whole, { inFlight: 16 }), at: { "in flight": 16 }, limit });
  },
});

async function peculiar(csr: Buffer): Promise<() => Promise<unknown>> {
  const x509 = await import("@peculiar/x509");
  x509.cryptoProvider.set(webcrypto as Crypto);
  return () => new x509.Pkcs10CertificateRequest(csr).verify();
}
