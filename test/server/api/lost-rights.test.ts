import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { faultFrom } from "../../support/faults.ts";
import { type Apis, protoId, startServer, type TestServer } from "../../support/server.ts";

/** What one address may have signed in a second. */
const PER_SECOND = 500;

let server: TestServer;
let csr: Buffer;
beforeAll(async () => {
  server = await startServer({ keyManager: "memory" });
  csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
});
afterAll(() => server[Symbol.asyncDispose]());

/** Takes what there is for some seconds, with items that cost nothing else, and asks for one that has to wait. */
async function asking(apis: Apis, entry_id: string) {
  const nothing = Array.from({ length: PER_SECOND }, () => ({}));
  const before = Array.from({ length: 8 }, () =>
    apis.svid.BatchNewX509SVID({ params: nothing }).catch(() => undefined),
  );
  const waiting = faultFrom(apis.svid.BatchNewX509SVID({ params: [{ entry_id, csr }] }));
  // Of the same connection, so that it comes after them.
  await apis.entry.GetAuthorizedEntries({});
  return { waiting, before };
}

describe("T-C5 a call that waited for its turn answers to what its caller is by then", () => {
  test("an agent that is evicted meanwhile gets no SVID any more", async () => {
    const agent = await server.attest();
    const { id } = await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id });
    using apis = server.connect(agent.tls);
    const { waiting, before } = await asking(apis, id);
    await server.admin.agent.DeleteAgent({ id: protoId(agent.id) });
    const fault = await waiting;
    expect([fault.kind, denialReason(fault)]).toEqual(["denied", "not_attested"]);
    await Promise.all(before);
  });

  test("one whose SVID was replaced gets none by the old one", async () => {
    const agent = await server.attest();
    const { id } = await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id });
    using apis = server.connect(agent.tls);
    const signer = await generateKey("ec-p256");
    const request = await createCertificateRequest({ signer });
    const { svid } = await apis.agent.RenewAgent({ params: { csr: request } });
    const { waiting, before } = await asking(apis, id);
    using renewed = server.connect({ chain: svid?.cert_chain ?? [], privateKey: signer.privateKey });
    await renewed.agent.PostStatus({});
    const fault = await waiting;
    expect([fault.kind, denialReason(fault)]).toEqual(["denied", "not_active"]);
    await Promise.all(before);
  });
});

test("T-N13 a renewal that waited while another one was faster is refused, and no sign of a copied SVID", async () => {
  const agent = await server.attest();
  const { id } = await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id });
  using apis = server.connect(agent.tls);
  const signer = await generateKey("ec-p256");
  const request = { params: { csr: await createCertificateRequest({ signer }) } };
  const { svid } = await apis.agent.RenewAgent(request);
  const { waiting, before } = await asking(apis, id);
  const late = faultFrom(apis.agent.RenewAgent(request));
  await apis.entry.GetAuthorizedEntries({});
  using renewed = server.connect({ chain: svid?.cert_chain ?? [], privateKey: signer.privateKey });
  await renewed.agent.PostStatus({});
  const fault = await late;
  expect([fault.kind, denialReason(fault)]).toEqual(["denied", "not_active"]);
  expect((await server.admin.quarantine.ListQuarantinedAgents({})).agents).toEqual([]);
  expect((await renewed.entry.GetAuthorizedEntries({})).entries).toHaveLength(1);
  await Promise.all([waiting, ...before]);
});

test("T-F4 an agent that names more entries than there can be is refused, over all its streams", async () => {
  const agent = await server.attest();
  using apis = server.connect(agent.tls);
  const page = (from: number) => ({
    held: {
      revisions: {
        revisions: Array.from({ length: 30_000 }, (_, at) => ({ id: `entry-${from + at}`, revision_number: 1 })),
        more: true,
      },
    },
  });
  const naming = async function* (pages: number) {
    for (let at = 0; at < pages; at += 1) yield page(at * 30_000);
    await new Promise<never>(() => {});
  };
  const stop = new AbortController();
  const next = (pages: number) =>
    apis.push.WatchAuthorizedEntries(naming(pages), { signal: stop.signal })[Symbol.asyncIterator]().next();
  const one = next(3);
  const all = await Promise.race([faultFrom(next(3)), faultFrom(one)]);
  expect([all.kind, all.message]).toEqual(["exhausted", "too many entry revisions"]);
  stop.abort();
  await one.catch(() => undefined);
});
