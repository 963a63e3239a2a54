import { describe, expect, test } from "vitest";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault, isAbort } from "../../../src/runtime/fault.ts";
import { Feed } from "../../../src/runtime/feed.ts";
import { Backoff, every, followerOf, retry, SingleFlight, supervise } from "../../../src/runtime/task.ts";
import { FakeClock } from "../../support/clock.ts";

const endless = (signal: AbortSignal): Promise<void> =>
  new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));

describe("supervise", () => {
  test("the first failure stops the other tasks and is what is thrown", async () => {
    const stopped: string[] = [];
    const other = async (signal: AbortSignal): Promise<void> => {
      await endless(signal).catch(() => stopped.push("other"));
    };
    const failing = () => Promise.reject(new Fault("internal", "broken"));
    await expect(supervise([other, failing], new AbortController())).rejects.toThrow("broken");
    expect(stopped).toEqual(["other"]);
  });

  test("an abort from outside ends all tasks without an error", async () => {
    const stop = new AbortController();
    const done = supervise([endless, endless], stop);
    stop.abort();
    await expect(done).resolves.toBeUndefined();
  });

  test("a task that fails while it is being stopped is still heard", async () => {
    const stop = new AbortController();
    const untidy = (signal: AbortSignal): Promise<void> =>
      endless(signal).catch(() => Promise.reject(new Error("could not close")));
    const done = supervise([untidy], stop);
    stop.abort();
    await expect(done).rejects.toThrow("could not close");
  });
});

describe("retry and back-off", () => {
  test("delays grow by the factor up to the limit, and start again after a reset", () => {
    const backoff = new Backoff(new FakeClock(), { firstMs: 1000, maxMs: 3000, factor: 2 });
    expect([backoff.next(), backoff.next(), backoff.next(), backoff.next()]).toEqual([1000, 2000, 3000, 3000]);
    backoff.reset();
    expect(backoff.next()).toBe(1000);
  });

  test.each([
    { chance: 0, delay: 900 },
    { chance: 0.5, delay: 1000 },
    { chance: 1, delay: 1100 },
  ])("with a chance of $chance the delay is $delay ms", ({ chance, delay }) => {
    expect(new Backoff(new FakeClock(undefined, chance), { firstMs: 1000, maxMs: 3000 }).next()).toBeCloseTo(delay);
  });

  test("work is tried again after each delay until it succeeds", async () => {
    const clock = new FakeClock();
    let calls = 0;
    const work = async (): Promise<number> => {
      calls += 1;
      if (calls < 3) throw new Error("not yet");
      return calls;
    };
    const result = retry(clock, { firstMs: 1000, maxMs: 1000 }, work, new AbortController().signal);
    await clock.advance(999);
    expect(calls).toBe(1);
    await clock.advance(1);
    expect(calls).toBe(2);
    await clock.advance(1000);
    expect(await result).toBe(3);
  });

  test("the last error is thrown when time is up, and at once when a retry cannot help", async () => {
    const clock = new FakeClock();
    const fail = () => Promise.reject(new Error("down"));
    const signal = new AbortController().signal;
    const gaveUp = retry(clock, { firstMs: 1000, maxMs: 1000, giveUpAfterMs: 2500 }, fail, signal);
    const expectation = expect(gaveUp).rejects.toThrow("down");
    await clock.advance(5000);
    await expectation;
    const options = { firstMs: 1000, maxMs: 1000, retryable: () => false };
    await expect(retry(clock, options, fail, signal)).rejects.toThrow("down");
  });

  test("a loop runs, waits and runs again until its signal ends it", async () => {
    const clock = new FakeClock();
    const stop = new AbortController();
    let rounds = 0;
    const loop = every(
      clock,
      () => 500,
      async () => {
        rounds += 1;
      },
      stop.signal,
    );
    await clock.advance(1600);
    expect(rounds).toBe(4);
    stop.abort(new Error("enough"));
    await expect(loop).rejects.toThrow("enough");
  });

  test("one run in flight is shared, and the next call starts another", async () => {
    let started = 0;
    const gates: PromiseWithResolvers<number>[] = [];
    const flight = new SingleFlight(() => {
      started += 1;
      const gate = Promise.withResolvers<number>();
      gates.push(gate);
      return gate.promise;
    });
    const both = [flight.run(), flight.run()];
    gates[0]?.resolve(7);
    expect(await Promise.all(both)).toEqual([7, 7]);
    const next = flight.run();
    gates[1]?.reject(new Error("failed"));
    await expect(next).rejects.toThrow("failed");
    const after = flight.run();
    gates[2]?.resolve(8);
    expect(await after).toBe(8);
    expect(started).toBe(3);
  });

  test("a follower ends with its signal, and leaves the signal alone when it ends by itself", () => {
    const first = new AbortController();
    followerOf(first.signal).abort();
    expect(first.signal.aborted).toBe(false);
    const follower = followerOf(first.signal);
    first.abort(new Error("stop"));
    expect(follower.signal.reason).toBe(first.signal.reason);
    expect(followerOf(first.signal).signal.aborted).toBe(true);
  });
});

