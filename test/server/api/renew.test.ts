import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openStore } from "../../../server/store/database.ts";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { withoutPostgres } from "../../support/postgres.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { type Apis, protoId, startServer, type TestServer, type TestSvid, testSvid } from "../../support/server.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

async function renew(agent: Apis): Promise<TestSvid> {
  const signer = await generateKey("ec-p256");
  const { svid } = await agent.agent.RenewAgent({ params: { csr: await createCertificateRequest({ signer }) } });
  return testSvid(signer, svid?.cert_chain ?? []);
}

async function serialOf(id: string): Promise<string> {
  return (await server.admin.agent.GetAgent({ id: protoId(id) })).x509svid_serial_number;
}

describe("RenewAgent", () => {
  test("gives the caller a new certificate; the old one stays good until the new one is used", async () => {
    const first = await server.attest();
    using old = server.connect(first.tls);
    const second = await renew(old);
    expect(second.id).toBe(first.id);
    expect(second.serialNumber).not.toBe(first.serialNumber);
    expect(await serialOf(first.id)).toBe(first.serialNumber);
    await old.entry.GetAuthorizedEntries({});
    using renewed = server.connect(second.tls);
    await renewed.entry.GetAuthorizedEntries({});
    expect(await serialOf(first.id)).toBe(second.serialNumber);
    const fault = await faultFrom(old.entry.GetAuthorizedEntries({}));
    expect([fault.kind, denialReason(fault)]).toEqual(["denied", "not_active"]);
  });

  test("many first calls with the new certificate at once all succeed", async () => {
    const first = await server.attest();
    using old = server.connect(first.tls);
    using renewed = server.connect((await renew(old)).tls);
    const calls = Array.from({ length: 50 }, () => renewed.entry.GetAuthorizedEntries({}));
    expect(await Promise.all(calls)).toHaveLength(50);
  });

  test("a renewal that was not used is replaced by the next; its certificate is void", async () => {
    const first = await server.attest();
    using old = server.connect(first.tls);
    const [lost, kept] = [await renew(old), await renew(old)];
    using stale = server.connect(lost.tls);
    using renewed = server.connect(kept.tls);
    await renewed.entry.GetAuthorizedEntries({});
    expect(denialReason(await faultFrom(stale.entry.GetAuthorizedEntries({})))).toBe("not_active");
  });

  test.each([
    { what: "no params", request: {}, message: "params cannot be nil" },
    { what: "no CSR", request: { params: {} }, message: "missing CSR" },
    { what: "a malformed CSR", request: { params: { csr: Buffer.from("x") } }, message: /^failed to parse CSR: / },
  ])("refuses $what", async ({ request, message }) => {
    using agent = server.connect((await server.attest()).tls);
    expect(await faultFrom(agent.agent.RenewAgent(request))).toMatchObject({
      kind: "invalid",
      message: typeof message === "string" ? message : expect.stringMatching(message),
    });
  });
});

describe("T-N14 a renewal goes to the agent that asks for it, and to its lineage only", () => {
  test("agent A cannot renew agent B, whatever its CSR says", async () => {
    const [a, b] = [await server.attest(), await server.attest()];
    using agentA = server.connect(a.tls);
    const signer = await generateKey("ec-p256");
    const csr = await createCertificateRequest({ signer, uris: [b.id], subject: { commonName: b.id } });
    const { svid } = await agentA.agent.RenewAgent({ params: { csr } });
    expect(svid?.id).toEqual(protoId(a.id));
    expect(testSvid(signer, svid?.cert_chain ?? []).chain[0]?.uris).toEqual([a.id]);
    using agentB = server.connect(b.tls);
    await agentB.entry.GetAuthorizedEntries({});
    expect(await serialOf(b.id)).toBe(b.serialNumber);
  });

  test("a valid certificate for the agent's ID that is not of its lineage renews nothing", async () => {
    const first = await server.attest();
    using old = server.connect(first.tls);
    const second = await renew(old);
    using renewed = server.connect(second.tls);
    await renewed.agent.PostStatus({});
    expect(await faultFrom(renew(old))).toMatchObject(refusal("denied", "agent-quarantined"));
    expect(await serialOf(first.id)).toBe(second.serialNumber);
  });

  test("nor does the certificate from before the agent was evicted and attested again", async () => {
    const first = await server.attest();
    using old = server.connect(first.tls);
    await old.agent.PostStatus({});
    await server.admin.agent.DeleteAgent({ id: protoId(first.id) });
    expect(denialReason(await faultFrom(renew(old)))).toBe("not_attested");
    const again = await server.attest(await server.createToken({ token: first.id.split("/").at(-1) ?? "" }));
    expect(again.id).toBe(first.id);
    expect(denialReason(await faultFrom(renew(old)))).toBe("not_active");
    expect(await serialOf(first.id)).toBe(again.serialNumber);
  });

  test("a workload's certificate, and an administrator's, renew nothing", async () => {
    await server.createEntry({
      spiffeId: "spiffe://example.org/an/admin",
      parentId: "spiffe://example.org/p",
      admin: true,
    });
    for (const id of ["spiffe://example.org/workload", "spiffe://example.org/an/admin"]) {
      using other = server.connect((await server.mint(id)).tls);
      const fault = await faultFrom(renew(other));
      expect([fault.kind, denialReason(fault)]).toEqual(["denied", "not_attested"]);
    }
  });
});

describe.skipIf(withoutPostgres)("with servers that share a database", () => {
  test("an agent that can attest again must do so, and is told", async () => {
    await using shared = await startServer({ store: "postgres" });
    const svid = await shared.attest();
    await using store = await openStore(
      { kind: "postgres", connectionString: shared.databaseUrl ?? "", disableMigration: true },
      { log: new RecordingLog(), clock: systemClock },
    );
    const node = await store.nodes.find(parseSpiffeId(svid.id));
    if (node === undefined) throw new Error("the node is not stored");
    await store.nodes.attest({ ...node, canReattest: true });
    using agent = shared.connect(svid.tls);
    const fault = await faultFrom(renew(agent));
    expect([fault.kind, fault.message, denialReason(fault)]).toEqual([
      "denied",
      "agent must reattest instead of renew",
      "must_reattest",
    ]);
  });

  test("a node that another server attested, or renewed, a moment ago is let in without delay", async () => {
    await using first = await startServer({ store: "postgres" });
    await using second = await startServer({ store: { url: first.databaseUrl ?? "" } });
    for (let round = 0; round < 10; round += 1) {
      const svid = await first.attest();
      using elsewhere = second.connect(svid.tls);
      await elsewhere.entry.GetAuthorizedEntries({});
      using renewed = first.connect((await renew(elsewhere)).tls);
      await renewed.entry.GetAuthorizedEntries({});
      using stale = first.connect(svid.tls);
      expect(denialReason(await faultFrom(stale.entry.GetAuthorizedEntries({})))).toBe("not_active");
    }
  });
});
