import { readdirSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Attestor, WorkloadAttestor } from "../../../agent/workload/attest.ts";
import { UnixAttestor } from "../../../agent/workload/unix.ts";
import type { PeerProcess } from "../../../src/rpc/peer-credentials.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { formatSelector, matches, type Selector } from "../../../src/spiffe/selector.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { PinningSocket, startWorkload, type Workload } from "../../support/workload.ts";

const never = new AbortController().signal;

interface Scene extends AsyncDisposable {
  readonly peer: PeerProcess;
  readonly workload: Workload;
}

async function scene(): Promise<Scene> {
  await using scope = new AsyncDisposableStack();
  const socket = scope.use(await PinningSocket.open());
  const workload = scope.use(await startWorkload({ socket: socket.path }));
  const peer = await socket.next();
  const held = scope.move();
  return { peer, workload, [Symbol.asyncDispose]: () => held.disposeAsync() };
}

function source(name: string, attest: Attestor["attest"]): Attestor {
  return { name, attest };
}

const good = source("good", async () => [{ type: "good", value: "a" }]);
const failing = source("failing", async () => {
  throw new Fault("unavailable", "no such container");
});
const silent = source("silent", () => new Promise<readonly Selector[]>(() => undefined));
const empty = source("empty", async () => []);

function attestor(attestors: readonly Attestor[], log = new RecordingLog(), timeoutMs = 30_000): WorkloadAttestor {
  return new WorkloadAttestor({ attestors, clock: systemClock, log, timeoutMs });
}

describe("workload attestation", () => {
  test("joins what all attestors say, sorted, each selector once", async () => {
    await using caller = await scene();
    const again = source("again", async () => [
      { type: "good", value: "a" },
      { type: "again", value: "b" },
    ]);
    const selectors = await attestor([good, again]).attest(caller.peer, never);
    expect(selectors.map(formatSelector)).toEqual(["again:b", "good:a"]);
  });

  test("asks attestors side by side", async () => {
    await using caller = await scene();
    const { promise, resolve } = Promise.withResolvers<void>();
    const first = source("first", async () => promise.then(() => [{ type: "first", value: "1" }]));
    const second = source("second", async () => {
      resolve();
      return [];
    });
    expect(await attestor([first, second]).attest(caller.peer, never)).toHaveLength(1);
  });

  test("leaves out an attestor that fails, and logs why", async () => {
    await using caller = await scene();
    const log = new RecordingLog();
    const selectors = await attestor([failing, good], log).attest(caller.peer, never);
    expect(selectors.map(formatSelector)).toEqual(["good:a"]);
    expect(log.lines).toEqual([
      {
        level: "error",
        message: 'workload attestor "failing" failed',
        fields: { pid: caller.workload.pid, error: "no such container" },
      },
      {
        level: "error",
        message: "Failed to collect all selectors",
        fields: { pid: caller.workload.pid, error: 'workload attestor "failing" failed: no such container' },
      },
    ]);
  });

  test("leaves out an attestor that does not answer in time", async () => {
    await using caller = await scene();
    const log = new RecordingLog();
    expect(await attestor([silent, good], log, 50).attest(caller.peer, never)).toHaveLength(1);
    expect(log.lines[0]?.fields).toMatchObject({ error: "timed out after 0.05 s" });
  });

  test("ends when the caller hangs up", async () => {
    await using caller = await scene();
    const stop = new AbortController();
    const attesting = attestor([silent, good]).attest(caller.peer, stop.signal);
    stop.abort();
    await expect(attesting).rejects.toMatchObject({ name: "AbortError" });
  });

  test("one user's waiting callers do not keep another user's out", async () => {
    await using caller = await scene();
    const held = Promise.withResolvers<readonly Selector[]>();
    const gate = source("gate", (peer) =>
      peer.uid === caller.peer.uid ? held.promise : Promise.resolve([{ type: "t", value: "v" }]),
    );
    const attesting = attestor([gate]);
    const storm = Array.from({ length: 400 }, () => attesting.attest(caller.peer, never));
    // The other user does not exist as a process; what counts is that its turn comes before the storm's end.
    await expect(attesting.attest({ ...caller.peer, uid: caller.peer.uid + 1 }, never)).rejects.toMatchObject({
      code: "caller-changed",
    });
    held.resolve([{ type: "t", value: "v" }]);
    expect(await Promise.all(storm)).toHaveLength(400);
  });
});

describe("T-W8 a caller of whom nothing is known has no selectors, not none", () => {
  test.each([
    { what: "every attestor fails", attestors: [failing, failing] },
    { what: "every attestor is silent", attestors: [silent] },
    { what: "no attestor has anything to say", attestors: [empty] },
    { what: "there is no attestor", attestors: [] },
  ])("$what: attestation fails", async ({ attestors }) => {
    await using caller = await scene();
    const attesting = attestor(attestors, new RecordingLog(), 50).attest(caller.peer, never);
    await expect(attesting).rejects.toMatchObject({ kind: "unavailable" });
    const withOneMore = attestor([...attestors, good], new RecordingLog(), 50).attest(caller.peer, never);
    expect(await withOneMore).toHaveLength(1);
  });
});

