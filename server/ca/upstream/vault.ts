import { parseCertificateRequest } from "../../../src/crypto/csr.ts";
import { parseName } from "../../../src/crypto/name.ts";
import { decodePem, encodePem } from "../../../src/crypto/pem.ts";
import { VaultClient, type VaultConfig } from "../../../src/keys/vault-client.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { MintedCa, UpstreamAuthority } from "../upstream.ts";

export interface VaultUpstreamOptions {
  readonly vault: VaultConfig;
  /** Where the PKI engine is mounted. */
  readonly mount: string;
  readonly clock: Pick<Clock, "monotonic">;
}

/** The PKI engine of Vault or OpenBao signs. */
export function openVaultUpstream({ vault, mount, clock }: VaultUpstreamOptions): UpstreamAuthority {
  const client = new VaultClient(vault, clock);
  return {
    name: "vault",
    async mintX509CA({ csr, ttlSeconds }) {
      const { subject, uris } = parseCertificateRequest(csr);
      const { organization = [], country = [], commonName = "" } = parseName(subject);
      const answer = await client.call("POST", `${mount}/root/sign-intermediate`, {
        common_name: commonName,
        organization: [organization].flat().join(","),
        country: [country].flat().join(","),
        uri_sans: uris.join(","),
        csr: encodePem("CERTIFICATE REQUEST", csr),
        ttl: String(ttlSeconds),
      });
      return mintedOf(answer);
    },
    publishToken: async () => undefined,
    bundles: () => undefined,
    async [Symbol.asyncDispose]() {},
  };
}

/** Newer servers list the new certificate in the chain as well; without a chain the issuer is the root. */
function mintedOf(answer: Readonly<Record<string, unknown>>): MintedCa {
  const own = certificateIn(answer["certificate"], "certificate");
  const issuer = certificateIn(answer["issuing_ca"], "issuing_ca");
  const listed: unknown = answer["ca_chain"];
  const chain = Array.isArray(listed) ? listed.map((pem) => certificateIn(pem, "ca_chain")) : [];
  const root = chain.at(-1) ?? issuer;
  const between = chain.filter((der) => !same(der, own) && !same(der, root));
  return { chain: [own, ...between], roots: [{ asn1: root, tainted: false }] };
}

function certificateIn(pem: unknown, field: string): Uint8Array {
  const [der] = typeof pem === "string" ? decodePem(pem, "CERTIFICATE") : [];
  if (der !== undefined) return der;
  throw new Fault("unavailable", `unexpected answer of Vault: ${field} holds no certificate`, { code: "vault-answer" });
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}
