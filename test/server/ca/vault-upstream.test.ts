import { afterAll, beforeAll, expect, test } from "vitest";
import { openVaultUpstream } from "../../../server/ca/upstream/vault.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa, type TestCa } from "../../support/pki.ts";
import { startServer } from "../../support/server.ts";
import { freePort } from "../../support/server-process.ts";
import { APPROLE, startVault, VAULT_TOKEN, type VaultDouble } from "../../support/vault.ts";

let root: TestCa;
let middle: TestCa;
let vault: VaultDouble;
beforeAll(async () => {
  root = await createCa({ uris: [], subject: { organization: "Corp" } });
  middle = await root.intermediate({ uris: [], subject: { organization: "Vault" } });
  vault = await startVault(middle, [root.der]);
});
afterAll(() => vault[Symbol.asyncDispose]());

test("the PKI engine signs the server's CA, and the transit engine holds its keys: nothing of both is on the server's disk", async () => {
  const address = { vault_addr: vault.address };
  const approle_auth = { approle_id: APPROLE.roleId, approle_secret_id: APPROLE.secretId };
  const plugins = {
    keyManagers: { hashicorp_vault: { ...address, approle_auth, key_identifier_value: "one" } },
    upstream: { vault: { ...address, token_auth: { token: VAULT_TOKEN } } },
  };
  const health = await freePort();
  const health_checks = { listener_enabled: true, bind_address: "127.0.0.1", bind_port: `${health}` };
  await using server = await startServer({ ...plugins, sections: { health_checks } });
  const svid = await server.mint("spiffe://example.org/w");
  expect(svid.chain.map(({ issuer }) => issuer).at(-1)).toEqual(root.certificate.subject);
  expect(svid.chain).toHaveLength(3);
  const bundle = await server.admin.bundle.GetBundle({});
  expect(bundle.x509_authorities.map(({ asn1 }) => parseCertificate(asn1).subjectKeyId)).toEqual([
    root.certificate.subjectKeyId,
  ]);
  expect(
    vault
      .keyNames()
      .map((name) => name.replace(/^one-[0-9a-f-]{36}-/, ""))
      .sort(),
  ).toEqual(["JWT-Signer-A", "x509-CA-A"]);
  expect(server.output()).not.toContain(APPROLE.secretId);
  const readiness = async (): Promise<string> => {
    const response = await fetch(`http://127.0.0.1:${health}/ready`);
    return `${response.status} ${await response.text()}`;
  };
  expect(await readiness()).toMatch(/^200 /);
  vault.seal(true);
  await eventually("an absent key manager is a matter of health", async () =>
    /^500 .*Vault is sealed/.test(await readiness()),
  );
  expect((await faultFrom(server.mint("spiffe://example.org/w"))).kind).toBe("unavailable");
  vault.seal(false);
  await eventually("it is well again, without a restart", async () => (await readiness()).startsWith("200 "));
  await server.mint("spiffe://example.org/w");
  expect(
    server.logged(
      "UpstreamAuthority plugin does not support JWT-SVIDs. Workloads managed by this server may have trouble communicating with workloads outside this cluster when using JWT-SVIDs.",
    ),
  ).toHaveLength(1);
});

test("a server whose key manager is sealed waits for it, and starts when it is back", async () => {
  const hashicorp_vault = {
    ...{ vault_addr: vault.address, token_auth: { token: VAULT_TOKEN }, key_identifier_value: "two" },
  };
  vault.seal(true);
  const starting = startServer({ keyManagers: { hashicorp_vault } });
  await expect
    .poll(() => vault.requests.filter((line) => line.includes("list=true")).length, { timeout: 60_000 })
    .toBeGreaterThan(1);
  const before = vault.requests.filter((line) => line.includes("list=true")).length;
  await expect
    .poll(() => vault.requests.filter((line) => line.includes("list=true")).length, { timeout: 60_000 })
    .toBeGreaterThan(before);
  expect(vault.keyNames().filter((name) => name.startsWith("two-"))).toEqual([]);
  vault.seal(false);
  await using server = await starting;
  expect(server.logged("No X509 CA can be had yet; trying again").length).toBeGreaterThan(0);
  expect(vault.keyNames().filter((name) => name.startsWith("two-"))).toHaveLength(2);
});

test("an answer without what it should hold is told as such", async () => {
  const config = {
    address: vault.address,
    insecureSkipVerify: false,
    auth: { method: "token", token: VAULT_TOKEN },
  } as const;
  const upstream = openVaultUpstream({ vault: config, mount: "other", clock: new FakeClock() });
  const { createCertificateRequest } = await import("../../../src/crypto/csr.ts");
  const { generateKey } = await import("../../../src/crypto/key.ts");
  const csr = await createCertificateRequest({ signer: await generateKey("ec-p256"), uris: ["spiffe://example.org"] });
  const fault = await faultFrom(upstream.mintX509CA({ csr, ttlSeconds: 60 }));
  expect(fault.message).toContain("Vault refuses POST other/root/sign-intermediate with 404");
});
