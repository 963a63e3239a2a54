import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { generateKey } from "../../src/crypto/key.ts";
import { dialUnix } from "../../src/rpc/dial.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { parseSpiffeId } from "../../src/spiffe/id.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { startServer, type TestServer } from "../support/server.ts";

const WIT = { feature_flags: ["wit-svid"] };

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-incubating-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const start = (experimental: object): Promise<TestServer> => startServer({ server: { experimental } });

async function withWorkload(server: TestServer, experimental: object): Promise<TestAgent> {
  const agent = await startAgent(server, { agent: { experimental: { sync_interval: "200ms", ...experimental } } });
  const entry = {
    id: `web-${agent.pid}`,
    spiffeId: parseSpiffeId("spiffe://example.org/web"),
    selectors: [OWN_SELECTOR],
  };
  await server.createEntry({ ...entry, parentId: agent.id() });
  await eventually("the identity", async () => (await agent.fetch()).svids.length === 1);
  return agent;
}

/** "served", or the kind of the refusal. */
const outcome = (call: Promise<unknown>): Promise<string> =>
  call.then(
    () => "served",
    (error: unknown) => Fault.from(error).kind,
  );

const first = (stream: AsyncIterable<unknown>): Promise<unknown> => stream[Symbol.asyncIterator]().next();

/** What becomes of the two RPCs of section 7 of the Workload API. */
async function witOf(agent: TestAgent): Promise<readonly string[]> {
  using channel = dialUnix(agent.socketPath);
  const api = channel.client(WorkloadApi);
  const stop = new AbortController();
  const call = { metadata: { "workload.spiffe.io": "true" }, signal: stop.signal };
  const outcomes = [
    await outcome(first(api.FetchWITSVID({}, call))),
    await outcome(first(api.FetchWITBundles({}, call))),
  ];
  stop.abort();
  return outcomes;
}

const published = async ({ admin }: TestServer): Promise<object> => {
  const { x509_authorities, jwt_authorities, wit_authorities } = await admin.bundle.GetBundle({});
  return { x509: x509_authorities.length, jwt: jwt_authorities.length, wit: wit_authorities.length };
};

async function minted({ admin }: TestServer): Promise<string> {
  const { publicKey } = await generateKey("ec-p256");
  const request = {
    id: { trust_domain: "example.org", path: "/web" },
    public_key: publicKey,
    signing_algorithm: "ES256",
  };
  const minting = admin.svid.MintWITSVID(request);
  return await minting.then(
    () => "served",
    (error: unknown) => Fault.from(error).kind,
  );
}

describe("STB-01 STB-03 what the incubating documents describe is there only when it was asked for", () => {
  test("a fresh configuration has neither WIT-SVIDs nor a broker's socket", { timeout: 120_000 }, async () => {
    await using server = await start({});
    await using agent = await withWorkload(server, {});
    expect(await published(server)).toEqual({ x509: 1, jwt: 1, wit: 0 });
    expect(await minted(server)).toBe("unimplemented");
    expect(await witOf(agent)).toEqual(["unimplemented", "unimplemented"]);
    expect(agent.logged("Starting SPIFFE Broker Endpoint")).toEqual([]);
  });

  test("each is turned on by itself", { timeout: 120_000 }, async () => {
    const socket_path = join(folder, "broker", "api.sock");
    const brokers = [{ id: "spiffe://example.org/broker", allowed_reference_types: [{ type_url: "*" }] }];
    await using server = await start(WIT);
    await using tokens = await withWorkload(server, WIT);
    expect(await published(server)).toEqual({ x509: 1, jwt: 1, wit: 1 });
    expect(await minted(server)).toBe("served");
    expect(await witOf(tokens)).toEqual(["served", "served"]);
    await using broker = await withWorkload(server, { broker: { socket_path, brokers } });
    expect(existsSync(socket_path)).toBe(true);
    expect(await witOf(broker)).toEqual(["unimplemented", "unimplemented"]);
  });
});