describe("T-W8 what failed can only take away", () => {
  const names = ["a", "b", "c", "d"] as const;
  const selector = fc.record({ type: fc.constantFrom("one", "two", "three"), value: fc.constantFrom(...names) });
  const answers = fc.record({
    one: fc.subarray([...names]),
    two: fc.subarray([...names]),
    three: fc.subarray([...names]),
  });

  test("no entry matches a partial result that does not match the whole one", async () => {
    await using caller = await scene();
    const world = fc.record({
      answers,
      failed: fc.subarray(["one", "two", "three"] as const, { maxLength: 2 }),
      entries: fc.array(fc.uniqueArray(selector, { minLength: 1, maxLength: 4 }), { maxLength: 12 }),
    });
    await fc.assert(
      fc.asyncProperty(world, async ({ answers: said, failed, entries }) => {
        const sources = (without: readonly string[]): readonly Attestor[] =>
          (["one", "two", "three"] as const).map((type) =>
            source(type, async () => {
              if (without.includes(type)) throw new Fault("unavailable", "away");
              return [{ type, value: "always" }, ...said[type].map((value) => ({ type, value }))];
            }),
          );
        const found = async (without: readonly string[]): Promise<ReadonlySet<string>> => {
          const attesting = attestor(sources(without), new RecordingLog());
          return new Set((await attesting.attest(caller.peer, never)).map(formatSelector));
        };
        const [whole, partial] = [await found([]), await found(failed)];
        for (const entry of entries) if (matches(entry, partial)) expect(matches(entry, whole)).toBe(true);
        expect([...partial].filter((text) => failed.some((type) => text.startsWith(`${type}:`)))).toEqual([]);
      }),
      { numRuns: 60 },
    );
  });
});

describe("what was found is kept for explaining", () => {
  test("of each attestor, with its time or its failure, the newest last, and out of the log", async () => {
    await using caller = await scene();
    const log = new RecordingLog();
    const attesting = attestor([good, failing], log);
    await attesting.attest(caller.peer, never);
    expect(attesting.recent).toMatchObject([
      {
        pid: caller.workload.pid,
        uid: caller.peer.uid,
        sources: [
          { attestor: "good", selectors: [{ type: "good", value: "a" }] },
          { attestor: "failing", selectors: [], error: "no such container" },
        ],
      },
    ]);
    expect(attesting.recent[0]?.tookMs).toBeGreaterThan(0);
    expect(JSON.stringify(log.lines)).not.toContain("good:a");
  });

  test("of the last 256 callers, refused ones too", async () => {
    await using caller = await scene();
    const attesting = attestor([good]);
    for (let count = 0; count < 300; count += 1) await attesting.attest(caller.peer, never);
    await caller.workload.order({ do: "exit" });
    await expect(attesting.attest(caller.peer, never)).rejects.toThrow();
    expect(attesting.recent).toHaveLength(256);
    expect(attesting.recent.at(-1)).toMatchObject({ error: expect.stringMatching(/original caller/), sources: [] });
  });
});

describe("T-W1 what was read belongs to the caller", () => {
  test("a caller that runs another program when the attestors have answered gets nothing", async () => {
    await using caller = await scene();
    const slow = source("slow", async () => {
      await caller.workload.order({ do: "exec", program: "/bin/sleep", args: ["60"] });
      return [{ type: "slow", value: "x" }];
    });
    await expect(attestor([slow]).attest(caller.peer, never)).rejects.toMatchObject({ code: "caller-changed" });
  });

  test("a caller that has exited when the attestors have answered gets nothing", async () => {
    await using caller = await scene();
    const slow = source("slow", async () => {
      await caller.workload.order({ do: "exit" });
      return [{ type: "slow", value: "x" }];
    });
    await expect(attestor([slow]).attest(caller.peer, never)).rejects.toMatchObject({ code: "caller-changed" });
  });
});

describe("T-W2 failing attestations leave no descriptor behind", () => {
  const openDescriptors = (): number => readdirSync("/proc/self/fd").length;

  async function fails(count: number, attesting: WorkloadAttestor, peer: PeerProcess): Promise<void> {
    const attempt = async (): Promise<void> => {
      await expect(attesting.attest(peer, never)).rejects.toThrow(Fault);
    };
    for (let done = 0; done < count; done += 50) await Promise.all(Array.from({ length: 50 }, attempt));
  }

  test.each([
    { what: "a program too large to hash", options: { discoverWorkloadPath: true, workloadSizeLimit: 1 }, exit: false },
    { what: "a caller that is gone", options: { discoverWorkloadPath: true, workloadSizeLimit: 0 }, exit: true },
  ])("after 10,000 of them for $what", async ({ options, exit }) => {
    await using caller = await scene();
    const unix = new UnixAttestor({ ...options, clock: systemClock, signal: never });
    const attesting = attestor([unix]);
    if (exit) await caller.workload.order({ do: "exit" });
    await fails(50, attesting, caller.peer);
    const before = openDescriptors();
    await fails(10_000, attesting, caller.peer);
    expect(openDescriptors()).toBe(before);
  });
});
