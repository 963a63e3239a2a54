import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { OWN_SELECTOR, restartAgent, startAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { faultFrom, refusal } from "../support/faults.ts";
import { type Link, openLink, through } from "../support/link.ts";
import {
  administer,
  type Cluster,
  createDatabase,
  findPostgres,
  startCluster,
  withoutPostgres,
} from "../support/postgres.ts";
import { entryMessage, startServer, type TestServer, type TestSvid } from "../support/server.ts";
import { SimulatedAgent } from "../support/simulated-agent.ts";
import { temporaryDirectory } from "../support/workload.ts";

/** Longer than the driver waits for a statement. */
const SLOW_MS = 30_000;
const SIGNATURES = 5;
const UNAVAILABLE = 14;

/** Several programs start, one after the other. */
const START_MS = 120_000;

describe.skipIf(withoutPostgres)("a database in trouble stops writes, with a clear error, and nothing else", () => {
  let bin: string;
  let cluster: Cluster;
  let link: Link;
  let databaseUrl: string;
  let server: TestServer;
  let agent: SimulatedAgent;
  let node: TestSvid;
  let workload: TestSvid;
  let entryId: string;
  let csr: Buffer;
  let writes = 0;

  beforeAll(async () => {
    bin = (await findPostgres()) ?? "";
    cluster = await startCluster(bin);
    link = await openLink(cluster.port);
    databaseUrl = (await createDatabase(cluster.url)).url;
    server = await startServer({ store: { url: through(link, databaseUrl) } });
    agent = await SimulatedAgent.start(() => server);
    node = await server.attest();
    workload = await server.mint("spiffe://example.org/workload");
    entryId = (await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: node.id })).id;
    csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
  }, START_MS);
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await server?.[Symbol.asyncDispose]();
    link?.[Symbol.dispose]();
    await cluster?.[Symbol.asyncDispose]();
  });

  /** The status of one write for the agent, and the ID of its entry. */
  async function write(): Promise<{ readonly id: string; readonly code: number; readonly message: string }> {
    writes += 1;
    const id = `write-${writes}`;
    const entry = { ...entryMessage({ spiffeId: `spiffe://example.org/${id}`, parentId: agent.id }), id };
    const { results } = await server.admin.entry.BatchCreateEntry({ entries: [entry] });
    return { id, code: results[0]?.status?.code ?? 0, message: results[0]?.status?.message ?? "" };
  }

  async function expectRefused(): Promise<void> {
    const { code, message } = await write();
    expect({ code, message }).toEqual({
      code: UNAVAILABLE,
      message: "failed to create entry: the datastore is not available",
    });
  }

  async function expectSigning(): Promise<void> {
    using apis = server.connect(node.tls);
    // Nor is it asked for what no agent can be, however often a workload asks.
    using other = server.connect(workload.tls);
    expect(await faultFrom(other.entry.GetAuthorizedEntries({}))).toMatchObject(
      refusal("denied", "agent-not-attested"),
    );
    for (let index = 0; index < SIGNATURES; index += 1) {
      const { results } = await apis.svid.BatchNewX509SVID({ params: [{ entry_id: entryId, csr }] });
      expect(results.map(({ status }) => status?.code)).toEqual([0]);
      expect((await apis.svid.NewJWTSVID({ entry_id: entryId, audience: ["a"] })).svid?.token).not.toBe("");
      expect((await apis.entry.GetAuthorizedEntries({})).entries.map(({ id }) => id)).toEqual([entryId]);
    }
  }

  /** Writes work again, and arrive on the stream that was open all the time. */
  async function expectRecovered(): Promise<void> {
    const { id } = await eventually(
      "writes work",
      async () => {
        const written = await write();
        return written.code === 0 && written;
      },
      30_000,
    );
    await eventually("the agent is told", () => agent.entries.has(id), 30_000);
    expect(agent.agreements).toBe(1);
  }

  test("away", async () => {
    link.cut(true);
    await expectRefused();
    await expectSigning();
    link.cut(false);
    await expectRecovered();
  });

  test("an agent that is known starts, and its workloads are served", async () => {
    await using folder = await temporaryDirectory();
    {
      await using first = await startAgent(server, { folder: folder.path });
      // Of another release, so that the server has to write down that it is of this one.
      await administer(databaseUrl, "update attested_nodes set agent_version = '0.0.1'");
      const entry = { spiffeId: "spiffe://example.org/restarted", parentId: first.id(), selectors: [OWN_SELECTOR] };
      await server.createEntry(entry);
    }
    link.cut(true);
    await expectRefused();
    await using again = await restartAgent(folder.path);
    await eventually("the identity", async () => (await again.fetch()).svids.length === 1);
    link.cut(false);
    await expectRecovered();
  });

  test("slow beyond patience", async () => {
    link.delay(SLOW_MS);
    let isPending = true;
    const refused = expectRefused().finally(() => {
      isPending = false;
    });
    await expectSigning();
    expect(isPending).toBe(true);
    await refused;
    link.delay(0);
    await expectRecovered();
  });

  test("restarted", async () => {
    await cluster.stop();
    await expectRefused();
    await expectSigning();
    await cluster.start();
    await expectRecovered();
  });

  test("failed over to its standby, which is one still for a while", async () => {
    await using standby = await startCluster(bin, { standbyOf: cluster });
    await cluster.stop();
    link.to(standby.port);
    await eventually("it is reached, and refuses to write", () => expectRefused().then(() => true));
    await expectSigning();
    await administer(standby.url, "select pg_promote()");
    await expectRecovered();
    await server.stop();
  });
});
