import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { agentRules } from "../../../server/api/access.ts";
import type { Authorization } from "../../../server/api/admission.ts";
import { attestAgent } from "../../../server/api/attest-agent.ts";
import { served } from "../../../server/api/routes.ts";
import { NodeAttestation } from "../../../server/attest/attest.ts";
import type { NodeAttestor, NodeClaim } from "../../../server/attest/attestor.ts";
import { createCertificateRequest } from "../../../src/crypto/csr.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import { type Channel, dialUnix } from "../../../src/rpc/dial.ts";
import type { AttestAgentRequest } from "../../../src/rpc/gen/spire/api/server/agent/v1/AttestAgentRequest.ts";
import { AgentApi } from "../../../src/rpc/protos.ts";
import { RpcServer } from "../../../src/rpc/serve.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { SpiffeId } from "../../../src/spiffe/id.ts";
import { parseSelector } from "../../../src/spiffe/selector.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { collect, from } from "../../support/server.ts";
import { id, makeAuthority, makeIssuer, openTestStore, TD, type TestStore } from "../ca/support.ts";

type Attest = NodeAttestor["attest"];

let store: TestStore;
let csr: Uint8Array;
beforeAll(async () => {
  store = await openTestStore();
  csr = await createCertificateRequest({ signer: await generateKey("ec-p256") });
});
afterAll(() => store[Symbol.asyncDispose]());

interface Harness extends AsyncDisposable {
  readonly channel: Channel;
  readonly clock: FakeClock;
  readonly log: RecordingLog;
}

/** The handler behind a real socket, with an attestor that asks what the test wants asked. */
async function serve(attest: Attest): Promise<Harness> {
  await using scope = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), "steeple-attest-"));
  scope.defer(() => rm(folder, { recursive: true, force: true }));
  const clock = new FakeClock();
  const log = new RecordingLog();
  const { nodes } = store.store;
  const attestation = new NodeAttestation({
    trustDomain: TD,
    attestors: [{ type: "riddle", attest }],
    node: () => undefined,
    withdraw: async () => {},
  });
  const issuer = makeIssuer(await makeAuthority({ now: clock.now() }), clock);
  const handler = attestAgent({ nodes, attestation, issuer, caughtUp: async () => {}, clock });
  const { implementation } = served(AgentApi, agentRules, { AttestAgent: handler });
  const admit = async ({ log }: { readonly log: RecordingLog }): Promise<Authorization> => ({
    as: "nobody",
    via: "",
    log,
    turn: { caller: "stranger", signal: new AbortController().signal },
    charge: async () => {},
    again: async () => {},
    note: () => {},
    audit: () => {},
  });
  const rpc = scope.use(
    new RpcServer<Authorization>({ services: [implementation], admit: admit as never, log, clock: systemClock }),
  );
  const path = join(folder, "api.sock");
  await rpc.listenUnix({ path, mode: 0o700 });
  const channel = scope.use(dialUnix(path));
  const resources = scope.move();
  return { channel, clock, log, [Symbol.asyncDispose]: () => resources.disposeAsync() };
}

function claim(name: string, more: Partial<NodeClaim> = {}): NodeClaim {
  return { id: id(`/spire/agent/riddle/${name}`), selectors: [], canReattest: true, ...more };
}

function first(payload = "hello"): AttestAgentRequest {
  return { params: { data: { type: "riddle", payload: Buffer.from(payload) }, params: { csr } } };
}

/** An agent that answers each challenge with `answer`, and gives all that it was sent. */
async function converse(channel: Channel, answer: (challenge: Buffer) => string) {
  const challenges = new EventQueue<Buffer | undefined>();
  async function* requests(): AsyncGenerator<AttestAgentRequest> {
    yield first();
    for (let next = await challenges.next(); next !== undefined; next = await challenges.next())
      yield { challenge_response: Buffer.from(answer(next)) };
  }
  const seen: string[] = [];
  for await (const response of channel.client(AgentApi).AttestAgent(requests())) {
    if (response.challenge !== undefined && response.step === "challenge") {
      seen.push(`challenge ${response.challenge.toString()}`);
      challenges.push(response.challenge);
    } else {
      seen.push(`result ${response.result?.svid?.id?.path} ${response.result?.reattestable}`);
      challenges.push(undefined);
    }
  }
  return seen;
}

class EventQueue<T> {
  readonly #items: T[] = [];
  #wake: (() => void) | undefined;

  push(item: T): void {
    this.#items.push(item);
    this.#wake?.();
  }

