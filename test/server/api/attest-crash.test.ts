import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { generateKey, type LocalSigner } from "../../../src/crypto/key.ts";
import { attestWith, refused } from "../../support/attest.ts";
import { createDatabase, withoutPostgres } from "../../support/postgres.ts";
import { protoId, startServer, type TestServer } from "../../support/server.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const ROUNDS = 6;
const AT_ONCE = 8;
const USED = "failed to attest: join token does not exist or has already been used";

interface Node {
  readonly token: string;
  readonly signer: LocalSigner;
}

const evidenceOf = ({ token, signer }: Node) => ({ type: "join_token", payload: token, signer });

/** Nodes attest while the server dies; how many have their answer. */
async function attestUntilKilled(server: TestServer, nodes: readonly Node[], afterMs: number): Promise<number> {
  const answers = nodes.map(async (node) => {
    using apis = server.connect();
    await attestWith(apis, evidenceOf(node));
  });
  const all = Promise.allSettled(answers);
  await delay(afterMs);
  await server.kill();
  return (await all).filter(({ status }) => status === "fulfilled").length;
}

/** Whatever the crash left, the node that began finishes, nobody else does, and its record is whole. */
async function expectToFinish(server: TestServer, node: Node): Promise<void> {
  using apis = server.connect();
  const agent = await attestWith(apis, evidenceOf(node));
  expect(await refused(apis, { type: "join_token", payload: node.token })).toEqual({ kind: "invalid", message: USED });
  using own = server.connect(agent.tls);
  const { entries } = await own.entry.GetAuthorizedEntries({});
  expect(entries.map(({ spiffe_id }) => spiffe_id?.path)).toEqual(["/w"]);
  const record = await server.admin.agent.GetAgent({ id: protoId(agent.id) });
  expect(record).toMatchObject({ attestation_type: "join_token", x509svid_serial_number: agent.serialNumber });
}

test.skipIf(withoutPostgres)(
  `after kill -9 at ${ROUNDS} moments of attestation, every node's record is whole or not there, and a retry completes it`,
  { timeout: 600_000 },
  async () => {
    await using folder = await temporaryDirectory();
    await using database = await createDatabase();
    const options = { folder: folder.path, store: { url: database.url }, startMs: 120_000 };
    let server = await startServer(options);
    let answered = 0;
    for (let round = 0; round < ROUNDS; round += 1) {
      const nodes: Node[] = [];
      for (let index = 0; index < AT_ONCE; index += 1) {
        const token = await server.createToken();
        const parentId = `spiffe://example.org/spire/agent/join_token/${token}`;
        await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId });
        nodes.push({ token, signer: await generateKey("ec-p256") });
      }
      answered += await attestUntilKilled(server, nodes, (round * 150) / ROUNDS + Math.random() * 25);
      await server[Symbol.asyncDispose]();
      server = await startServer(options);
      const { agents } = await server.admin.agent.ListAgents({});
      for (const agent of agents) expect(agent).toMatchObject({ attestation_type: "join_token", banned: false });
      for (const { x509svid_serial_number } of agents) expect(x509svid_serial_number).toMatch(/^\d{10,}$/);
      for (const node of nodes) await expectToFinish(server, node);
    }
    expect(answered).toBeLessThan(ROUNDS * AT_ONCE);
    expect(await server.admin.agent.CountAgents({})).toEqual({ count: ROUNDS * AT_ONCE });
    await server[Symbol.asyncDispose]();
  },
);
