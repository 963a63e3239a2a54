import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { createDatabase, withoutPostgres } from "../../support/postgres.ts";
import {
  type Apis,
  attestWithToken,
  collect,
  from,
  protoId,
  startServer,
  type TestServer,
  type TestSvid,
  testSvid,
} from "../../support/server.ts";

let server: TestServer;
let agent: TestSvid;
let entryId: string;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());
beforeEach(async () => {
  agent = await server.attest();
  entryId = (await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id })).id;
});

const idOf = ({ id }: TestSvid) => protoId(id);
const quarantine = (who: TestSvid, reason = "odd") =>
  server.admin.quarantine.QuarantineAgent({ id: idOf(who), reason });
const release = (who: TestSvid, serial = "") =>
  server.admin.quarantine.ReleaseAgent({ id: idOf(who), x509svid_serial_number: serial });

async function csr(): Promise<{ readonly signer: Awaited<ReturnType<typeof generateKey>>; readonly csr: Uint8Array }> {
  const signer = await generateKey("ec-p256");
  return { signer, csr: await createCertificateRequest({ signer }) };
}

async function renew(apis: Apis): Promise<TestSvid> {
  const made = await csr();
  const { svid } = await apis.agent.RenewAgent({ params: { csr: Buffer.from(made.csr) } });
  return testSvid(made.signer, svid?.cert_chain ?? []);
}

async function entriesOf(apis: Apis): Promise<readonly string[]> {
  const [synced] = await collect(apis.entry.SyncAuthorizedEntries(from([{}])));
  const { entries } = await apis.entry.GetAuthorizedEntries({});
  expect(entries.map(({ id }) => id)).toEqual(synced?.entries.map(({ id }) => id));
  return entries.map(({ id }) => id);
}

async function expectServed(who: TestSvid): Promise<void> {
  using apis = server.connect(who.tls);
  expect(await entriesOf(apis)).toEqual([entryId]);
  const { results } = await apis.svid.BatchNewX509SVID({
    params: [{ entry_id: entryId, csr: Buffer.from((await csr()).csr) }],
  });
  expect(results[0]?.status?.code).toBe(0);
}

/** What a SPIRE agent acts on is not there, so that it goes on asking. */
async function expectHeld(work: Promise<unknown>): Promise<void> {
  const fault = await faultFrom(work);
  expect(fault).toMatchObject(refusal("denied", "agent-quarantined"));
  expect(denialReason(fault)).toBeUndefined();
}

