import { describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { eventually } from "../support/eventually.ts";
import { createDatabase, withoutPostgres } from "../support/postgres.ts";
import { type Apis, collect, from, startServer } from "../support/server.ts";
import { SimulatedAgent } from "../support/simulated-agent.ts";
import { StatementLog } from "../support/statements.ts";

const STREAMS = 10;
const POLLING = 5;
const ROUNDS = 40;
const MASK = { spiffe_id: true, selectors: true, revision_number: true };
/** What a server does for itself, however many agents it has: at most so often, and one more for the edges. */
const OWN: readonly { readonly what: string; readonly sql: RegExp; readonly everyMs: number }[] = [
  {
    what: "the change feed's poll, the net below notifications",
    sql: /^\s*with position as .* change_log/s,
    everyMs: 1000,
  },
  {
    what: "the rotation tick's look at the bundle, for each of two kinds",
    sql: /^select \* from "bundles"/,
    everyMs: 5000,
  },
  { what: "the look at federation relationships", sql: /from "federation_relationships"/, everyMs: 5000 },
  { what: "the settings of a new connection", sql: /^\s*set jit/, everyMs: 5000 },
];

describe.skipIf(withoutPostgres)("agents that have nothing to do", () => {
  test("cost the database nothing: what is sent is the server's own, the change feed's poll once a second above all", async () => {
    await using database = await createDatabase();
    using log = await StatementLog.open(database.url);
    await using scope = new AsyncDisposableStack();
    const config = { log_level: "INFO", ratelimit: { attestation: false, signing: false } };
    const server = scope.use(await startServer({ store: { url: log.url }, server: config }));
    for (let index = 0; index < STREAMS; index += 1) scope.use(await SimulatedAgent.start(() => server));
    const csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
    const polls: (() => Promise<void>)[] = [];
    for (let index = 0; index < POLLING; index += 1) {
      const node = await server.attest();
      const apis = scope.use(server.connect(node.tls));
      const { id } = await server.createEntry({ spiffeId: `spiffe://example.org/w/${index}`, parentId: node.id });
      polls.push(() => poll(apis, id, csr));
    }
    for (const one of polls) await one();
    const before = log.statements.length;
    expect(before).toBeGreaterThan(100);

    const started = performance.now();
    for (let round = 0; round < ROUNDS; round += 1) await Promise.all(polls.map((one) => one()));
    await eventually("the feed polls", () => log.statements.length >= before + 3);
    const seconds = (performance.now() - started) / 1000;
    const sent = log.statements.slice(before);
    expect(sent.filter((statement) => !OWN.some(({ sql }) => sql.test(statement)))).toEqual([]);
    for (const { what, sql, everyMs } of OWN) {
      const count = sent.filter((statement) => sql.test(statement)).length;
      expect(count, what).toBeLessThanOrEqual((seconds * 1000) / everyMs + 2);
    }
  });
});

/** All that an agent without the stream of changes asks in a round, and what it asks when SVIDs are due. */
async function poll({ agent, entry, bundle, svid }: Apis, entryId: string, csr: Buffer): Promise<void> {
  await agent.PostStatus({ agent_version: "1" });
  const [answer] = await collect(entry.SyncAuthorizedEntries(from([{ output_mask: MASK }])));
  expect(answer?.entries.map(({ id }) => id)).toEqual([entryId]);
  await bundle.GetBundle({});
  const { results } = await svid.BatchNewX509SVID({ params: [{ entry_id: entryId, csr }] });
  expect(results.map(({ status }) => status?.code)).toEqual([0]);
  const { svid: token } = await svid.NewJWTSVID({ entry_id: entryId, audience: ["a"] });
  expect(token?.token).not.toBe("");
}
