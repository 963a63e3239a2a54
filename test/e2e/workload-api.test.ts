import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { X509SVIDResponse__Output } from "../../src/rpc/gen/X509SVIDResponse.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { RawClient } from "../support/raw-client.ts";
import { SdsClient } from "../support/sds.ts";
import { entryMessage, startServer, type TestServer } from "../support/server.ts";

let server: TestServer;
let agent: TestAgent;
let client: RawClient;
beforeAll(async () => {
  server = await startServer();
  agent = await startAgent(server);
  client = new RawClient(agent.socketPath);
});
afterAll(async () => {
  await client?.[Symbol.asyncDispose]();
  await agent?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
});

/** Entries of the same second come in the order of their ids, so each gets one that says which was made first. */
let made = 0;
const create = (path: string, selectors: readonly string[] = [OWN_SELECTOR]) => {
  made += 1;
  const id = `entry-${String(made).padStart(2, "0")}`;
  return server.createEntry({ id, spiffeId: `spiffe://example.org${path}`, parentId: agent.id(), selectors });
};
const remove = (...ids: readonly string[]) => server.admin.entry.BatchDeleteEntry({ ids: [...ids] });
const idsOf = ({ svids }: X509SVIDResponse__Output) => svids.map(({ spiffe_id }) => spiffe_id);

describe("from the server's entries to a workload's open stream", () => {
  test("WAPI-29 WAPI-34 without an entry both X.509 methods answer PermissionDenied", async () => {
    for (const call of [client.svids(), client.bundles()]) {
      expect(await call.status).toEqual({ code: 7, message: "no identity issued" });
    }
  });

  test("WAPI-10 WAPI-32 a created entry arrives on the open stream, a removed one leaves it, the last one ends it", async () => {
    const web = await create("/web");
    const watch = await firstAnswer();
    expect(idsOf(await watch.x509Svids())).toEqual(["spiffe://example.org/web"]);
    const bundles = client.bundles();
    expect(Object.keys((await bundles.x509Bundles()).bundles)).toEqual(["spiffe://example.org"]);

    const api = await create("/api");
    expect(idsOf(await watch.x509Svids(2))).toEqual(["spiffe://example.org/web", "spiffe://example.org/api"]);

    await create("/other", ["unix:uid:4242"]);
    await remove(api.id);
    expect(idsOf(await watch.x509Svids(3))).toEqual(["spiffe://example.org/web"]);

    await remove(web.id);
    expect(await watch.status).toEqual({ code: 7, message: "no identity issued" });
    expect(await bundles.status).toEqual({ code: 7, message: "no identity issued" });
    expect([watch.messages.length, bundles.messages.length]).toEqual([3, 1]);
  });

  test("WAPI-06 WEP-20 two selectors must both hold", async () => {
    const both = await create("/both", [OWN_SELECTOR, "unix:gid:4242"]);
    const mine = await create("/mine");
    const watch = await firstAnswer();
    expect(idsOf(await watch.x509Svids())).toEqual(["spiffe://example.org/mine"]);
    await remove(both.id, mine.id);
    expect((await watch.status).code).toBe(7);
  });

  test("an updated entry gives a new SVID on the open stream", async () => {
    const entry = await create("/updated");
    const watch = await firstAnswer();
    const { svids } = await watch.x509Svids();
    expect(svids[0]?.hint).toBe("");
    await server.admin.entry.BatchUpdateEntry({ entries: [{ ...entry, hint: "primary" }] });
    const second = await watch.x509Svids(2);
    expect(second.svids[0]).toMatchObject({ spiffe_id: "spiffe://example.org/updated", hint: "primary" });
    await remove(entry.id);
    expect((await watch.status).code).toBe(7);
  });
});

describe("hints", () => {
  test.each([
    { id: "WAPI-63", what: "1024 bytes", hint: "h".repeat(1024), code: 0 },
    { id: "WAPI-63", what: "1025 bytes", hint: "h".repeat(1025), code: 3 },
    { id: "WAPI-63", what: "512 characters of two bytes", hint: "é".repeat(512), code: 0 },
    { id: "WAPI-63", what: "513 characters of two bytes", hint: "é".repeat(513), code: 3 },
  ])("$id a hint of $what is registered with code $code", async ({ hint, code }) => {
    const parentId = agent.id();
    const entry = entryMessage({
      spiffeId: "spiffe://example.org/hinted",
      parentId,
      selectors: ["unix:uid:4242"],
      hint,
    });
    const { results } = await server.admin.entry.BatchCreateEntry({ entries: [entry] });
    expect(results[0]?.status?.code).toBe(code);
    if (results[0]?.entry != null) await remove(results[0].entry.id);
  });
});

describe("where the endpoint listens", () => {
  test("WEP-01 WEP-02 WEP-05 WEP-06 on its Unix socket, and on no port", () => {
    expect(statSync(agent.socketPath).isSocket()).toBe(true);
    expect(listeningPorts(server.pid)).toEqual([server.port]);
    expect(listeningPorts(agent.pid)).toEqual([]);
  });

  test("T-W10 with a socket that everybody may call, in a folder that nobody else may change", () => {
    expect(statSync(agent.socketPath).mode & 0o777).toBe(0o777);
    const folder = statSync(dirname(agent.socketPath));
    expect(folder.mode & 0o022).toBe(0);
    expect(folder.uid).toBe(process.getuid?.());
  });
});

/** TCP ports on which the process listens, by its own descriptors. */
function listeningPorts(pid: number): readonly number[] {
  const links = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkOf(`/proc/${pid}/fd/${fd}`));
  const tables = ["tcp", "tcp6"].flatMap((name) =>
    readFileSync(`/proc/${pid}/net/${name}`, "utf8").split("\n").slice(1),
  );
  return tables.flatMap((line) => {
    const [, local = "", , state, , , , , , inode] = line.trim().split(/\s+/);
    const listening = state === "0A" && links.includes(`socket:[${inode}]`);
    return listening ? [Number.parseInt(local.slice(local.lastIndexOf(":") + 1), 16)] : [];
  });
}

/** A descriptor may close while it is looked at. */
function readlinkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return "";
  }
}

/** Asks until the agent has heard of the entry. */
async function firstAnswer() {
  for (;;) {
    const call = client.svids();
    const refused = await Promise.race([call.first().then(() => false), call.status.then(({ code }) => code === 7)]);
    if (!refused) return call;
  }
}

test("an agent that is told to end waits for no Envoy, whose streams never end by themselves", async () => {
  await using leaving = await startAgent(server);
  await server.createEntry({
    spiffeId: "spiffe://example.org/envoy",
    parentId: leaving.id(),
    selectors: [OWN_SELECTOR],
  });
  using envoy = new SdsClient(leaving.socketPath);
  using stream = envoy.world();
  stream.send({ resource_names: ["default"] });
  await stream.response(1);
  expect(await leaving.stop()).toBe(0);
  expect(await stream.ended).toMatchObject({ kind: "unavailable", message: "the server is shutting down" });
});
