import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createCa } from "../support/pki.ts";
import { runProgram } from "../support/transcript.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "validate-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function validate(attestor: string, data: object): Promise<ReturnType<typeof runProgram>> {
  const path = join(folder, "server.json");
  const server = { trust_domain: "example.org", data_dir: join(folder, "data") };
  await writeFile(path, JSON.stringify({ server, plugins: { NodeAttestor: { [attestor]: { plugin_data: data } } } }));
  return runProgram(`server validate -config ${path}`);
}

test("validate accepts the CA bundle that a node attestor needs", async () => {
  const { pem } = await createCa({ trustDomain: "example.org" });
  const bundle = join(folder, "ca.pem");
  await writeFile(bundle, pem);
  expect(await validate("x509pop", { ca_bundle_path: bundle })).toMatchObject({
    status: 0,
    stdout: "SPIRE server configuration file is valid.\n",
  });
});

test.each([
  ["x509pop", ["ca_bundle_path"]],
  ["tpm_devid", ["devid_ca_path", "endorsement_ca_path"]],
  ["sshpop", ["cert_authorities_path"]],
])("validate refuses a file that %s needs and that is missing, as the start would", async (attestor, keys) => {
  const missing = join(folder, "missing.pem");
  const ran = await validate(attestor, Object.fromEntries(keys.map((key) => [key, missing])));
  expect(ran).toMatchObject({ status: 1, stdout: "" });
  expect(ran.stderr).toContain("SPIRE server configuration file is invalid: ");
  expect(ran.stderr).toContain(missing);
});
