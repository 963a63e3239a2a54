import { writeFile } from "node:fs/promises";
import { createServer as createPlainServer, type RequestListener, type Server } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo, ListenOptions } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { encodePem } from "../../src/crypto/pem.ts";
import { OWN_SELECTOR, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { createCa } from "../support/pki.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { temporaryDirectory } from "../support/workload.ts";

let server: TestServer;
let bundle: string;
beforeAll(async () => {
  server = await startServer();
  const { x509_authorities } = await server.admin.bundle.GetBundle({});
  bundle = x509_authorities.map(({ asn1 }) => encodePem("CERTIFICATE", asn1)).join("");
});
afterAll(() => server?.[Symbol.asyncDispose]());

async function listening(web: Server, where: ListenOptions): Promise<{ readonly port: number } & AsyncDisposable> {
  await new Promise<void>((resolve) => web.listen(where, resolve));
  const address = web.address();
  return {
    port: typeof address === "object" ? ((address as AddressInfo | null)?.port ?? 0) : 0,
    [Symbol.asyncDispose]: () => new Promise((resolve) => web.close(() => resolve())),
  };
}

/** A whole agent that knows its server by this alone, and serves a workload. */
async function expectToServe(trust: Readonly<Record<string, unknown>>): Promise<void> {
  await using agent = await startAgent(server, { agent: { trust_bundle_path: undefined, ...trust } });
  await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id(), selectors: [OWN_SELECTOR] });
  await eventually("an identity", async () => (await agent.fetch()).svids.length === 1);
}

async function webOf(folder: string, answer: RequestListener) {
  const ca = await createCa({ uris: [] });
  const { pem: cert, keyPem: key } = await ca.issue({ uris: [], dnsNames: ["localhost"] });
  const roots = join(folder, "roots.pem");
  await writeFile(roots, ca.pem);
  const web = await listening(createServer({ cert, key }, answer), { port: 0, host: "localhost" });
  const settings = {
    trust_bundle_url: `https://localhost:${web.port}/bundle`,
    trust_bundle_url_roots_path: roots,
  };
  return { settings, [Symbol.asyncDispose]: () => web[Symbol.asyncDispose]() };
}

test("an agent bootstraps by a URL, through a Unix socket, by another agent's Workload API, and by the SPIFFE form", async () => {
  await using folder = await temporaryDirectory();
  await using web = await webOf(folder.path, (_, response) => response.end(bundle));
  await expectToServe(web.settings);

  const path = join(folder.path, "bundle.sock");
  const asked: string[] = [];
  const answer: RequestListener = ({ url = "" }, response) => {
    asked.push(url);
    response.end(bundle);
  };
  await using _socket = await listening(createPlainServer(answer), { path });
  await expectToServe({ trust_bundle_unix_socket: path, trust_bundle_url: "http://local/b" });
  expect(asked).toHaveLength(1);
  const query = new URL(asked[0] ?? "", "http://local").searchParams;
  expect(query.get("spire-attest-mode")).toBe("bootstrap");
  expect(query.get("spiffe-trust-domain")).toBe("example.org");
  expect(query.get("spire-server-port")).toBe(String(server.port));

  await using other = await startAgent(server);
  await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: other.id(), selectors: [OWN_SELECTOR] });
  await eventually("an identity", async () => (await other.fetch()).svids.length === 1);
  await expectToServe({ trust_bundle_spiffe_workload_api: other.socket });

  const document = join(folder.path, "bundle.json");
  const { x509_authorities } = await server.admin.bundle.GetBundle({});
  const keys = x509_authorities.map(({ asn1 }) => ({ use: "x509-svid", kty: "EC", x5c: [asn1.toString("base64")] }));
  await writeFile(document, JSON.stringify({ keys }));
  await expectToServe({ trust_bundle_path: document, trust_bundle_format: "spiffe" });
}, 240_000);

test("T-N12 by a bundle of somebody else no agent attests, and its token stays good", async () => {
  await using folder = await temporaryDirectory();
  const stranger = await createCa({ uris: ["spiffe://example.org"] });
  await using web = await webOf(folder.path, (_, response) => response.end(stranger.pem));
  const token = await server.createToken();
  const before = await server.admin.agent.CountAgents({});
  const agent = { trust_bundle_path: undefined, ...web.settings };
  await using refused = await startAgent(server, { agent, token, anyState: true });
  await refused.untilLogged("Failed to retrieve attestation result");
  expect(await server.admin.agent.CountAgents({})).toEqual(before);
  await server.attest(token);
}, 120_000);
