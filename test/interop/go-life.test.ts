import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, restartAgent, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { runProgram } from "../support/transcript.ts";
import { temporaryDirectory } from "../support/workload.ts";
import { Peer } from "./peer.ts";

const program = process.env["INTEROP_GO_SPIFFE"] ?? "";
const PARTNER = "partner.test";
const SERVER_ID = `spiffe://${PARTNER}/spire/server`;

let home: TestServer;
let partner: TestServer;
beforeAll(async () => {
  const bundle_endpoint = { address: "127.0.0.1", port: 0, refresh_hint: "10s", profile: { https_spiffe: {} } };
  [home, partner] = await Promise.all([
    startServer(),
    startServer({ trustDomain: PARTNER, server: { federation: { bundle_endpoint } } }),
  ]);
});
afterAll(async () => {
  await home?.[Symbol.asyncDispose]();
  await partner?.[Symbol.asyncDispose]();
});

test("a watcher of go-spiffe lives through no entry, an entry, another, none, one again, and an agent that starts anew", async () => {
  await using folder = await temporaryDirectory();
  await using first = await startAgent(home, { folder: folder.path });
  await using watcher = new Peer([program, "life"], first.socket);
  const told: string[] = [];
  const then = async (line: string): Promise<void> => {
    told.push(line);
    await eventually(`it is told ${line}`, () => watcher.stdout.endsWith(`${line}\n`), 60_000);
  };
  const entry = (path: string) => ({ id: path, parentId: first.id(), spiffeId: `spiffe://example.org/${path}` });
  const create = (path: string) => home.createEntry({ ...entry(path), selectors: [OWN_SELECTOR] });
  await then("PermissionDenied");
  await create("a");
  await then("/a");
  await create("b");
  await then("/a /b");
  await home.admin.entry.BatchDeleteEntry({ ids: ["a", "b"] });
  await then("PermissionDenied");
  await create("a");
  await then("/a");
  await first.stop();
  await then("Unavailable");
  await using _second = await restartAgent(folder.path);
  await then("/a");
  const lines = watcher.stdout.trim().split("\n");
  expect(lines[0] === "Unavailable" ? lines.slice(1) : lines).toEqual(told);
}, 180_000);

describe("go-spiffe's federation", () => {
  test("FED-01 fetches our bundle by https_spiffe, and refuses another identity than the one it expects", async () => {
    const { addr } = await partner.untilLogged("Serving bundle endpoint");
    const { stdout: known } = await runProgram(`server bundle show -format spiffe -socketPath ${partner.socketPath}`);
    const url = `https://${String(addr)}/`;
    const { sequence_number } = await partner.admin.bundle.GetBundle({});
    await using good = new Peer([program, "bundle", PARTNER, url, SERVER_ID], "", known);
    expect(await good.result()).toMatch(new RegExp(`^${sequence_number} 10s 1 1 `));
    await using bad = new Peer([program, "bundle", PARTNER, url, `spiffe://${PARTNER}/other`], "", known);
    await expect(bad.result()).rejects.toThrow(/unexpected ID "spiffe/);
  });

  test("publishes a bundle that our server fetches by https_spiffe", async () => {
    await using agent = await startAgent(partner);
    const spiffeId = `spiffe://${PARTNER}/endpoint`;
    await partner.createEntry({ parentId: agent.id(), spiffeId, selectors: [OWN_SELECTOR] });
    await eventually("the agent serves it", async () => (await agent.fetch().catch(() => undefined)) !== undefined);
    await using endpoint = new Peer([program, "publish"], agent.socket);
    const address = await eventually("it listens", () => /^(\S+)\n/.exec(endpoint.stdout)?.[1], 30_000);
    const { x509_authorities, jwt_authorities } = await partner.admin.bundle.GetBundle({});
    const { results } = await home.admin.trustDomain.BatchCreateFederationRelationship({
      federation_relationships: [
        {
          trust_domain: parseTrustDomain(PARTNER),
          bundle_endpoint_url: `https://${address}/bundle`,
          https_spiffe: { endpoint_spiffe_id: spiffeId },
          trust_domain_bundle: { trust_domain: PARTNER, x509_authorities },
        },
      ],
    });
    expect(results[0]?.status).toMatchObject({ code: 0 });
    await home.admin.trustDomain.RefreshBundle({ trust_domain: PARTNER });
    expect(endpoint.stdout).toContain("GET /bundle\n");
    const fetched = await home.admin.bundle.GetFederatedBundle({ trust_domain: PARTNER });
    expect(fetched.jwt_authorities.map(({ key_id }) => key_id)).toEqual(jwt_authorities.map(({ key_id }) => key_id));
  });
});
