import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isFault } from "../../../src/runtime/fault.ts";
import { OWN_SELECTOR, restartAgent, startAgent, type TestAgent } from "../../support/agent.ts";
import { eventually } from "../../support/eventually.ts";
import { protoId, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const WEB = "spiffe://example.org/web";

/** For all that need nothing special of it. */
let server: TestServer;
/** Everything it issues is short-lived. */
let hasty: TestServer;

beforeAll(async () => {
  server = await startServer();
  hasty = await startServer({ server: { agent_ttl: "12s", default_x509_svid_ttl: "10s" } });
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await hasty[Symbol.asyncDispose]();
});

const entryFor = (server: TestServer, agent: TestAgent, spiffeId = WEB) =>
  server.createEntry({ spiffeId, parentId: agent.id(), selectors: [OWN_SELECTOR] });

const idsOf = (context: { readonly svids: readonly { readonly id: string }[] }) => context.svids.map(({ id }) => id);

async function fetchFault(agent: TestAgent): Promise<string> {
  try {
    await agent.fetch();
    return "served";
  } catch (error) {
    return isFault(error) ? error.kind : String(error);
  }
}

async function dataFile(
  agent: TestAgent,
): Promise<{ readonly svid: readonly string[] | null; readonly bundle: readonly string[] }> {
  return JSON.parse(await readFile(join(agent.dataDir, "agent-data.json"), "utf8"));
}

describe("an agent and its server", () => {
  test("a workload's entries reach it on its open stream, as they come, change and go", async () => {
    await using agent = await startAgent(server);
    expect(await fetchFault(agent)).toBe("denied");
    await using stream = agent.watch();
    const web = await entryFor(server, agent);
    await stream.until("the first identity", (context) => idsOf(context).join() === WEB);
    const api = await entryFor(server, agent, "spiffe://example.org/api");
    await stream.until("the second identity", (context) => idsOf(context).length === 2);
    await server.admin.entry.BatchUpdateEntry({
      entries: [{ id: api.id, spiffe_id: protoId("spiffe://example.org/renamed") }],
      input_mask: { spiffe_id: true },
    });
    await stream.until("the new name", (context) => idsOf(context).includes("spiffe://example.org/renamed"));
    await server.admin.entry.BatchDeleteEntry({ ids: [web.id] });
    await stream.until("the removal", (context) => idsOf(context).join() === "spiffe://example.org/renamed");
    for (const message of ["Entry created", "Entry removed"]) {
      expect(agent.logged(message, { entry: web.id, spiffe_id: WEB })).toHaveLength(1);
    }
    expect(agent.logged("Entry updated", { entry: api.id })).toHaveLength(1);
    expect(agent.logged("Creating X509-SVID", { entry_id: web.id, spiffe_id: WEB })).toHaveLength(1);
    expect(await agent.stop()).toBe(0);
  });

  test("T-F2 T-J8 what it keeps is private, and its token is in no log", async () => {
    const token = await server.createToken();
    await using agent = await startAgent(server, { token });
    for (const name of ["agent-data.json", "keys.json"]) {
      expect((await stat(join(agent.dataDir, name))).mode & 0o777).toBe(0o600);
    }
    const idless = agent.output().replaceAll(agent.id(), "");
    expect(idless).not.toContain(token);
    expect(agent.logged("Node attestation was successful", { reattestable: false })).toHaveLength(1);
    expect(agent.logged("SVID is not found. Starting node attestation")).toHaveLength(1);
  });

  test("a restarted agent needs no new token", async () => {
    await using folder = await temporaryDirectory();
    let id: string;
    {
      await using first = await startAgent(server, { folder: folder.path });
      id = first.id();
      await entryFor(server, first);
    }
    await using second = await restartAgent(folder.path);
    expect(second.id()).toBe(id);
    expect(second.logged("SVID loaded")).toHaveLength(1);
    await eventually("the identity", async () => idsOf(await second.fetch()).join() === WEB);
  });

  test("an agent that was killed leaves nothing in the way of the next", async () => {
    await using folder = await temporaryDirectory();
    const first = await startAgent(server, { folder: folder.path });
    await entryFor(server, first);
    await first.kill();
    await using second = await restartAgent(folder.path);
    await eventually("the identity", async () => idsOf(await second.fetch()).join() === WEB);
  });

  test("its own SVID is renewed long before it expires, and the new one is used", async () => {
    await using agent = await startAgent(hasty);
    const serial = async () => (await hasty.admin.agent.GetAgent({ id: protoId(agent.id()) })).x509svid_serial_number;
    const first = await serial();
    await entryFor(hasty, agent);
    await using stream = agent.watch();
    await agent.untilLogged("Successfully rotated agent SVID", {}, 2);
    await eventually("the server to know the new serial number", async () => (await serial()) !== first);
    await stream.until("an identity", () => true);
    expect(agent.logged("Synchronize failed")).toEqual([]);
    expect(agent.logged("Could not rotate agent SVID")).toEqual([]);
  });

  test("workloads of short-lived SVIDs see every rotation, each while the one before is valid", async () => {
    await using agent = await startAgent(hasty);
    await entryFor(hasty, agent);
    await using stream = agent.watch();
    await stream.until("three rotations", (_context, at) => at === 3);
    const svids = stream.contexts.map(({ svids: [svid] }) => svid);
    for (const [at, svid] of svids.slice(1).entries()) {
      expect(svid.chain[0]!.notBefore.getTime()).toBeLessThan(svids[at]!.expiresAt.getTime());
      expect(svid.chain[0]!.serialNumber).not.toBe(svids[at]!.chain[0]!.serialNumber);
    }
  });

  test("while the server is away what is held is served, and all is well when it is back", async () => {
    await using folder = await temporaryDirectory();
    const first = await startServer({ folder: folder.path });
    await using agent = await startAgent(first);
    await entryFor(first, agent);
    await eventually("the identity", async () => idsOf(await agent.fetch()).join() === WEB);
    await first.stop();
    await agent.untilLogged("Synchronize failed", {}, 2);
    expect(String(agent.logged("Synchronize failed")[0]?.["error"])).toMatch(/^failed to fetch authorized entries: /);
    expect(idsOf(await agent.fetch())).toEqual([WEB]);
    await using again = await startServer({ folder: folder.path, server: { bind_port: first.port } });
    await again.createEntry({
      spiffeId: "spiffe://example.org/later",
      parentId: agent.id(),
      selectors: [OWN_SELECTOR],
    });
    await eventually("the later identity", async () => idsOf(await agent.fetch()).length === 2, 30_000);
  });

  test("WEP-23 before it has reached its server it says that it is not ready, and it gets there by itself", async () => {
    await using serverFolder = await temporaryDirectory();
    await using agentFolder = await temporaryDirectory();
    const first = await startServer({ folder: serverFolder.path });
    await (await startAgent(first, { folder: agentFolder.path })).stop();
    await first.stop();
    await using agent = await restartAgent(agentFolder.path, { anyState: true });
    await agent.untilLogged("Failed to initialize manager");
    expect(await fetchFault(agent)).toBe("unavailable");
    expect(agent.logged("Starting Workload and SDS APIs")).toEqual([]);
    await using second = await startServer({ folder: serverFolder.path, server: { bind_port: first.port } });
    await agent.untilLogged("Starting Workload and SDS APIs");
    expect(await fetchFault(agent)).toBe("denied");
    expect(second.logged("Starting Server APIs").length).toBeGreaterThan(0);
  });
});

describe("an agent that the server refuses", () => {
  test("banned: it removes its SVID, says so and stops", async () => {
    await using agent = await startAgent(server);
    const exited = agent.exited();
    await server.admin.agent.BanAgent({ id: protoId(agent.id()) });
    expect(await exited).toBe(1);
    expect(agent.logged("Agent is banned: removing SVID and shutting down")).toHaveLength(1);
    expect(agent.output()).toContain("agent evict");
    const { svid, bundle } = await dataFile(agent);
    expect(svid).toBeNull();
    expect(bundle).toHaveLength(1);
  });

  test("evicted, with a join token: it removes its SVID, says so and stops, and a new token lets it in", async () => {
    await using folder = await temporaryDirectory();
    {
      await using agent = await startAgent(server, { folder: folder.path });
      const exited = agent.exited();
      await server.admin.agent.DeleteAgent({ id: protoId(agent.id()) });
      expect(await exited).toBe(1);
      expect(agent.logged("Agent failed re-attestation; removing SVID and shutting down")).toHaveLength(1);
      expect((await dataFile(agent)).svid).toBeNull();
    }
    await using again = await startAgent(server, { folder: folder.path });
    expect(again.logged("Node attestation was successful")).toHaveLength(1);
  });

  test("without a token it stops at once and says how to get one", async () => {
    await using agent = await startAgent(server, { token: null, anyState: true });
    expect(await agent.exited()).toBe(1);
    expect(agent.output()).toContain("Error: join token was not provided\nHint: ");
  });

  test("of another trust domain: it does not attest, and its token stays good", async () => {
    const token = await server.createToken();
    await using agent = await startAgent(server, { token, agent: { trust_domain: "other.test" }, anyState: true });
    const record = await agent.untilLogged("Failed to retrieve attestation result");
    expect(String(record["error"])).toMatch(/no X\.509 bundle for trust domain "example\.org"/);
    await server.attest(token);
  });
});

describe("an agent and its own folder", () => {
  test("a second agent on one folder is refused, naming the first", async () => {
    await using agent = await startAgent(server);
    await using second = await restartAgent(agent.folder, { anyState: true });
    expect(await second.exited()).toBe(1);
    expect(second.output()).toContain(`is in use by process ${agent.pid}`);
    expect(await fetchFault(agent)).toBe("denied");
  });

  test("a damaged data file is named, with what to do, and left as it is", async () => {
    await using folder = await temporaryDirectory();
    const first = await startAgent(server, { folder: folder.path });
    await first.stop();
    const path = join(first.dataDir, "agent-data.json");
    const half = (await readFile(path, "utf8")).slice(0, 300);
    await writeFile(path, half);
    await using second = await restartAgent(folder.path, { anyState: true });
    expect(await second.exited()).toBe(1);
    expect(second.output()).toContain(`agent data file ${path} is damaged`);
    expect(second.output()).toContain("Hint: restore it from a backup, or remove it");
    expect(await readFile(path, "utf8")).toBe(half);
  });

  test("in an insecure bootstrap it warns, and trusts only the bundle it got from then on", async () => {
    await using folder = await temporaryDirectory();
    const insecure = { trust_bundle_path: undefined, insecure_bootstrap: true };
    {
      await using agent = await startAgent(server, { folder: folder.path, agent: insecure });
      expect(agent.logged("Insecure bootstrap enabled; skipping server certificate verification")).toHaveLength(1);
    }
    await using again = await restartAgent(folder.path);
    expect(again.logged("Insecure bootstrap enabled; skipping server certificate verification")).toEqual([]);
    expect(again.logged("Bundle loaded")).toHaveLength(1);
  });

  test("with keys in memory a restart attests anew, and a warning says so beforehand", async () => {
    await using folder = await temporaryDirectory();
    {
      await using first = await startAgent(server, { folder: folder.path, keyManager: "memory" });
      expect(first.output()).toContain("the 'memory' key manager is in use");
    }
    await using second = await startAgent(server, { folder: folder.path, keyManager: "memory" });
    expect(second.logged("SVID recovered, but no keys found. Generating new keypair")).toHaveLength(1);
    expect(second.logged("Node attestation was successful")).toHaveLength(1);
  });
});
