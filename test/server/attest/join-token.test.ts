import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { NodeAttestation } from "../../../server/attest/attest.ts";
import type { AttestationContext, NodeAttestor, NodeClaim } from "../../../server/attest/attestor.ts";
import { JoinTokenAttestor, joinTokenAgentId } from "../../../server/attest/join-token.ts";
import { openStore } from "../../../server/store/database.ts";
import type { AttestedNode, JoinToken, Store } from "../../../server/store/store.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { isSpiffeId, parseSpiffeId, type SpiffeId } from "../../../src/spiffe/id.ts";
import { parseSelector } from "../../../src/spiffe/selector.ts";
import { faultFrom } from "../../support/faults.ts";
import { createDatabase, withoutPostgres } from "../../support/postgres.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { id, ManualClock, openTestStore, START, TD, type TestStore } from "../ca/support.ts";
import { makeNode } from "../directory/support.ts";

let opened: TestStore;
let store: Store;
let clock: ManualClock;
let attestor: JoinTokenAttestor;

beforeAll(async () => {
  opened = await openTestStore();
  store = opened.store;
});
afterAll(() => opened[Symbol.asyncDispose]());

beforeEach(() => {
  clock = new ManualClock();
  attestor = new JoinTokenAttestor({ trustDomain: TD, tokens: store.tokens, clock });
});

const GONE = "failed to attest: join token does not exist or has already been used";
const context: AttestationContext = { signal: new AbortController().signal, keyHash: "k" };
let keys = 0;

/** With a key of its own, unless one is named. */
function show(to: JoinTokenAttestor, payload: string | Buffer, keyHash = `key ${keys++}`): Promise<NodeClaim> {
  return to.attest(Buffer.from(payload), noChallenge, { ...context, keyHash });
}
const noChallenge = (): Promise<Uint8Array> => Promise.reject(new Error("join tokens need no challenge"));

function makeToken(token: string, seconds = 600): Promise<void> {
  return store.tokens.create({ token, expiresAt: new Date(START.getTime() + seconds * 1000) });
}

