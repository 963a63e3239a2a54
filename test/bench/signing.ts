import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { startServer } from "../support/server.ts";
import { cpuMs } from "./stats.ts";

const ENTRIES = 100;
const BATCHES = 30;

/** BatchNewX509SVID between processes: certificates per second, and the server's CPU for one. */
export async function measureSigning(): Promise<string[]> {
  await using server = await startServer({
    server: { ratelimit: { attestation: false, signing: false } },
  });
  const agent = await server.attest();
  const names = Array.from({ length: ENTRIES }, (_, index) => `spiffe://example.org/bench/${index}`);
  const key = await generateKey("ec-p256");
  const params = await Promise.all(
    names.map(async (spiffeId) => {
      const { id } = await server.createEntry({ spiffeId, parentId: agent.id });
      return { entry_id: id, csr: Buffer.from(await createCertificateRequest({ signer: key, uris: [spiffeId] })) };
    }),
  );
  using apis = server.connect(agent.tls);
  await apis.svid.BatchNewX509SVID({ params });
  const [cpu, started] = [cpuMs(server.pid), performance.now()];
  for (let batch = 0; batch < BATCHES; batch++) {
    const { results } = await apis.svid.BatchNewX509SVID({ params });
    const failed = results.find(({ status }) => status?.code !== 0);
    if (failed !== undefined) throw new Error(failed.status?.message);
  }
  const seconds = (performance.now() - started) / 1000;
  const signed = ENTRIES * BATCHES;
  const perSvid = ((cpuMs(server.pid) - cpu) * 1000) / signed;
  return [
    `${Math.round(signed / seconds)} X.509-SVIDs per second in batches of ${ENTRIES} from one caller, CSR signatures checked`,
    `${perSvid.toFixed(0)} us of server CPU for each`,
  ];
}
