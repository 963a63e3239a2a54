import { describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { attestWith, refused } from "../../support/attest.ts";
import { createDatabase, withoutPostgres } from "../../support/postgres.ts";
import { type Apis, collect, from, protoId, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

/** Shows one token so many times at once, with a key each, spread over the connections. */
async function race(connections: readonly Apis[], token: string, times: number): Promise<readonly string[]> {
  const requests = await Promise.all(
    Array.from({ length: times }, async () => {
      const csr = await createCertificateRequest({ signer: await generateKey("ec-p256") });
      return { params: { data: { type: "join_token", payload: Buffer.from(token) }, params: { csr } } };
    }),
  );
  const attempts = requests.map((request, index) => {
    const apis = connections[index % connections.length];
    return collect((apis as Apis).agent.AttestAgent(from([request]), { deadlineMs: 60_000 }));
  });
  const outcomes = await Promise.allSettled(attempts);
  return outcomes.map((outcome) => (outcome.status === "fulfilled" ? "attested" : Fault.from(outcome.reason).message));
}

const USED = "failed to attest: join token does not exist or has already been used";

/** What a database answers that is asked by too many at once. */
const BUSY = "the datastore is not available";

describe("an answer that is lost", () => {
  test("costs no token: the same key finishes, also after the server was killed, and another key never", async () => {
    await using folder = await temporaryDirectory();
    const signer = await generateKey("ec-p256");
    const first = await startServer({ folder: folder.path });
    const payload = await first.createToken();
    const evidence = { type: "join_token", payload };
    using before = first.connect();
    const lost = await attestWith(before, { ...evidence, signer });
    await first.kill();
    await using again = await startServer({ folder: folder.path });
    using anonymous = again.connect();
    expect(await refused(anonymous, evidence)).toEqual({ kind: "invalid", message: USED });
    const found = await attestWith(anonymous, { ...evidence, signer });
    expect(found.id).toBe(lost.id);
    expect(found.serialNumber).not.toBe(lost.serialNumber);
    using agent = again.connect(found.tls);
    await agent.agent.PostStatus({ agent_version: "1" });
    expect(await again.admin.agent.CountAgents({})).toEqual({ count: 1 });
    await again.admin.agent.DeleteAgent({ id: protoId(found.id) });
    expect(await refused(anonymous, { ...evidence, signer })).toEqual({ kind: "invalid", message: USED });
  }, 180_000);
});

describe("T-N3 once means once", () => {
  test("1,000 at once on one server with the embedded store: exactly one attests", async () => {
    await using server = await startServer();
    await expectOne([server], 1000);
  }, 180_000);

  test.skipIf(withoutPostgres)(
    "1,000 at once over three servers on one PostgreSQL: exactly one attests",
    async () => {
      await using database = await createDatabase();
      await using first = await startServer({ store: { url: database.url } });
      await using second = await startServer({ store: { url: database.url } });
      await using third = await startServer({ store: { url: database.url } });
      await expectOne([first, second, third], 1000);
    },
    180_000,
  );
});

async function expectOne(servers: readonly [TestServer, ...TestServer[]], times: number): Promise<void> {
  using cleanup = new DisposableStack();
  const connections = servers.flatMap((server) => Array.from({ length: 4 }, () => cleanup.use(server.connect())));
  const before = await servers[0].admin.agent.CountAgents({});
  const token = await servers[0].createToken();
  const outcomes = await race(connections, token, times);
  const refused = outcomes.filter((outcome) => outcome !== "attested");
  expect(refused).toHaveLength(times - 1);
  expect(refused.filter((outcome) => outcome !== USED && outcome !== BUSY)).toEqual([]);
  expect(await race(connections.slice(0, 1), token, 1)).toEqual([USED]);
  expect(await servers[0].admin.agent.CountAgents({})).toEqual({ count: before.count + 1 });
}
