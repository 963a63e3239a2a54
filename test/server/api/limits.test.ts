import { describe, expect, test } from "vitest";
import { RateLimiter } from "../../../server/api/limits.ts";
import { FakeClock } from "../../support/clock.ts";
import { faultFrom } from "../../support/faults.ts";

const forever = new AbortController().signal;

/** Takes from the bucket, and tells when it was given, in milliseconds of the clock. */
function timed(
  limiter: RateLimiter,
  clock: FakeClock,
  address: string,
  count = 1,
): { readonly at: Promise<number>; state: string } {
  const call = { state: "waiting", at: limiter.take(address, count, forever).then(() => clock.monotonic()) };
  void call.at.then(() => {
    call.state = "given";
  });
  return call;
}

describe("a token bucket by address", () => {
  test("gives the burst at once and then one after the other, in the order of asking", async () => {
    const clock = new FakeClock();
    const limiter = new RateLimiter(clock, 10);
    const calls = Array.from({ length: 13 }, () => timed(limiter, clock, "a"));
    await clock.advance(0);
    expect(calls.map(({ state }) => state)).toEqual([...Array(10).fill("given"), ...Array(3).fill("waiting")]);
    await clock.advance(1000);
    expect(await Promise.all(calls.slice(10).map(({ at }) => at))).toEqual([100, 200, 300]);
  });

  test("one address does not wait for another", async () => {
    const clock = new FakeClock();
    const limiter = new RateLimiter(clock, 1);
    await limiter.take("a", 1, forever);
    const [second, other] = [timed(limiter, clock, "a"), timed(limiter, clock, "b")];
    await clock.advance(0);
    expect([second.state, other.state]).toEqual(["waiting", "given"]);
  });

  test("what rests fills up to the burst and no further", async () => {
    const clock = new FakeClock();
    const limiter = new RateLimiter(clock, 5);
    await limiter.take("a", 5, forever);
    await clock.advance(100_000);
    const calls = Array.from({ length: 6 }, () => timed(limiter, clock, "a"));
    await clock.advance(0);
    expect(calls.map(({ state }) => state)).toEqual(["given", "given", "given", "given", "given", "waiting"]);
  });

  test("a count over the burst can never be given, and takes nothing", async () => {
    const clock = new FakeClock();
    const limiter = new RateLimiter(clock, 500);
    expect(await faultFrom(limiter.take("a", 501, forever))).toMatchObject({
      kind: "exhausted",
      message: "rate (501) exceeds burst size (500)",
    });
    const whole = timed(limiter, clock, "a", 500);
    await clock.advance(0);
    expect(whole.state).toBe("given");
  });

  test("who leaves the queue gives its turn back", async () => {
    const clock = new FakeClock();
    const limiter = new RateLimiter(clock, 1);
    await limiter.take("a", 1, forever);
    const leave = new AbortController();
    const left = limiter.take("a", 1, leave.signal);
    leave.abort(new Error("gone"));
    await expect(left).rejects.toThrow("gone");
    const next = timed(limiter, clock, "a");
    await clock.advance(1000);
    expect(await next.at).toBe(1000);
  });

  test("a queue longer than a minute is refused, so that it cannot grow without end", async () => {
    const clock = new FakeClock();
    const limiter = new RateLimiter(clock, 1);
    const queue = Array.from({ length: 61 }, () => timed(limiter, clock, "a"));
    expect(await faultFrom(limiter.take("a", 1, forever))).toMatchObject({ kind: "exhausted", code: "rate-limit" });
    await clock.advance(60_000);
    expect(queue.every(({ state }) => state === "given")).toBe(true);
  });

  test("T-X9 whoever has a whole network of addresses does not fill the memory", async () => {
    const limiter = new RateLimiter(new FakeClock(), 10);
    for (let index = 0; index < 350_000; index += 1) await limiter.take(`2001:db8::${index}`, 1, forever);
    expect(limiter.size).toBeLessThanOrEqual(200_000);
  });

  test("an address that stays away for two minutes is forgotten, one that comes back is not", async () => {
    const clock = new FakeClock();
    const limiter = new RateLimiter(clock, 10);
    for (let index = 0; index < 1000; index += 1) await limiter.take(`address-${index}`, 1, forever);
    expect(limiter.size).toBe(1000);
    await clock.advance(60_000);
    await limiter.take("address-0", 1, forever);
    await clock.advance(60_000);
    await limiter.take("new", 1, forever);
    expect(limiter.size).toBeLessThanOrEqual(2);
  });
});
