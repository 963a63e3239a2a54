import { describe, expect, test } from "vitest";
import { CallRates, LIMITED_METHODS, type RateLimits } from "../../../agent/api/rate-limit.ts";
import { parseSelector } from "../../../src/spiffe/selector.ts";
import { FakeClock } from "../../support/clock.ts";
import { bundlesOf, cachedEntry, Endpoint } from "../../support/endpoint.ts";
import { createCa } from "../../support/pki.ts";
import { RawClient } from "../../support/raw-client.ts";
import { SdsClient } from "../../support/sds.ts";

const NONE = Object.fromEntries(Object.keys(LIMITED_METHODS).map((key) => [key, 0])) as RateLimits;
const METHOD = LIMITED_METHODS.fetch_x509_svid;
const selectors = (...texts: readonly string[]) => texts.map(parseSelector);

/** Numbers by key and method. */
function counting() {
  const counts: string[] = [];
  const increment = (key: string, labels?: object): void => void counts.push(`${key} ${JSON.stringify(labels)}`);
  return { counts, increment, set: () => {}, observe: () => {} };
}

describe("rates of calls", () => {
  test("callers with the same selectors share a bucket, in whatever order these are; others have their own", async () => {
    const clock = new FakeClock();
    const metrics = counting();
    const rates = new CallRates(clock, { ...NONE, fetch_x509_svid: 2 });
    rates.take(METHOD, selectors("a:1", "b:2"), metrics);
    rates.take(METHOD, selectors("b:2", "a:1"), metrics);
    expect(() => rates.take(METHOD, selectors("a:1", "b:2"), metrics)).toThrow(`rate limit exceeded for ${METHOD}`);
    expect(metrics.counts).toEqual([`workload_api.rate_limit_exceeded {"method":"${METHOD}"}`]);
    rates.take(METHOD, selectors("a:1"), metrics);
    rates.take(LIMITED_METHODS.fetch_jwt_svid, selectors("a:1", "b:2"), metrics);
    await clock.advance(500);
    rates.take(METHOD, selectors("a:1", "b:2"), metrics);
    expect(() => rates.take(METHOD, selectors("a:1", "b:2"), metrics)).toThrow("rate limit exceeded");
  });

  test("T-X9 nobody uses up the calls of others by a selector that looks like several of theirs", () => {
    const rates = new CallRates(new FakeClock(), { ...NONE, fetch_x509_svid: 1 });
    rates.take(METHOD, [{ type: "docker", value: "label:a:1\0unix:uid:0" }], counting());
    rates.take(METHOD, selectors("docker:label:a:1", "unix:uid:0"), counting());
  });

  test("0 is no limit", () => {
    const rates = new CallRates(new FakeClock(), NONE);
    for (let call = 0; call < 1000; call += 1) rates.take(METHOD, selectors("a:1"), counting());
    expect(rates.limits.size).toBe(0);
  });

  test("a bucket that was forgotten was full", async () => {
    const clock = new FakeClock();
    const rates = new CallRates(clock, { ...NONE, fetch_x509_svid: 1 });
    for (let caller = 0; caller < 3000; caller += 1) rates.take(METHOD, selectors(`a:${caller}`), counting());
    expect(() => rates.take(METHOD, selectors("a:0"), counting())).toThrow("rate limit exceeded");
    await clock.advance(1_000);
    rates.take(METHOD, selectors("a:0"), counting());
  });
});

test("over the wire a call too many is answered Unavailable, for each limited method by itself", async () => {
  const root = await createCa({ trustDomain: "example.org" });
  const rateLimits = { fetch_x509_svid: 1, fetch_x509_bundles: 1, stream_secrets: 1, fetch_secrets: 1 };
  await using endpoint = await Endpoint.start({ bundles: bundlesOf(root), rateLimits });
  const web = cachedEntry({ id: "web", selectors: [`unix:uid:${process.getuid?.()}`] });
  await endpoint.replace([web], bundlesOf(root));
  await endpoint.accept([web, await root.issue({ id: web.spiffeId })]);
  await using raw = new RawClient(endpoint.path);
  using proxy = new SdsClient(endpoint.path);
  // Two at once: the bucket cannot fill again between them.
  const outcomes = async (calls: readonly Promise<unknown>[]) =>
    (await Promise.allSettled(calls)).map((outcome) =>
      outcome.status === "fulfilled" ? "ok" : (outcome.reason as Error).message,
    );
  const streamed = async (call: ReturnType<RawClient["svids"]>) => {
    const status = await Promise.race([call.first().then(() => undefined), call.status]);
    call.cancel();
    if (status !== undefined) throw new Error(`${status.code} ${status.message}`);
  };
  const limited = (method: string) => `14 rate limit exceeded for ${method}`;
  expect((await outcomes([streamed(raw.svids()), streamed(raw.svids())])).sort()).toEqual([limited(METHOD), "ok"]);
  expect((await outcomes([streamed(raw.bundles()), streamed(raw.bundles())])).sort()).toEqual([
    limited(LIMITED_METHODS.fetch_x509_bundles),
    "ok",
  ]);
  const fetched = await outcomes([proxy.fetch(["default"]), proxy.fetch(["default"])]);
  expect(fetched.sort()).toEqual(["ok", `rate limit exceeded for ${LIMITED_METHODS.fetch_secrets}`]);
});
