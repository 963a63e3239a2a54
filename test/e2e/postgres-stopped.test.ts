import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { type Cluster, createDatabase, findPostgres, startCluster, withoutPostgres } from "../support/postgres.ts";
import { startServer, type TestServer } from "../support/server.ts";
import { WorkloadStreams } from "../support/workload-streams.ts";

const WORKLOADS = 50;
const ENTRIES = 3;
const TTL_SECONDS = 9;
const LIVES = 2;

/** Several programs start, one after the other. */
const START_MS = 120_000;

describe.skipIf(withoutPostgres)("PostgreSQL stopped for the time of two SVID lives", () => {
  let cluster: Cluster;
  let server: TestServer;
  let agent: TestAgent;

  beforeAll(async () => {
    cluster = await startCluster((await findPostgres()) ?? "");
    server = await startServer({ store: { url: (await createDatabase(cluster.url)).url } });
    agent = await startAgent(server);
    for (let index = 0; index < ENTRIES; index += 1) await createEntry(index);
  }, START_MS);
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
    await cluster?.[Symbol.asyncDispose]();
  });

  const createEntry = (index: number) =>
    server.createEntry({
      spiffeId: `spiffe://example.org/w/${index}`,
      parentId: agent.id(),
      selectors: [OWN_SELECTOR],
      x509_svid_ttl: TTL_SECONDS,
    });

  test("50 workloads never notice: their streams go on, always with an SVID that is valid", async () => {
    await using streams = await WorkloadStreams.open(agent.socket, WORKLOADS);
    await cluster.stop();
    const before = streams.updates;
    const until = performance.now() + LIVES * TTL_SECONDS * 1000;
    await eventually("two lives have passed", () => performance.now() > until, 60_000);
    await expect(createEntry(99)).rejects.toThrow("the datastore is not available");
    expect(streams.updates - before).toBeGreaterThanOrEqual(LIVES * WORKLOADS);
    await cluster.start();
    await eventually("writes work", () => createEntry(ENTRIES).then(() => true));
    expect(streams.troubles).toEqual([]);
  });
});