  async next(): Promise<T> {
    while (this.#items.length === 0) await new Promise<void>((wake) => (this.#wake = wake));
    return this.#items.shift() as T;
  }
}

describe("AttestAgent with challenges", () => {
  test("relays each challenge and its response, then the result; the node is stored with its selectors, once each", async () => {
    const answers: string[] = [];
    await using harness = await serve(async (payload, challenge) => {
      answers.push(Buffer.from(payload).toString());
      for (const question of ["one", "two", "three"])
        answers.push(Buffer.from(await challenge(Buffer.from(question))).toString());
      return claim("three", { selectors: ["t:b", "t:a", "t:b"].map(parseSelector) });
    });
    const seen = await converse(harness.channel, (challenge) => `<${challenge}>`);
    expect(seen).toEqual([
      "challenge one",
      "challenge two",
      "challenge three",
      "result /spire/agent/riddle/three true",
    ]);
    expect(answers).toEqual(["hello", "<one>", "<two>", "<three>"]);
    expect(await store.store.nodes.find(id("/spire/agent/riddle/three"))).toMatchObject({
      attestationType: "riddle",
      canReattest: true,
      selectors: [parseSelector("t:a"), parseSelector("t:b")],
    });
  });

  test("attesting again replaces the serial at once and keeps the agent's version", async () => {
    await using harness = await serve(async () => claim("again"));
    const attestOnce = async (): Promise<string> => {
      await collect(harness.channel.client(AgentApi).AttestAgent(from([first()])));
      return (await store.store.nodes.find(id("/spire/agent/riddle/again")))?.serialNumber ?? "";
    };
    const serial = await attestOnce();
    await store.store.nodes.setAgentVersion(id("/spire/agent/riddle/again"), "1.0");
    await store.store.nodes.renew(id("/spire/agent/riddle/again"), {
      currentSerial: serial,
      serialNumber: "77",
      expiresAt: new Date(4e12),
    });
    expect(await attestOnce()).not.toBe(serial);
    expect(await store.store.nodes.find(id("/spire/agent/riddle/again"))).toMatchObject({
      newSerialNumber: "",
      newExpiresAt: undefined,
      agentVersion: "1.0",
    });
  });

  test.each([
    {
      what: "a refusal",
      thrown: new Fault("denied", "wrong answer"),
      kind: "denied",
      message: "nodeattestor(riddle): wrong answer",
    },
    {
      what: "a malformed payload",
      thrown: new Fault("invalid", "no riddle"),
      kind: "invalid",
      message: "nodeattestor(riddle): no riddle",
    },
    {
      what: "a failure that nobody foresaw",
      thrown: new TypeError("x is undefined"),
      kind: "internal",
      message: "nodeattestor(riddle): x is undefined",
    },
  ])("the attestor's words for $what reach the agent, and nothing is stored", async ({ thrown, kind, message }) => {
    const before = await store.store.nodes.count({});
    await using harness = await serve(async () => {
      throw thrown;
    });
    const fault = await faultFrom(collect(harness.channel.client(AgentApi).AttestAgent(from([first()]))));
    expect(fault.kind).toBe(kind);
    if (kind !== "internal") expect(fault.message).toBe(message);
    else expect(fault.message).not.toContain("undefined");
    expect(await store.store.nodes.count({})).toBe(before);
  });

  test.each([
    { what: "the server's own ID", made: id("/spire/server"), message: "agent ID cannot collide with the server ID" },
    {
      what: "a workload's ID",
      made: id("/web"),
      message: 'invalid agent ID: "spiffe://example.org/web" is not in the agent namespace for attestor "riddle"',
    },
    {
      what: "another attestor's namespace",
      made: id("/spire/agent/x509pop/x"),
      message: /not in the agent namespace for attestor "riddle"$/,
    },
    {
      what: "another trust domain",
      made: "spiffe://other.test/spire/agent/riddle/x" as SpiffeId,
      message: /is not a member of trust domain "example.org"$/,
    },
  ])("T-S10 an attestor cannot hand out $what", async ({ made, message }) => {
    await using harness = await serve(async () => claim("x", { id: made }));
    const fault = await faultFrom(collect(harness.channel.client(AgentApi).AttestAgent(from([first()]))));
    expect(fault).toMatchObject({
      kind: "internal",
      message: typeof message === "string" ? message : expect.stringMatching(message),
    });
  });

  test("an agent that leaves while it is being asked frees the attestor that waits for it", async () => {
    const outcome = Promise.withResolvers<unknown>();
    await using harness = await serve(async (_, challenge) => {
      await challenge(Buffer.from("are you there?")).catch((error: unknown) => {
        outcome.resolve(error);
        throw error;
      });
      return claim("gone");
    });
    for await (const { challenge } of harness.channel.client(AgentApi).AttestAgent(from([first()])))
      if (challenge !== undefined) break;
    expect(await outcome.promise).toBeInstanceOf(Error);
    expect(await store.store.nodes.find(id("/spire/agent/riddle/gone"))).toBeUndefined();
  });

  test("a conversation of more than a minute is ended", async () => {
    await using harness = await serve(() => new Promise(() => {}));
    const ended = faultFrom(collect(harness.channel.client(AgentApi).AttestAgent(from([first()]))));
    await eventually("the deadline runs", () => harness.clock.sleeping > 0);
    await harness.clock.advance(60_000);
    expect(await ended).toMatchObject({ kind: "timeout", message: "attestation took too long" });
  });

  test("an empty challenge, which an agent takes for the result, is never sent", async () => {
    await using harness = await serve(async (_, challenge) => {
      await challenge(new Uint8Array());
      return claim("empty");
    });
    expect(await faultFrom(collect(harness.channel.client(AgentApi).AttestAgent(from([first()]))))).toMatchObject({
      kind: "internal",
    });
  });
});
