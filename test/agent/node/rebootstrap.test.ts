import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { encodePem } from "../../../src/crypto/pem.ts";
import { restartAgent, startAgent } from "../../support/agent.ts";
import { createCa } from "../../support/pki.ts";
import { startServer, type TestServer } from "../../support/server.ts";
import { freePort } from "../../support/server-process.ts";
import { temporaryDirectory } from "../../support/workload.ts";

async function bundleOf(server: TestServer): Promise<string> {
  const { x509_authorities } = await server.admin.bundle.GetBundle({});
  return x509_authorities.map(({ asn1 }) => encodePem("CERTIFICATE", asn1)).join("");
}

test("T-N12 a server with a new authority: the agent waits, fetches its first bundle again and comes back by itself", async () => {
  await using folder = await temporaryDirectory();
  const ca = await createCa({ uris: [] });
  const leaf = await ca.issue({ uris: [], subject: { commonName: "n" } });
  const caPath = join(folder.path, "ca.pem");
  const [keyPath, certPath] = [join(folder.path, "n.key"), join(folder.path, "n.crt")];
  for (const [path, text] of [
    [caPath, ca.pem],
    [keyPath, leaf.keyPem],
    [certPath, leaf.pem],
  ] as const)
    await writeFile(path, text);
  const options = {
    server: { bind_port: await freePort() },
    nodeAttestors: { x509pop: { ca_bundle_path: caPath } },
  };
  const first = await startServer(options);
  await using agent = await startAgent(first, {
    nodeAttestor: { x509pop: { private_key_path: keyPath, certificate_path: certPath } },
    agent: { rebootstrap_mode: "auto", rebootstrap_delay: "1s" },
  });
  await first[Symbol.asyncDispose]();
  await using second = await startServer(options);
  await agent.untilLogged("Rebootstrapping failed");
  expect(second.logged("Agent attestation request completed")).toEqual([]);
  await writeFile(join(agent.folder, "bundle.pem"), await bundleOf(second));
  await agent.untilLogged("Successfully reattested node");
  expect(second.logged("Agent attestation request completed")).toHaveLength(1);
  await agent.stop();
  await using again = await restartAgent(agent.folder);
  expect(again.logged("SVID loaded")).toHaveLength(1);
}, 180_000);

test("rebootstrap_mode always refuses to run where the node cannot attest again", async () => {
  await using server = await startServer();
  await using agent = await startAgent(server, { agent: { rebootstrap_mode: "always" }, anyState: true });
  expect(await agent.exited()).toBe(1);
  expect(agent.output()).toContain("you have requested rebootstrap support but the NodeAttestor plugin");
});
