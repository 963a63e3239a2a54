import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { parseCertificate } from "../../src/crypto/certificate.ts";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey, localSigner, privateKeyFromPkcs8 } from "../../src/crypto/key.ts";
import { decodePem } from "../../src/crypto/pem.ts";
import { type Channel, dialUnix } from "../../src/rpc/dial.ts";
import { WorkloadApi } from "../../src/rpc/protos.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { OWN_SELECTOR, restartAgent, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { faultFrom } from "../support/faults.ts";
import { protoId, startServer, type TestServer, type TestSvid, testSvid } from "../support/server.ts";

const WEB = "spiffe://example.org/web";
const flags = { feature_flags: ["wit-svid"] };
/** So long that whatever arrives was pushed. */
const PUSHED = { experimental: { sync_interval: "1h", ...flags } };
const MD = { metadata: { "workload.spiffe.io": "true" }, deadlineMs: 60_000 } as const;
const QUARANTINED = "Agent is quarantined by the server: nothing is served until an administrator releases it";
const RELEASED = "Agent was released from quarantine";
const DENIED = { kind: "denied", message: "no identity issued" };

let server: TestServer;
beforeAll(async () => {
  server = await startServer({ server: { experimental: flags } });
});
afterAll(() => server?.[Symbol.asyncDispose]());

async function startServing(options: Parameters<typeof startAgent>[1]): Promise<TestAgent> {
  const agent = await startAgent(server, options);
  await agent.untilLogged("Changes are pushed by the server");
  await server.createEntry({ spiffeId: WEB, parentId: agent.id(), selectors: [OWN_SELECTOR] });
  await eventually("an identity", async () => (await agent.fetch()).svids.length === 1);
  return agent;
}

const quarantine = (agent: TestAgent) =>
  server.admin.quarantine.QuarantineAgent({ id: protoId(agent.id()), reason: "a test" });
const release = (agent: TestAgent, serial = "") =>
  server.admin.quarantine.ReleaseAgent({ id: protoId(agent.id()), x509svid_serial_number: serial });

/** Follows a stream to its end. */
function following<T>(stream: AsyncIterable<T>): { readonly ended: Promise<Fault>; readonly first: Promise<T> } {
  const first = Promise.withResolvers<T>();
  const ended = (async () => {
    for await (const answer of stream) first.resolve(answer);
    return new Fault("internal", "the stream ended in order");
  })().catch((error: unknown) => Fault.from(error));
  return { ended, first: first.promise };
}

describe("workloads of a quarantined agent", () => {
  let agent: TestAgent;
  let channel: Channel;
  beforeAll(async () => {
    agent = await startServing({ agent: PUSHED });
    channel = dialUnix(agent.socketPath);
  });
  afterAll(async () => {
    channel?.[Symbol.dispose]();
    await agent?.[Symbol.asyncDispose]();
  });

  test("WAPI-31 WAPI-32 lose every stream with PermissionDenied, get nothing, and all of it again after the release", async () => {
    const api = channel.client(WorkloadApi);
    const open = () => [
      following(api.FetchX509SVID({}, MD)),
      following(api.FetchX509Bundles({}, MD)),
      following(api.FetchJWTBundles({}, MD)),
      following(api.FetchWITSVID({}, MD)),
      following(api.FetchWITBundles({}, MD)),
    ];
    const jwt = () => api.FetchJWTSVID({ audience: ["a"] }, MD);
    const streams = open();
    await Promise.all(streams.map(({ first }) => first));
    const [before] = (await jwt()).svids;
    await quarantine(agent);
    for (const { ended } of streams) expect(await ended).toMatchObject(DENIED);
    expect(await faultFrom(jwt())).toMatchObject(DENIED);
    for (const { ended } of open()) expect(await ended).toMatchObject(DENIED);
    await agent.untilLogged(QUARANTINED);
    await release(agent);
    await agent.untilLogged(RELEASED);
    const again = await eventually("every kind again", async () => {
      const opened = open();
      return await Promise.race([Promise.all(opened.map(({ first }) => first)), ...opened.map(failed)]);
    });
    expect(again).toHaveLength(5);
    expect((await jwt()).svids[0]?.svid).not.toBe(before?.svid);
  });
});

async function failed({ ended }: { readonly ended: Promise<Fault> }): Promise<never> {
  throw await ended;
}

