import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { attestWith, refused } from "../../support/attest.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
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
const REUSED = "A replaced agent SVID was used again: it was copied, or restored from a backup";
const COPIED = `${REUSED}. The agent is quarantined`;

/** Told to wait, and not to shut down as one that is banned, or is to attest again. */
async function expectToWait(work: Promise<unknown>): Promise<void> {
  const fault = await faultFrom(work);
  expect(fault).toMatchObject(refusal("denied", "agent-quarantined"));
  expect(denialReason(fault)).toBeUndefined();
}

async function entriesOf(holder: TestSvid): Promise<number> {
  using apis = server.connect(holder.tls);
  return (await apis.entry.GetAuthorizedEntries({})).entries.length;
}

const release = ({ id }: TestSvid, serial = "") =>
  server.admin.quarantine.ReleaseAgent({ id: protoId(id), x509svid_serial_number: serial });

/** The current one has no entries, those that it replaced wait. */
async function expectShutOut(current: TestSvid, others: readonly TestSvid[]): Promise<void> {
  expect(await entriesOf(current)).toBe(0);
  for (const holder of others) await expectToWait(use(holder));
  await server.untilLogged(COPIED, { agent_id: current.id });
  const { agents } = await server.admin.quarantine.ListQuarantinedAgents({});
  const held = agents.find(({ id }) => id?.path === protoId(current.id).path);
  expect(held?.reason).toMatch(/^SVID \d+ renews after \d+ had replaced it$/);
}

async function attest(): Promise<TestSvid> {
  const agent = await server.attest();
  await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id });
  return agent;
}

describe("T-N13 a copied agent key", () => {
  test("is noticed when the copy renews after the agent did: neither gets anything any more", async () => {
    const agent = await attest();
    const renewed = await renew(agent);
    expect(await entriesOf(renewed)).toBe(1);
    await expectToWait(renew(agent));
    await expectShutOut(renewed, [agent]);
  });

  test("is noticed when the thief was first: the agent is not what gives way to it", async () => {
    const agent = await attest();
    const stolen = await renew(agent);
    expect(await entriesOf(stolen)).toBe(1);
    expect(await reasonOf(use(agent))).toBe("not_active");
    await server.untilLogged(REUSED, { agent_id: agent.id });
    await expectToWait(renew(agent));
    await expectShutOut(stolen, [agent]);
    await release(agent, agent.serialNumber);
    expect(await entriesOf(agent)).toBe(1);
    await expectToWait(renew(stolen));
    await expectShutOut(agent, [stolen]);
  });

  test("an administrator decides who goes on, and the others stay out", async () => {
    const agent = await attest();
    const [mine, theirs] = [await renew(agent), await renew(agent)];
    await use(theirs);
    await expectToWait(renew(mine));
    await release(agent, mine.serialNumber);
    expect(await entriesOf(mine)).toBe(1);
    await use(await renew(mine));
    expect(await reasonOf(use(theirs))).toBe("not_active");
  });

  test("is noticed when both renew from the same SVID before either uses the new one", async () => {
    const agent = await attest();
    const [mine, theirs] = [await renew(agent), await renew(agent)];
    await use(theirs);
    expect(await reasonOf(use(mine))).toBe("not_active");
    await expectToWait(renew(mine));
    await expectShutOut(theirs, [agent, mine]);
  });

  test("an evicted agent may attest again, with a token of its own", async () => {
    const agent = await server.attest();
    const renewed = await renew(agent);
    await use(renewed);
    await expectToWait(renew(agent));
    await server.admin.agent.DeleteAgent({ id: protoId(agent.id) });
    expect(await reasonOf(use(renewed))).toBe("not_attested");
    await use(await server.attest());
  });
});

test("T-N13 T-N3 a join token and the key that used it let nobody take the agent's place once it has renewed", async () => {
  const [token, signer] = [await server.createToken(), await generateKey("ec-p256")];
  const evidence = { type: "join_token", payload: token, signer };
  using anonymous = server.connect();
  const agent = await attestWith(anonymous, evidence);
  // Its answer may have been lost.
  const again = await attestWith(anonymous, evidence);
  expect(again.id).toBe(agent.id);
  const renewed = await renew(again);
  expect(await refused(anonymous, evidence)).toEqual({
    kind: "invalid",
    message: "failed to attest: join token does not exist or has already been used",
  });
  await use(renewed);
  // Made again by an administrator, it is a new token.
  await server.createToken({ token });
  expect((await attestWith(anonymous, { ...evidence, signer: await generateKey("ec-p256") })).id).toBe(agent.id);
});

test("T-N13 a machine that was set back to a backup waits, and goes on where it is once it is released", async () => {
  const agent = await attest();
  const renewed = await renew(agent);
  await use(renewed);
  expect(await reasonOf(use(agent))).toBe("not_active");
  await expectToWait(renew(agent));
  await release(agent, agent.serialNumber);
  expect(await entriesOf(agent)).toBe(1);
  await use(await renew(agent));
});

test("a renewal whose answer was lost is no copy", async () => {
  const agent = await server.attest();
  await renew(agent);
  const renewed = await renew(agent);
  await use(renewed);
  await use(renewed);
  for (const alarm of [REUSED, COPIED]) expect(server.logged(alarm, { agent_id: agent.id })).toEqual([]);
});
