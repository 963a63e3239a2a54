import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { eventually } from "../../support/eventually.ts";
import { startServer, type TestServer, type TestSvid } from "../../support/server.ts";

const BATCH = 500;

let server: TestServer;
let agent: TestSvid;
let other: TestSvid;
let params: { entry_id: string; csr: Buffer }[];
let otherParams: { entry_id: string; csr: Buffer }[];
beforeAll(async () => {
  server = await startServer({ server: { ratelimit: { attestation: false, signing: false } } });
  agent = await server.attest();
  other = await server.attest();
  const csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
  const paramOf = async (parentId: string): Promise<{ entry_id: string; csr: Buffer }> => {
    const { id } = await server.createEntry({ spiffeId: "spiffe://example.org/herd", parentId });
    return { entry_id: id, csr };
  };
  params = Array(BATCH).fill(await paramOf(agent.id));
  otherParams = [await paramOf(other.id)];
});
afterAll(() => server[Symbol.asyncDispose]());

describe("T-X9 a herd waits its turn", () => {
  test("a caller with one signature to ask for does not wait for another's thousands", async () => {
    using crowd = server.connect(agent.tls);
    using single = server.connect(other.tls);
    let running = 10;
    const batches = Array.from({ length: running }, async () => {
      const { results } = await crowd.svid.BatchNewX509SVID({ params });
      running -= 1;
      return results.filter(({ status }) => status?.code === 0).length;
    });
    for (let index = 0; index < 5; index += 1) {
      const { results } = await single.svid.BatchNewX509SVID({ params: otherParams });
      expect(results[0]?.status?.code).toBe(0);
    }
    expect(running).toBeGreaterThan(0);
    expect(await Promise.all(batches)).toEqual(Array(10).fill(BATCH));
  });

  test("nor does a call that signs nothing", async () => {
    using crowd = server.connect(agent.tls);
    let isDone = false;
    const batch = crowd.svid.BatchNewX509SVID({ params }).then(() => {
      isDone = true;
    });
    let answered = 0;
    while (!isDone && answered < 10) {
      await server.admin.bundle.GetBundle({});
      answered += 1;
    }
    expect(answered).toBe(10);
    await batch;
  });

  test("who leaves gives up its place, and the server is as free as before", async () => {
    using crowd = server.connect(agent.tls);
    const leave = new AbortController();
    const ends = Array.from({ length: 10 }, () =>
      crowd.svid.BatchNewX509SVID({ params }, { signal: leave.signal }).then(
        () => "answered",
        () => "left",
      ),
    );
    const before = server.logged("Signed X509 SVID").length;
    await eventually("the first are being signed", () => server.logged("Signed X509 SVID").length > before);
    leave.abort();
    expect(await Promise.all(ends)).toEqual(Array(10).fill("left"));
    using single = server.connect(other.tls);
    const { results } = await single.svid.BatchNewX509SVID({ params: otherParams });
    expect(results[0]?.status?.code).toBe(0);
    const signed = server.logged("Signed X509 SVID").length - before;
    expect(signed).toBeLessThan(10 * BATCH);
  });
});