describe("a quarantined agent", () => {
  test("is given no entries, no SVID of any kind and no foreign bundle, on the connection that is open", async () => {
    using apis = server.connect(agent.tls);
    expect(await entriesOf(apis)).toEqual([entryId]);
    await quarantine(agent);
    expect(await entriesOf(apis)).toEqual([]);
    const key = (await csr()).csr;
    await expectHeld(apis.svid.BatchNewX509SVID({ params: [{ entry_id: entryId, csr: Buffer.from(key) }] }));
    await expectHeld(apis.svid.NewJWTSVID({ entry_id: entryId, audience: ["a"] }));
    await expectHeld(apis.svid.BatchNewWITSVID({ params: [{ entry_id: entryId }] }));
    await expectHeld(apis.bundle.GetFederatedBundle({ trust_domain: "other.test" }));
    await release(agent);
    await expectServed(agent);
  });

  test("keeps its record: its SVID is renewed, and nothing else is needed after the release", async () => {
    await quarantine(agent);
    using apis = server.connect(agent.tls);
    await apis.agent.PostStatus({ agent_version: "1.2.3" });
    const renewed = await renew(apis);
    using next = server.connect(renewed.tls);
    expect(await entriesOf(next)).toEqual([]);
    expect((await apis.bundle.GetBundle({})).x509_authorities).not.toEqual([]);
    await release(agent);
    await expectServed(renewed);
  });

  test("stays in quarantine when it attests again", async () => {
    const signer = await generateKey("ec-p256");
    const token = await server.createToken();
    using anonymous = server.connect();
    const request = await createCertificateRequest({ signer });
    const attest = async () => {
      const params = {
        data: { type: "join_token", payload: Buffer.from(token) },
        params: { csr: Buffer.from(request) },
      };
      const [answer] = await collect(anonymous.agent.AttestAgent(from([{ params }])));
      return testSvid(signer, answer?.result?.svid?.cert_chain ?? []);
    };
    const first = await attest();
    await server.createEntry({ spiffeId: "spiffe://example.org/again", parentId: first.id });
    await quarantine(first);
    using apis = server.connect((await attest()).tls);
    expect(await entriesOf(apis)).toEqual([]);
    await release(first);
    expect(await entriesOf(apis)).toHaveLength(1);
  });

  test("is told so on the stream of changes, ahead of the entries that go, and again when they come back", async () => {
    using apis = server.connect(agent.tls);
    const answers = apis.push.WatchAuthorizedEntries(open({ held: { revisions: {} } }))[Symbol.asyncIterator]();
    const untilEntries = async (): Promise<string[]> => {
      const seen: string[] = [];
      for (;;) {
        const { event, quarantine: told, entries } = (await answers.next()).value ?? {};
        seen.push(event === "quarantine" ? `quarantined ${told?.quarantined}` : String(event));
        if (event === "entries") return [...seen, `${entries?.changed.length}/${entries?.removed.length}`];
      }
    };
    expect(await untilEntries()).toEqual(["bundles", "entries", "1/0"]);
    await quarantine(agent);
    expect(await untilEntries()).toEqual(["quarantined true", "entries", "0/1"]);
    await release(agent);
    expect(await untilEntries()).toEqual(["quarantined false", "entries", "1/0"]);
  });

  test("that comes back is told so before anything about entries, which it would take for a release", async () => {
    await quarantine(agent);
    using apis = server.connect(agent.tls);
    const answers = apis.push.WatchAuthorizedEntries(open({ held: { digest: Buffer.alloc(32) } }));
    const first = (await answers[Symbol.asyncIterator]().next()).value;
    expect([first?.event, first?.quarantine?.quarantined]).toEqual(["quarantine", true]);
  });

  test("is listed with the time and the reason, and banned or evicted as any other", async () => {
    const before = Math.floor(Date.now() / 1000);
    const { agent: answered } = await quarantine(agent, "found on two machines");
    expect(Number(answered?.since)).toBeGreaterThanOrEqual(before);
    const listed = async () => (await server.admin.quarantine.ListQuarantinedAgents({})).agents;
    expect(await listed()).toContainEqual(answered);
    expect(answered).toMatchObject({ id: idOf(agent), reason: "found on two machines" });
    await quarantine(agent, "and on a third");
    expect(await listed()).toContainEqual({ ...answered, reason: "and on a third" });
    await server.admin.agent.BanAgent({ id: idOf(agent) });
    using apis = server.connect(agent.tls);
    expect(denialReason(await faultFrom(apis.entry.GetAuthorizedEntries({})))).toBe("banned");
    expect(await faultFrom(quarantine(agent))).toMatchObject(refusal("precondition", "agent-banned"));
    await server.admin.agent.DeleteAgent({ id: idOf(agent) });
    expect((await listed()).map(({ id }) => id)).not.toContainEqual(idOf(agent));
    expect(denialReason(await faultFrom(apis.entry.GetAuthorizedEntries({})))).toBe("not_attested");
  });

  test("what nobody can be quarantined for, or released from, is refused with a code", async () => {
    const nobody = { ...agent, id: "spiffe://example.org/spire/agent/nobody" };
    expect(await faultFrom(quarantine(nobody))).toMatchObject({ kind: "not_found", message: "agent not found" });
    expect(await faultFrom(release(nobody))).toMatchObject({ kind: "not_found", message: "agent not found" });
    expect(await faultFrom(release(agent))).toMatchObject(refusal("precondition", "agent-not-quarantined"));
    expect(await faultFrom(quarantine({ ...agent, id: "spiffe://example.org/w" }))).toMatchObject({ kind: "invalid" });
    expect(await faultFrom(quarantine(agent, "x".repeat(1025)))).toMatchObject({ kind: "invalid" });
    expect(await faultFrom(quarantine(agent, "\u001b[2J"))).toMatchObject({ kind: "invalid" });
    await quarantine(agent, "x".repeat(1024));
    expect(await faultFrom(release(agent, "123"))).toMatchObject(refusal("precondition", "agent-serial-unknown"));
    using apis = server.connect(agent.tls);
    expect(await entriesOf(apis)).toEqual([]);
  });

  test("is in the log", async () => {
    await quarantine(agent, "why not");
    await server.untilLogged("Agent quarantined", { spiffe_id: agent.id, reason: "why not" });
    await release(agent);
    await server.untilLogged("Agent released from quarantine", { spiffe_id: agent.id });
  });
});

/** A stream that stays open after the request. */
async function* open<T>(request: T): AsyncGenerator<T, void, undefined> {
  yield request;
  await new Promise(() => {});
}

describe.skipIf(withoutPostgres)("a quarantine with several servers", () => {
  test("holds at every one at once, and after a restart", async () => {
    await using database = await createDatabase();
    await using first = await startServer({ store: { url: database.url } });
    await using second = await startServer({ store: { url: database.url } });
    using anonymous = second.connect();
    const member = await attestWithToken(anonymous, await first.createToken());
    await first.createEntry({ spiffeId: "spiffe://example.org/w", parentId: member.id });
    using apis = second.connect(member.tls);
    const answers = apis.push.WatchAuthorizedEntries(open({ held: { revisions: {} } }));
    const stream = answers[Symbol.asyncIterator]();
    const until = async (test: (answer: { readonly event?: string; readonly removed: number }) => boolean) => {
      for (;;) {
        const { value } = await stream.next();
        const { event, entries } = value ?? {};
        if (test({ ...(event && { event }), removed: entries?.removed.length ?? 0 })) return;
      }
    };
    await until(({ event }) => event === "entries");
    await first.admin.quarantine.QuarantineAgent({ id: idOf(member), reason: "" });
    await until(({ removed }) => removed === 1);
    const { folder } = first;
    await first.stop();
    await using again = await startServer({ store: { url: database.url }, folder });
    using there = again.connect(member.tls);
    expect((await there.entry.GetAuthorizedEntries({})).entries).toEqual([]);
    await second.admin.quarantine.ReleaseAgent({ id: idOf(member) });
    await until(({ event }) => event === "entries");
  });
});
