import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { faultFrom } from "../../support/faults.ts";
import { protoId, startServer, type TestServer, type TestSvid, testSvid } from "../../support/server.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

/** As one holder of the SVID renews: with a key of its own. */
async function renew(holder: TestSvid): Promise<TestSvid> {
  using apis = server.connect(holder.tls);
  const signer = await generateKey("ec-p256");
  const csr = await createCertificateRequest({ signer });
  const { svid } = await apis.agent.RenewAgent({ params: { csr } });
  return testSvid(signer, svid?.cert_chain ?? []);
}

async function use(holder: TestSvid): Promise<void> {
  using apis = server.connect(holder.tls);
  await apis.agent.PostStatus({ agent_version: "1" });
}

const reasonOf = async (work: Promise<unknown>) => denialReason(await faultFrom(work));
const COPIED = "Agent SVID was copied: two renewals from one SVID. The agent is banned";
const REUSED = "A replaced agent SVID was used again: it was copied, or restored from a backup";

async function expectShutOut(holders: readonly TestSvid[]): Promise<void> {
  const [first] = holders;
  for (const holder of holders) expect(await reasonOf(use(holder))).toBe("banned");
  await server.untilLogged(COPIED, { agent_id: first?.id });
  const agent = await server.admin.agent.GetAgent({ id: protoId(first?.id ?? "") });
  expect(agent.banned).toBe(true);
}

describe("T-N13 a copied agent key", () => {
  test("is noticed when the copy renews after the agent did: neither gets anything any more", async () => {
    const agent = await server.attest();
    const renewed = await renew(agent);
    await use(renewed);
    expect(await reasonOf(renew(agent))).toBe("not_active");
    await expectShutOut([agent, renewed]);
  });

  test("is noticed when both renew from the same SVID before either uses the new one", async () => {
    const agent = await server.attest();
    const [mine, theirs] = [await renew(agent), await renew(agent)];
    await use(theirs);
    expect(await reasonOf(use(mine))).toBe("not_active");
    await server.untilLogged(REUSED, { agent_id: agent.id });
    expect(await reasonOf(renew(mine))).toBe("not_active");
    await expectShutOut([mine, theirs]);
  });

  test("an evicted agent may attest again, with a token of its own", async () => {
    const agent = await server.attest();
    const renewed = await renew(agent);
    await use(renewed);
    await reasonOf(renew(agent));
    await server.admin.agent.DeleteAgent({ id: protoId(agent.id) });
    expect(await reasonOf(use(renewed))).toBe("not_attested");
    await use(await server.attest());
  });
});

test("a machine that was set back to a backup raises an alarm and bans nobody", async () => {
  const agent = await server.attest();
  const renewed = await renew(agent);
  await use(renewed);
  expect(await reasonOf(use(agent))).toBe("not_active");
  await server.untilLogged(REUSED, { agent_id: agent.id });
  await use(renewed);
});

test("a renewal whose answer was lost is no copy", async () => {
  const agent = await server.attest();
  await renew(agent);
  const renewed = await renew(agent);
  await use(renewed);
  await use(renewed);
  expect(server.logged(COPIED, { agent_id: agent.id })).toEqual([]);
});
