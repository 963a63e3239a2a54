import { cpus } from "node:os";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { eventually } from "../support/eventually.ts";
import { type MeasuredServer, scenario } from "./scenario.ts";
import { calls } from "./stats.ts";

/** BatchNewX509SVID between processes: certificates per second, and the server's CPU for one. */
export const signing = scenario({
  summary: "X.509-SVIDs in batches, by an agent over TLS, CSR signatures checked",
  parameters: {
    batch: { doc: "SVIDs in one call.", default: 100 },
    calls: { doc: "Calls in all.", default: 30 },
    inFlight: { doc: "Calls at the same time.", default: [1, 4] },
  },
  async run({ parameters: { batch, calls: count, inFlight }, limits, onServers }) {
    const floor = await limits.signing("ec-p256", "sign and verify");
    const cores = cpus().length;
    const limit = { name: `${floor.name}, on ${cores} cores`, value: (cores * 1_000_000) / floor.value };
    await onServers({ anyStore: true, wireOnly: true }, async (server, report) => {
      const agent = await server.attest();
      using apis = server.connect(agent.tls);
      const rounds = await requests(server, agent.id, batch);
      let round = 0;
      const sign = async (): Promise<true> => {
        const params = rounds[round++ % rounds.length] ?? [];
        const { results } = await apis.svid.BatchNewX509SVID({ params });
        const failed = results.find(({ status }) => status?.code !== 0);
        if (failed !== undefined || results.length !== batch) throw new Error(failed?.status?.message ?? "too few");
        return true;
      };
      await eventually("the server signs for the entries", sign);
      for (const each of inFlight) {
        const { seconds, ms, cpuUs } = await calls({ count, inFlight: each, pid: server.pid }, sign);
        const at = { "in flight": each };
        report.figure({ name: "X.509-SVIDs", unit: "/s", values: (count * batch) / seconds, at, limit });
        report.figure({ name: `one call of ${batch}`, unit: "ms", values: ms, at });
        if (cpuUs !== undefined)
          report.figure({ name: "server CPU for one", unit: "us", values: cpuUs / batch, at, limit: floor });
      }
    });
  },
});

/** More keys than a server remembers: each CSR comes with a key that it does not know, as in life. */
const KEYS = 512;

/** Rounds of requests for the same entries, each with keys of its own. */
async function requests(server: MeasuredServer, parentId: string, count: number) {
  const spiffeIds = Array.from(
    { length: count },
    (_, at) => `spiffe://${server.trustDomain}/bench/${process.pid}/${at}`,
  );
  const entries = await Promise.all(
    spiffeIds.map(async (spiffeId) => ({ spiffeId, id: (await server.createEntry({ spiffeId, parentId })).id })),
  );
  const request = async ({ id, spiffeId }: { id: string; spiffeId: string }) => {
    const signer = await generateKey("ec-p256");
    return { entry_id: id, csr: Buffer.from(await createCertificateRequest({ signer, uris: [spiffeId] })) };
  };
  const rounds = Array.from({ length: Math.ceil(KEYS / count) }, () => Promise.all(entries.map(request)));
  return await Promise.all(rounds);
}
