import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { fetchX509Bundles, fetchX509Svid, watchX509Bundles, watchX509Svids } from "../../../src/client/workload-api.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { type Fault, isFault } from "../../../src/runtime/fault.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { FakeAgent, hold, refuse, type Step } from "../../support/fake-agent.ts";
import { makeWorld, svidMessage, type World } from "./fixtures.ts";
import { gaps, pass } from "./retries.ts";

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});

const open: FakeAgent[] = [];
afterAll(async () => {
  for (const agent of open) await agent[Symbol.asyncDispose]();
});

/** A watch under way, with everything it told. */
class Watching implements AsyncDisposable {
  readonly updates: unknown[] = [];
  readonly errors: Fault[] = [];
  ended: { readonly error: unknown } | undefined;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  constructor(agent: FakeAgent, clock: FakeClock | typeof systemClock, metadata: Record<string, string> = {}) {
    const onError = (fault: Fault): void => void this.errors.push(fault);
    const options = { socket: agent.socket, clock, signal: this.#stop.signal, onError, metadata };
    this.#running = this.#follow(watchX509Svids(options));
  }

  async #follow(watch: AsyncIterable<unknown>): Promise<void> {
    try {
      for await (const update of watch) this.updates.push(update);
      this.ended = { error: undefined };
    } catch (error) {
      this.ended = { error };
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }
}

describe("what a client sends", () => {
  test("WEP-04 WEP-07 every call, and every retry, has the security header once, beside the caller's own metadata", async () => {
    const clock = new FakeClock();
    await using agent = await FakeAgent.start(clock, refuse(14), refuse(7), hold(svidMessage(world)));
    await using watching = new Watching(agent, clock, { "x-mine": "kept", "workload.spiffe.io": "False" });
    await pass(clock, () => watching.updates.length === 1);
    expect(agent.calls.map(({ method }) => method)).toEqual(Array(3).fill("/SpiffeWorkloadAPI/FetchX509SVID"));
    expect(agent.calls.map(({ headers }) => headers["workload.spiffe.io"])).toEqual(["true", "true", "true"]);
    expect(agent.calls.map(({ headers }) => headers["x-mine"])).toEqual(["kept", "kept", "kept"]);
  });

  test("WEP-07 WAPI-05 single fetches of both X.509 methods have it too", async () => {
    await using agent = await FakeAgent.start(
      systemClock,
      hold(svidMessage(world)),
      hold({ bundles: { "spiffe://example.org": world.rootA.der } }),
    );
    const { svids } = await fetchX509Svid({ socket: agent.socket });
    const { bundles } = await fetchX509Bundles({ socket: agent.socket });
    expect(svids[0].id).toBe("spiffe://example.org/web");
    expect([...bundles.keys()]).toEqual(["example.org"]);
    expect(agent.calls.map(({ method }) => method)).toEqual([
      "/SpiffeWorkloadAPI/FetchX509SVID",
      "/SpiffeWorkloadAPI/FetchX509Bundles",
    ]);
    for (const { headers } of agent.calls) expect(headers["workload.spiffe.io"]).toBe("true");
  });
});

describe("answers after which asking again is of no use", () => {
  test.each([
    { id: "WEP-22", what: "InvalidArgument", code: 3, kind: "invalid" },
    { id: "WEP-27", what: "Unimplemented", code: 12, kind: "unimplemented" },
  ] as const)("$id $what ends the watch after one call", async ({ code, kind }) => {
    const clock = new FakeClock();
    await using agent = await FakeAgent.start(clock, refuse(code, "no"), hold(svidMessage(world)));
    await using watching = new Watching(agent, clock);
    await eventually("the watch ends", () => watching.ended);
    await clock.advance(3_600_000);
    expect(isFault(watching.ended?.error, kind)).toBe(true);
    expect(agent.calls).toHaveLength(1);
    expect(watching.updates).toHaveLength(0);
  });

  test("WEP-12 a wrong address fails before anything is tried", () => {
    const watch = () => watchX509Bundles({ socket: "/a.sock", signal: new AbortController().signal });
    expect(watch).toThrow(expect.objectContaining({ kind: "invalid", code: "endpoint-address-scheme" }));
  });
});

describe("answers after which the client asks again", () => {
  test.each([
    { id: "WEP-24", what: "Unavailable", code: 14, kind: "unavailable" },
    { id: "WEP-26 WAPI-30", what: "PermissionDenied", code: 7, kind: "denied" },
    { id: "WAPI-08", what: "Internal", code: 13, kind: "internal" },
  ] as const)("$id $what: with growing gaps up to 30 s, until it recovers", async ({ code, kind }) => {
    const clock = new FakeClock();
    await using agent = await FakeAgent.start(clock, ...Array<Step>(7).fill(refuse(code)), hold(svidMessage(world)));
    await using watching = new Watching(agent, clock);
    await pass(clock, () => watching.updates.length === 1);
    expect(gaps(agent)).toEqual([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    expect(watching.errors.map((fault) => fault.kind)).toEqual(Array(7).fill(kind));
  });

  test("WEP-24 gaps vary between clients", async () => {
    const clock = new FakeClock("2026-01-01T00:00:00Z", 0);
    await using agent = await FakeAgent.start(clock, refuse(14), refuse(14), hold(svidMessage(world)));
    await using watching = new Watching(agent, clock);
    await pass(clock, () => watching.updates.length === 1, 100);
    expect(gaps(agent)).toEqual([900, 1_800]);
  });

  test("WEP-24 a socket that does not exist yet", async () => {
    const clock = new FakeClock();
    await using agent = await FakeAgent.absent(clock, hold(svidMessage(world)));
    await using watching = new Watching(agent, clock);
    await pass(clock, () => watching.errors.length === 3);
    expect(watching.errors.map((fault) => fault.kind)).toEqual(["unavailable", "unavailable", "unavailable"]);
    await agent.listen();
    await pass(clock, () => watching.updates.length === 1);
  });

  test("WEP-24 gaps start anew after a message", async () => {
    const clock = new FakeClock();
    const once: Step = (stream) => {
      stream.send(svidMessage(world));
      stream.end(14);
    };
    await using agent = await FakeAgent.start(
      clock,
      refuse(14),
      refuse(14),
      once,
      refuse(14),
      hold(svidMessage(world)),
    );
    await using watching = new Watching(agent, clock);
    await pass(clock, () => watching.updates.length === 2);
    expect(gaps(agent)).toEqual([1_000, 2_000, 0, 1_000]);
  });
});

describe("a stream that had delivered", () => {
  test("WAPI-07 is held open through an idle hour", async () => {
    const clock = new FakeClock();
    await using agent = await FakeAgent.start(clock, hold(svidMessage(world)));
    await using watching = new Watching(agent, clock);
    await eventually("the first message", () => watching.updates.length === 1);
    await clock.advance(3_600_000);
    expect(agent.calls[0]?.stream.isOpen).toBe(true);
    expect(agent.calls).toHaveLength(1);
    agent.calls[0]?.stream.send(svidMessage(world));
    await eventually("the next message", () => watching.updates.length === 2);
  });

  test.each<{ what: string; drop: Step }>([
    { what: "status 0", drop: (stream) => stream.end(0) },
    { what: "Unavailable", drop: (stream) => stream.end(14) },
    { what: "a connection reset", drop: (stream) => stream.dropConnection() },
    {
      what: "GOAWAY and an end",
      drop: (stream) => {
        stream.goaway();
        stream.end(14);
      },
    },
  ])("WAPI-08 that ends with $what is opened again at once, then with back-off", async ({ drop }) => {
    const clock = new FakeClock();
    await using agent = await FakeAgent.start(clock, hold(svidMessage(world)), refuse(14), hold(svidMessage(world)));
    await using watching = new Watching(agent, clock);
    await eventually("the first message", () => watching.updates.length === 1);
    const first = agent.calls[0];
    if (first !== undefined) drop(first.stream);
    await eventually("a call without any time passing", () => agent.calls.length === 2);
    await pass(clock, () => watching.updates.length === 2);
    expect(gaps(agent)).toEqual([0, 1_000]);
  });

  test("WEP-26 WAPI-30 that ends with PermissionDenied is opened again after a delay", async () => {
    const clock = new FakeClock();
    const deny: Step = (stream) => {
      stream.send(svidMessage(world));
      stream.end(7);
    };
    await using agent = await FakeAgent.start(clock, deny, hold(svidMessage(world)));
    await using watching = new Watching(agent, clock);
    await pass(clock, () => watching.updates.length === 2);
    expect(gaps(agent)).toEqual([1_000]);
  });

  test("WAPI-08 that ends again and again is not opened in a tight loop", async () => {
    const clock = new FakeClock();
    const once: Step = (stream) => {
      stream.send(svidMessage(world));
      stream.end(0);
    };
    await using agent = await FakeAgent.start(clock, once);
    await using watching = new Watching(agent, clock);
    await pass(clock, () => watching.updates.length >= 6);
    const span = (agent.calls[5]?.at ?? 0) - (agent.calls[0]?.at ?? 0);
    expect(span).toBeGreaterThanOrEqual(2_000);
  });

  test("is ended by the client's signal, at the agent too", async () => {
    await using agent = await FakeAgent.start(systemClock, hold(svidMessage(world)));
    const watching = new Watching(agent, systemClock);
    await eventually("the first message", () => watching.updates.length === 1);
    await watching[Symbol.asyncDispose]();
    await agent.calls[0]?.stream.closed;
    expect(watching.ended).toEqual({ error: undefined });
  });

  test("is ended at the agent when the reader leaves", async () => {
    await using agent = await FakeAgent.start(systemClock, hold(svidMessage(world)));
    for await (const _ of watchX509Svids({ socket: agent.socket, signal: new AbortController().signal })) break;
    await agent.calls[0]?.stream.closed;
    expect(agent.calls).toHaveLength(1);
  });
});

describe("WAPI-18 a message that cannot be used", () => {
  test("is reported and dropped, and the stream stays", async () => {
    const clock = new FakeClock();
    await using agent = await FakeAgent.start(clock, hold(svidMessage(world), { svids: [] }, svidMessage(world)));
    await using watching = new Watching(agent, clock);
    await eventually("both good messages", () => watching.updates.length === 2);
    expect(watching.errors).toMatchObject([
      { kind: "invalid", code: "unusable-answer", message: /no SVIDs in response/ },
    ]);
    expect(agent.calls).toHaveLength(1);
  });
});
