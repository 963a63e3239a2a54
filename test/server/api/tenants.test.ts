import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { faultFrom } from "../../support/faults.ts";
import {
  type Apis,
  collect,
  from,
  protoId,
  startServer,
  type TestServer,
  type TestSvid,
} from "../../support/server.ts";

const UNKNOWN = "00000000-0000-4000-8000-000000000000";

let server: TestServer;
let own: TestSvid;
let other: TestSvid;
let apis: Apis;
let theirs = "";
let csr: Buffer;
beforeAll(async () => {
  server = await startServer();
  own = await server.attest();
  other = await server.attest();
  theirs = (await server.createEntry({ spiffeId: "spiffe://example.org/theirs", parentId: other.id })).id;
  apis = server.connect(own.tls);
  csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
});
afterAll(async () => {
  apis?.[Symbol.dispose]();
  await server?.[Symbol.asyncDispose]();
});

describe("T-C7 an agent that guesses another's entry learns nothing, not even that it is there", () => {
  test.each([
    [
      "BatchNewX509SVID",
      async (entry_id: string) =>
        (await apis.svid.BatchNewX509SVID({ params: [{ entry_id, csr }] })).results[0]?.status,
    ],
    [
      "NewJWTSVID",
      async (entry_id: string) => {
        const { kind, message } = await faultFrom(apis.svid.NewJWTSVID({ entry_id, audience: ["a"] }));
        return { kind, message };
      },
    ],
    [
      "SyncAuthorizedEntries",
      async (id: string) => collect(apis.entry.SyncAuthorizedEntries(from([{ output_mask: null }, { ids: [id] }]))),
    ],
    ["GetEntry", async (id: string) => (await faultFrom(apis.entry.GetEntry({ id }))).message],
    [
      "BatchUpdateEntry",
      async (id: string) => (await faultFrom(apis.entry.BatchUpdateEntry({ entries: [{ id, admin: true }] }))).message,
    ],
    ["BatchDeleteEntry", async (id: string) => (await faultFrom(apis.entry.BatchDeleteEntry({ ids: [id] }))).message],
  ] satisfies [string, (id: string) => Promise<unknown>][])("%s", async (_, ask) => {
    expect(await ask(theirs)).toEqual(await ask(UNKNOWN));
    expect(JSON.stringify(await ask(theirs))).not.toContain("theirs");
  });

  test("nor another agent", async () => {
    const unknown = "spiffe://example.org/spire/agent/join_token/none";
    for (const method of ["GetAgent", "DeleteAgent", "BanAgent"] as const) {
      const ask = async (id: string) => (await faultFrom(apis.agent[method]({ id: protoId(id) }))).message;
      expect(await ask(other.id)).toBe(await ask(unknown));
    }
    expect((await server.admin.agent.GetAgent({ id: protoId(other.id) })).banned).toBe(false);
  });

  test("and its own entries are there for it, as the others' are for them", async () => {
    using their = server.connect(other.tls);
    const { results } = await their.svid.BatchNewX509SVID({ params: [{ entry_id: theirs, csr }] });
    expect(results[0]?.status?.code).toBe(0);
    expect((await apis.entry.GetAuthorizedEntries({})).entries).toEqual([]);
  });
});

describe("T-C9 what brings a node back is for those who may, and not as often as one likes", () => {
  const agentId = () => protoId(own.id);

  test.each<[string, (apis: Apis) => Promise<unknown>]>([
    ["CreateJoinToken", ({ agent }) => agent.CreateJoinToken({ ttl: 60 })],
    ["DeleteAgent", ({ agent }) => agent.DeleteAgent({ id: agentId() })],
    ["BanAgent", ({ agent }) => agent.BanAgent({ id: agentId() })],
    ["AppendBundle", ({ bundle }) => bundle.AppendBundle({})],
    ["BatchSetFederatedBundle", ({ bundle }) => bundle.BatchSetFederatedBundle({})],
    ["MintX509SVID", ({ svid }) => svid.MintX509SVID({ csr })],
  ])("%s: neither a stranger nor an agent", async (_, call) => {
    using stranger = server.connect();
    for (const caller of [stranger, apis]) expect(await faultFrom(call(caller))).toMatchObject({ kind: "denied" });
  });

  test("RenewAgent: no stranger", async () => {
    using stranger = server.connect();
    expect(await faultFrom(stranger.agent.RenewAgent({ params: { csr } }))).toMatchObject({ kind: "denied" });
  });

  test("AttestAgent: one in a second from one address, and not more than a minute of them waits", async () => {
    await using strict = await startServer({ server: { ratelimit: { attestation: true } } });
    using scope = new DisposableStack();
    // Without a certificate a connection has few calls at a time.
    const strangers = Array.from({ length: 7 }, () => scope.use(strict.connect()));
    const leave = new AbortController();
    const guess = (index: number): Promise<string> => {
      const stranger = strangers[index % strangers.length] as Apis;
      const params = { data: { type: "join_token", payload: Buffer.from(`guess-${index}`) }, params: { csr } };
      const answers = stranger.agent.AttestAgent(from([{ params }]), { signal: leave.signal });
      return collect(answers).then(
        () => "attested",
        (error: { readonly kind?: string; readonly message: string }) => error.kind ?? error.message,
      );
    };
    const guesses = Array.from({ length: 70 }, (_, index) => guess(index));
    expect(await Promise.any(guesses.map(async (answer) => (await answer) === "exhausted" || Promise.reject()))).toBe(
      true,
    );
    leave.abort();
    expect((await Promise.all(guesses)).filter((answer) => answer === "attested")).toEqual([]);
  });
});