describe("a join token", () => {
  test("attests the agent whose ID holds it, and no other key can attest by it", async () => {
    await makeToken("tok-1");
    const claim = await show(attestor, "tok-1");
    expect(claim).toEqual({
      id: "spiffe://example.org/spire/agent/join_token/tok-1",
      selectors: [],
      canReattest: false,
    });
    const fault = await faultFrom(show(attestor, "tok-1"));
    expect([fault.kind, fault.message, fault.code]).toEqual(["invalid", GONE, "join-token-used"]);
  });

  test("that a key has used lets that key finish while it lasts, and another one never", async () => {
    await makeToken("tok-3", 60);
    const first = await show(attestor, "tok-3", "mine");
    expect(await show(attestor, "tok-3", "mine")).toEqual(first);
    expect(await faultFrom(show(attestor, "tok-3", "theirs"))).toMatchObject({ kind: "invalid", message: GONE });
    clock.move(61);
    expect(await faultFrom(show(attestor, "tok-3", "mine"))).toMatchObject({ message: "join token expired" });
  });

  test("that was never made is refused in the same words", async () => {
    expect(await faultFrom(show(attestor, "never"))).toMatchObject({ kind: "invalid", message: GONE });
  });

  test("that has expired says so, and is used up by the try", async () => {
    await makeToken("brief", 60);
    clock.move(61);
    expect(await faultFrom(show(attestor, "brief"))).toMatchObject({
      kind: "invalid",
      message: "join token expired",
      code: "join-token-expired",
    });
    expect(await faultFrom(show(attestor, "brief"))).toMatchObject({ message: GONE });
  });

  test("works up to its last moment", async () => {
    await makeToken("last", 60);
    clock.move(60);
    expect((await show(attestor, "last")).id).toContain("/last");
  });

  test("T-N3 works once for 1,000 that use it at the same time", async () => {
    await makeToken("one-for-all");
    const tries = await Promise.allSettled(Array.from({ length: 1000 }, () => show(attestor, "one-for-all")));
    expect(tries.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    const refused = tries.flatMap((attempt) =>
      attempt.status === "rejected" ? [Fault.from(attempt.reason).message] : [],
    );
    expect(new Set(refused)).toEqual(new Set([GONE]));
  });
});

describe.skipIf(withoutPostgres)("several servers on one PostgreSQL", () => {
  test("T-N3 of 1,000 uses of one token across 3 servers exactly one succeeds, 5 times over", async () => {
    await using database = await createDatabase();
    await using servers = new AsyncDisposableStack();
    const config = { kind: "postgres", connectionString: database.url, disableMigration: false } as const;
    const options = { log: new RecordingLog(), clock: systemClock };
    const stores: Store[] = [];
    for (let n = 0; n < 3; n += 1) stores.push(servers.use(await openStore(config, options)));
    const attestors = stores.map(({ tokens }) => new JoinTokenAttestor({ trustDomain: TD, tokens, clock }));
    for (let round = 0; round < 5; round += 1) {
      const token = `shared-${round}`;
      await stores[0]?.tokens.create({ token, expiresAt: new Date(START.getTime() + 60_000) });
      const tries = Array.from({ length: 1000 }, (_, n) => show(attestors[n % 3] as JoinTokenAttestor, token));
      const ended = await Promise.allSettled(tries);
      const claims = ended.flatMap((attempt) => (attempt.status === "fulfilled" ? [attempt.value.id] : []));
      expect(claims).toEqual([id(`/spire/agent/join_token/${token}`)]);
      const refused = ended.flatMap((attempt) =>
        attempt.status === "rejected" ? [Fault.from(attempt.reason).message] : [],
      );
      expect([refused.length, ...new Set(refused)]).toEqual([999, GONE]);
    }
  });
});

describe("T-S3 what the client sends only finds the record", () => {
  test("the ID is built from the stored token, and a record of another name is no record", async () => {
    const stored: JoinToken = { token: "Real", expiresAt: new Date(START.getTime() + 60_000) };
    const sloppy = new JoinTokenAttestor({ trustDomain: TD, tokens: { consume: async () => stored }, clock });
    expect((await show(sloppy, "Real")).id).toBe("spiffe://example.org/spire/agent/join_token/Real");
    expect(await faultFrom(show(sloppy, "real"))).toMatchObject({ message: GONE });
  });

  test.each([
    { title: "other letter case", sent: "TOK-2" },
    { title: "a trailing space", sent: "tok-2 " },
    { title: "a trailing newline", sent: "tok-2\n" },
    { title: "a NUL", sent: "tok-2\0" },
    { title: "more behind it", sent: "tok-2x" },
    { title: "a look-alike letter", sent: "tоk-2" },
    { title: "path elements around it", sent: "./tok-2" },
    { title: "a percent sign", sent: "tok%2d2" },
    { title: "nothing", sent: "" },
  ])("$title does not find the token", async ({ sent }) => {
    await store.tokens.prune(new Date(8e15));
    await makeToken("tok-2");
    expect(await faultFrom(show(attestor, sent))).toMatchObject({ kind: "invalid", message: GONE });
    expect((await show(attestor, "tok-2")).id).toBe(id("/spire/agent/join_token/tok-2"));
  });

  test("bytes that cannot be a token are never looked up", async () => {
    const looked: string[] = [];
    const spying = new JoinTokenAttestor({
      trustDomain: TD,
      clock,
      tokens: { consume: async (token) => void looked.push(token) as undefined },
    });
    const hostile = ["..", ".", "a/b", "a\0", "ä", " ", "a".repeat(256), "'; drop table join_tokens; --"];
    for (const payload of [...hostile.map((text) => Buffer.from(text)), Buffer.alloc(4 * 1024 * 1024, "a")]) {
      expect(await faultFrom(show(spying, payload))).toMatchObject({ kind: "invalid", message: GONE });
    }
    expect(looked).toEqual([]);
    await faultFrom(show(spying, "a".repeat(255)));
    expect(looked).toEqual(["a".repeat(255)]);
  });

  test("whatever the bytes, an ID that comes out is a SPIFFE ID that ends with exactly the token", async () => {
    await fc.assert(
      fc.asyncProperty(fc.oneof(fc.string(), fc.stringMatching(/^[A-Za-z0-9._-]{1,40}$/)), async (text) => {
        const any = new JoinTokenAttestor({
          trustDomain: TD,
          clock,
          tokens: { consume: async (token) => ({ token, expiresAt: START }) },
        });
        const claim = await show(any, text).catch((error: unknown) => Fault.from(error));
        if (claim instanceof Fault) expect(claim.message).toBe(GONE);
        else
          expect([isSpiffeId(claim.id), claim.id]).toEqual([
            true,
            `spiffe://example.org/spire/agent/join_token/${text}`,
          ]);
      }),
    );
  });
});

test.each([".", "..", "", "a/b", "a b", "ä", "a".repeat(256)])("no agent ID is made from the token %j", (token) => {
  expect(() => joinTokenAgentId(TD, token)).toThrow(Fault);
});

describe("node attestation", () => {
  const nodes = new Map<SpiffeId, AttestedNode>();
  const attestation = (extra: readonly NodeAttestor[] = []): NodeAttestation =>
    new NodeAttestation({
      ...{ trustDomain: TD, attestors: [attestor, ...extra], node: (agent) => nodes.get(agent) },
      withdraw: async ({ id }) => nodes.delete(id),
    });
  const evidence = (type: string, payload: string) => ({
    type,
    payload: Buffer.from(payload),
    challenge: noChallenge,
    context,
  });
  const claiming = (claim: NodeClaim): NodeAttestor => ({ type: "x509pop", attest: async () => claim });
  const AGENT = id("/spire/agent/x509pop/1");

  test("finds the attestor by its type", async () => {
    await makeToken("tok-3");
    expect((await attestation().attest(evidence("join_token", "tok-3"))).id).toBe(id("/spire/agent/join_token/tok-3"));
  });

  test("an attestor that is not configured is a failed precondition that names it", async () => {
    expect(await faultFrom(attestation().attest(evidence("tpm_devid", "x")))).toMatchObject({
      kind: "precondition",
      message: 'error getting node attestor: could not find node attestor type "tpm_devid"',
    });
    const long = await faultFrom(attestation().attest(evidence(`"\n${"x".repeat(1_000_000)}`, "x")));
    expect([long.kind, long.message.length < 200, long.message.includes("\n")]).toEqual(["precondition", true, false]);
  });

  test("a join token's messages stand as they are, other attestors are named", async () => {
    expect((await faultFrom(attestation().attest(evidence("join_token", "none")))).message).toBe(GONE);
    const failing: NodeAttestor = {
      type: "x509pop",
      attest: async () => {
        throw new Fault("denied", "certificate verification failed", { code: "x509pop-chain" });
      },
    };
    expect(await faultFrom(attestation([failing]).attest(evidence("x509pop", "x")))).toMatchObject({
      kind: "denied",
      code: "x509pop-chain",
      message: "nodeattestor(x509pop): certificate verification failed",
    });
  });

  test("a banned agent is refused after its evidence held", async () => {
    const found = attestation([claiming({ id: AGENT, selectors: [], canReattest: true })]);
    nodes.set(AGENT, makeNode({ id: AGENT }));
    expect((await found.attest(evidence("x509pop", "x"))).canReattest).toBe(true);
    nodes.set(AGENT, makeNode({ id: AGENT, serialNumber: "" }));
    expect(await faultFrom(found.attest(evidence("x509pop", "x")))).toMatchObject({
      kind: "denied",
      message: "failed to attest: agent is banned",
      details: [],
    });
    nodes.clear();
  });

  test("selectors come out as a set", async () => {
    const selectors = ["b:2", "a:1", "b:2"].map(parseSelector);
    const claim = await attestation([claiming({ id: AGENT, selectors, canReattest: true })]).attest(
      evidence("x509pop", "x"),
    );
    expect(claim.selectors).toEqual([parseSelector("a:1"), parseSelector("b:2")]);
  });

  test.each([
    { what: "the server's ID", text: "spiffe://example.org/spire/server", says: "collide with the server ID" },
    {
      what: "another attestor's namespace",
      text: "spiffe://example.org/spire/agent/join_token/x",
      says: "not in the agent namespace",
    },
    { what: "a workload's ID", text: "spiffe://example.org/web", says: "not in the agent namespace" },
    {
      what: "another trust domain",
      text: "spiffe://partner.test/spire/agent/x509pop/1",
      says: "not a member of trust domain",
    },
  ])("T-S10 an attestor that claims $what is our own fault, and nothing is signed", async ({ text, says }) => {
    const claim = { id: parseSpiffeId(text), selectors: [], canReattest: true };
    const fault = await faultFrom(attestation([claiming(claim)]).attest(evidence("x509pop", "x")));
    expect([fault.kind, fault.message]).toEqual(["internal", expect.stringContaining(says)]);
  });
});
