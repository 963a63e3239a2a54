import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { faultFrom } from "../../support/faults.ts";
import { type Apis, protoId, startServer, type TestServer, type TestSvid, testSvid } from "../../support/server.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer({ server: { agent_ttl: "10s" } });
});
afterAll(() => server[Symbol.asyncDispose]());

interface OpenStream {
  /** How the server ends it. */
  readonly ended: Promise<Fault>;
}

/** A sync on which the agent says nothing more after its first request, opened and let in. */
async function openSync(agent: Apis): Promise<OpenStream> {
  const silent = async function* () {
    await new Promise<never>(() => {});
    yield {};
  };
  const iterator = agent.entry.SyncAuthorizedEntries(silent())[Symbol.asyncIterator]();
  const ended = iterator.next().then(
    () => new Fault("internal", "the stream went on"),
    (error: unknown) => Fault.from(error),
  );
  await agent.entry.GetAuthorizedEntries({});
  return { ended };
}

async function renew(agent: Apis): Promise<TestSvid> {
  const signer = await generateKey("ec-p256");
  const { svid } = await agent.agent.RenewAgent({ params: { csr: await createCertificateRequest({ signer }) } });
  return testSvid(signer, svid?.cert_chain ?? []);
}

describe("T-C5 a stream that is open ends with the right to it", () => {
  const rows: readonly {
    readonly what: string;
    readonly reason: string;
    readonly act: (svid: TestSvid, agent: Apis) => Promise<unknown>;
  }[] = [
    { what: "banned", reason: "banned", act: ({ id }) => server.admin.agent.BanAgent({ id: protoId(id) }) },
    { what: "evicted", reason: "not_attested", act: ({ id }) => server.admin.agent.DeleteAgent({ id: protoId(id) }) },
    {
      what: "superseded by a certificate that it renewed and used",
      reason: "not_active",
      act: async (_, agent) => {
        using renewed = server.connect((await renew(agent)).tls);
        await renewed.agent.PostStatus({});
      },
    },
    { what: "expired", reason: "expired", act: async () => {} },
  ];

  test.each(rows)("when the agent is $what: $reason", async ({ act, reason }) => {
    const svid = await server.attest();
    using agent = server.connect(svid.tls);
    const { ended } = await openSync(agent);
    await act(svid, agent);
    const fault = await ended;
    expect([fault.kind, denialReason(fault), fault.message]).toEqual([
      "denied",
      reason,
      "authorization denied for method /spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
    ]);
    const later = await faultFrom(agent.entry.GetAuthorizedEntries({}));
    expect([later.kind, denialReason(later)]).toEqual(["denied", reason]);
  });

  test("and goes on while other agents come and go", async () => {
    const svid = await server.attest();
    using agent = server.connect(svid.tls);
    const { ended } = await openSync(agent);
    const other = await server.attest();
    await server.admin.agent.BanAgent({ id: protoId(other.id) });
    await server.createEntry({ spiffeId: "spiffe://example.org/noise", parentId: svid.id });
    const state = await Promise.race([
      ended.then(() => "ended"),
      agent.entry.GetAuthorizedEntries({}).then(() => "open"),
    ]);
    expect(state).toBe("open");
    await server.admin.agent.DeleteAgent({ id: protoId(svid.id) });
    expect(denialReason(await ended)).toBe("not_attested");
  });
});
