import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWN_SELECTOR, restartAgent, startAgent } from "../../support/agent.ts";
import { eventually } from "../../support/eventually.ts";
import { createCa, type TestCa } from "../../support/pki.ts";
import { protoId, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

let ca: TestCa;
let server: TestServer;
let folder: Awaited<ReturnType<typeof temporaryDirectory>>;

beforeAll(async () => {
  ca = await createCa({ uris: [] });
  folder = await temporaryDirectory();
  await writeFile(join(folder.path, "ca.pem"), ca.pem);
  server = await startServer({
    server: { agent_ttl: "12s" },
    nodeAttestors: {
      x509pop: {
        ca_bundle_path: join(folder.path, "ca.pem"),
        agent_path_template: "/racks/{{ .Subject.CommonName | lower }}",
      },
    },
  });
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

async function credentials(name: string) {
  const intermediate = await ca.intermediate({ uris: [] });
  const leaf = await intermediate.issue({ uris: [], subject: { commonName: name } });
  const [private_key_path, certificate_path, intermediates_path] = ["key", "crt", "ca"].map((ending) =>
    join(folder.path, `${name}.${ending}`),
  ) as [string, string, string];
  await writeFile(private_key_path, leaf.keyPem);
  await writeFile(certificate_path, leaf.pem.slice(0, leaf.pem.indexOf("-----END CERTIFICATE-----") + 26));
  await writeFile(intermediates_path, intermediate.pem);
  return { private_key_path, certificate_path, intermediates_path };
}

describe("an agent with a certificate", () => {
  test("T-N15 attests, attests again instead of renewing, and comes back by itself after an eviction", async () => {
    await using agent = await startAgent(server, { nodeAttestor: { x509pop: await credentials("Node-A") } });
    const id = "spiffe://example.org/spire/agent/racks/node-a";
    expect(agent.id()).toBe(id);
    expect(agent.logged("Node attestation was successful", { reattestable: true })).toHaveLength(1);
    await server.admin.agent.DeleteAgent({ id: protoId(id) });
    await agent.untilLogged("Successfully reattested node");
    const again = await eventually("the node is back", () => server.admin.agent.GetAgent({ id: protoId(id) }), 10_000);
    expect(again.can_reattest).toBe(true);
    await agent.untilLogged("Successfully reattested node", {}, 2);
    expect(server.logged("Renewing agent SVID")).toEqual([]);
  });

  test("a node alias counts from the moment at which the node attests", async () => {
    const alias = "spiffe://example.org/racks/f";
    const web = "spiffe://example.org/web";
    const selectors = ["x509pop:subject:cn:node-f"];
    await server.createEntry({ spiffeId: alias, parentId: "spiffe://example.org/spire/server", selectors });
    await server.createEntry({ spiffeId: web, parentId: alias, selectors: [OWN_SELECTOR] });
    await using agent = await startAgent(server, { nodeAttestor: { x509pop: await credentials("node-f") } });
    expect((await agent.fetch()).svids.map(({ id }) => id)).toEqual([web]);
  });

  test("an agent whose SVID ended while it was off attests again when it is back", async () => {
    await using data = await temporaryDirectory();
    const nodeAttestor = { x509pop: await credentials("node-b") };
    const first = await startAgent(server, { nodeAttestor, folder: data.path });
    const { x509svid_expires_at } = await server.admin.agent.GetAgent({ id: protoId(first.id()) });
    await first.stop();
    await eventually("the SVID has ended", () => Date.now() / 1000 > Number(x509svid_expires_at), 20_000);
    await using second = await restartAgent(data.path);
    expect(second.id()).toBe("spiffe://example.org/spire/agent/racks/node-b");
    expect(second.logged("SVID key recovered, but SVID is expired. Generating new keypair")).toHaveLength(1);
  });

  test("a banned agent stops, and is not let in again", async () => {
    await using data = await temporaryDirectory();
    const nodeAttestor = { x509pop: await credentials("node-c") };
    await using agent = await startAgent(server, { nodeAttestor, folder: data.path });
    await server.admin.agent.BanAgent({ id: protoId(agent.id()) });
    expect(await agent.exited()).toBe(1);
    await using again = await restartAgent(data.path, { anyState: true });
    expect(await again.exited()).toBe(1);
    expect(again.output()).toContain("failed to attest: agent is banned");
  });

  test.each([
    ["another key", { private_key_path: "node-e.key" }, "private key does not match public key"],
    ["a file that is not there", { certificate_path: "absent" }, "ENOENT"],
    ["a key that is none", { private_key_path: "ca.pem" }, "not a private key in PEM form"],
  ])("with %s it says so", async (_, change, message) => {
    const base = await credentials("node-d");
    await credentials("node-e");
    const changed = Object.fromEntries(Object.entries(change).map(([key, name]) => [key, join(folder.path, name)]));
    const nodeAttestor = { x509pop: { ...base, ...changed } };
    await using agent = await startAgent(server, { nodeAttestor, anyState: true });
    expect(await agent.exited()).toBe(1);
    expect(agent.output()).toContain(message);
  });
});