describe("a feed", () => {
  test("gives a watcher the current value at once, then the newest, skipping what it was too slow for", async () => {
    const feed = new Feed(1);
    const stop = new AbortController();
    const seen: number[] = [];
    for await (const value of feed.watch(stop.signal)) {
      seen.push(value);
      if (value === 1) {
        feed.set(2);
        feed.set(3);
      } else if (value === 3) setImmediate(() => feed.set(4));
      else stop.abort();
    }
    expect(seen).toEqual([1, 3, 4]);
    expect(feed.value).toBe(4);
  });

  test("every watcher sees a change, and one that is aborted ends quietly", async () => {
    const feed = new Feed("a");
    const stop = new AbortController();
    const collect = async (): Promise<string[]> => {
      const seen: string[] = [];
      for await (const value of feed.watch(stop.signal)) {
        seen.push(value);
        if (value === "b") return seen;
      }
      return [...seen, "aborted"];
    };
    const watchers = [collect(), collect()];
    await Promise.resolve();
    feed.set("b");
    expect(await Promise.all(watchers)).toEqual([
      ["a", "b"],
      ["a", "b"],
    ]);
    const aborted = (async () => {
      const seen: string[] = [];
      for await (const value of feed.watch(stop.signal)) seen.push(value);
      return seen;
    })();
    setImmediate(() => stop.abort());
    expect(await aborted).toEqual(["b"]);
  });

  test("waits until a value satisfies a test, or the signal's reason", async () => {
    const feed = new Feed(0);
    const stop = new AbortController();
    const found = feed.until((value) => value > 1, stop.signal);
    feed.set(1);
    feed.set(2);
    expect(await found).toBe(2);
    const never = feed.until((value) => value > 9, stop.signal);
    stop.abort();
    await expect(never).rejects.toSatisfy(isAbort);
  });
});

describe("the system clock", () => {
  test("a sleep ends at its time, and is ended by its signal", async () => {
    const before = systemClock.monotonic();
    await systemClock.sleep(20);
    expect(systemClock.monotonic() - before).toBeGreaterThanOrEqual(19);
    const stop = new AbortController();
    const long = systemClock.sleep(0x7fffffff * 2, stop.signal);
    stop.abort();
    await expect(long).rejects.toSatisfy(isAbort);
  });

  test("time and chance have one door", async () => {
    const { sourceFiles, PROJECT } = await import("../../support/imports.ts");
    const { readFileSync } = await import("node:fs");
    const forbidden = /\bDate\.now\(|new Date\(\)|\bMath\.random\(|\bsetInterval\(|\bsetTimeout\(/;
    const owners = new Set(["src/runtime/clock.ts"]);
    const wrong = ["src", "server", "agent"]
      .flatMap(sourceFiles)
      .filter((path) => !owners.has(path) && forbidden.test(readFileSync(`${PROJECT}/${path}`, "utf8")));
    expect(wrong).toEqual([]);
  });
});