test("an agent that starts in quarantine serves nothing, with the server restarted too, and goes on by itself", async () => {
  const folder = await mkdtemp(join(tmpdir(), "steeple-quarantine-"));
  await using cleanup = new AsyncDisposableStack();
  cleanup.defer(() => rm(folder, { recursive: true, force: true }));
  await using own = await startServer();
  const agent = await startAgent(own, { folder, agent: PUSHED });
  const id = protoId(agent.id());
  await own.createEntry({ spiffeId: WEB, parentId: agent.id(), selectors: [OWN_SELECTOR] });
  await eventually("an identity", async () => (await agent.fetch()).svids.length === 1);
  await own.admin.quarantine.QuarantineAgent({ id, reason: "" });
  await agent.untilLogged(QUARANTINED);
  await agent.stop();
  const { folder: data, port } = own;
  await own.stop();
  await using again = await startServer({ folder: data, server: { bind_port: port } });
  await using restarted = await restartAgent(folder);
  await restarted.untilLogged(QUARANTINED);
  expect(await faultFrom(restarted.fetch())).toMatchObject(DENIED);
  await again.admin.quarantine.ReleaseAgent({ id });
  await restarted.untilLogged(RELEASED);
  await eventually("an identity", async () => (await restarted.fetch()).svids.length === 1);
  expect(restarted.logged("Node attestation was successful")).toEqual([]);
});

/** What lies in the agent's data directory, in the hands of somebody else. */
async function stolenFrom(agent: TestAgent): Promise<TestSvid> {
  const data = JSON.parse(await readFile(join(agent.dataDir, "agent-data.json"), "utf8"));
  const { keys } = JSON.parse(await readFile(join(agent.dataDir, "keys.json"), "utf8"));
  const chain = (data.svid as readonly string[]).map(
    (text) => decodePem(Buffer.from(text, "base64").toString(), "CERTIFICATE")[0] ?? new Uint8Array(),
  );
  const { publicKey } = parseCertificate(chain[0] ?? new Uint8Array());
  const signers = Object.values<string>(keys).map((key) =>
    localSigner(privateKeyFromPkcs8(Buffer.from(key, "base64"))),
  );
  const signer = signers.find((one) => Buffer.compare(one.publicKey, publicKey) === 0);
  if (signer === undefined) throw new Error("no key fits the SVID");
  return testSvid(signer, chain);
}

describe("T-N13 a thief that renews the agent's SVID and uses it", () => {
  let agent: TestAgent;
  let mine: TestSvid;
  let theirs: TestSvid;
  beforeEach(async () => {
    agent = await startServing({ agent: PUSHED });
    mine = await stolenFrom(agent);
    const signer = await generateKey("ec-p256");
    const csr = await createCertificateRequest({ signer });
    using copy = server.connect(mine.tls);
    const { svid } = await copy.agent.RenewAgent({ params: { csr: Buffer.from(csr) } });
    theirs = testSvid(signer, svid?.cert_chain ?? []);
    using thief = server.connect(theirs.tls);
    expect((await thief.entry.GetAuthorizedEntries({})).entries).toHaveLength(1);
  });

  test("has the agent quarantined, gets nothing, and is out once the agent is released by its serial number", async () => {
    await using _ = agent;
    await agent.untilLogged(QUARANTINED);
    using thief = server.connect(theirs.tls);
    expect((await thief.entry.GetAuthorizedEntries({})).entries).toEqual([]);
    expect(await faultFrom(agent.fetch())).toMatchObject(DENIED);
    await release(agent, mine.serialNumber);
    await agent.untilLogged(RELEASED);
    await eventually("an identity", async () => (await agent.fetch()).svids.length === 1);
    expect(await faultFrom(thief.entry.GetAuthorizedEntries({}))).toMatchObject({ code: "agent-not-active" });
  });

  test("while the agent is off: it starts, has itself quarantined, and waits", async () => {
    await agent.untilLogged(QUARANTINED);
    await agent.stop();
    await release(agent, theirs.serialNumber);
    await using restarted = await restartAgent(agent.folder);
    await restarted.untilLogged(QUARANTINED);
    expect(await faultFrom(restarted.fetch())).toMatchObject(DENIED);
    await release(restarted, mine.serialNumber);
    await restarted.untilLogged(RELEASED);
    await agent[Symbol.asyncDispose]();
  });
});
