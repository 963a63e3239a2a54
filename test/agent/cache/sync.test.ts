import { beforeAll, describe, expect, test } from "vitest";
import { IdentityCache } from "../../../agent/cache/entries.ts";
import type { CachedEntry } from "../../../agent/cache/entry.ts";
import { Synchronizer } from "../../../agent/cache/sync.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import { parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { FakeClock } from "../../support/clock.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa, type TestCa } from "../../support/pki.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { bundle, bundles, entry, entryMap, HOME, selectors, svidFor } from "./support.ts";

const PARTNER = parseTrustDomain("partner.test");
const forever = new AbortController().signal;
let ca: TestCa;

beforeAll(async () => {
  ca = await createCa({ trustDomain: "home.test" });
});

function setUp(intervalMs = 5_000) {
  const clock = new FakeClock();
  const log = new RecordingLog();
  const cache = new IdentityCache({ clock, log, maxSvids: 1000, bundles: bundles(bundle(HOME)) });
  const server = {
    entries: entryMap(),
    own: bundle(HOME, "root-1"),
    federated: new Map<TrustDomain, Bundle | Fault>(),
    down: undefined as Fault | undefined,
    times: [] as number[],
  };
  const trusted: Bundle[] = [];
  const tainted: string[][] = [];
  const refusals: Fault[] = [];
  const refusedKeys: string[][] = [];
  const refusedWitKeys: string[][] = [];
  const answer = <T>(value: T | Fault): T => {
    if (value instanceof Fault) throw value;
    return value;
  };
  const synchronizer = new Synchronizer({
    ...{ cache, intervalMs, clock, log },
    tokens: {
      jwtAuthorities: { clear: () => undefined, refuseKeys: (ids) => void refusedKeys.push([...ids]) },
      witAuthorities: { clear: () => undefined, refuseKeys: (ids) => void refusedWitKeys.push([...ids]) },
    },
    upstream: {
      syncEntries: async () => {
        server.times.push(clock.monotonic() / 1000);
        return answer(server.down ?? server.entries);
      },
      bundle: async () => answer(server.own),
      federatedBundle: async (name) => answer(server.federated.get(name) ?? new Fault("not_found", "bundle not found")),
    },
    trust: {
      acceptBundle: async (accepted) => void trusted.push(accepted),
      taint: (ids) => void tainted.push([...ids]),
      recover: async (fault) => {
        refusals.push(fault);
        if (fault.code === "agent-banned") throw fault;
      },
    },
  });
  const messages = () => log.lines.map(({ message }) => message);
  return { clock, cache, server, synchronizer, trusted, tainted, refusals, refusedKeys, refusedWitKeys, messages };
}

describe("one sync", () => {
  test("keys of tokens that are tainted or revoked are refused", async () => {
    const { server, synchronizer, refusedKeys, refusedWitKeys, messages } = setUp();
    const key = (keyId: string, tainted = false) => ({ publicKey: Buffer.from(keyId), keyId, expiresAt: 0, tainted });
    const own = bundle(HOME, "root-1");
    for (const jwtAuthorities of [
      [key("a"), key("b")],
      [key("a", true), key("b")],
      [key("b"), key("c")],
    ]) {
      server.own = { ...own, jwtAuthorities };
      await synchronizer.sync(forever);
    }
    expect(refusedKeys).toEqual([[], ["a"], ["a"]]);
    server.own = { ...server.own, witAuthorities: [key("w", true)] };
    await synchronizer.sync(forever);
    expect(refusedWitKeys.at(-1)).toEqual(["w"]);
    expect(messages().filter((message) => message.startsWith("New tainted"))).toEqual([
      "New tainted JWT authorities found",
      "New tainted WIT authorities found",
    ]);
  });

  test("brings entries and bundles, and the cache is ready", async () => {
    const { cache, server, synchronizer, trusted } = setUp();
    server.entries = entryMap(entry("a", { federatesWith: [PARTNER] }));
    server.federated.set(PARTNER, bundle(PARTNER, "partner-1"));
    expect(cache.ready.value).toBe(false);
    await synchronizer.sync(forever);
    expect(cache.ready.value).toBe(true);
    expect(cache.bundle.value.own).toBe(server.own);
    expect([...cache.bundle.value.federated.keys()]).toEqual([PARTNER]);
    expect(trusted).toEqual([server.own]);
  });

  test("a bundle that is the same stays the same object, and is not stored again", async () => {
    const { cache, server, synchronizer, trusted } = setUp();
    server.entries = entryMap(entry("a", { federatesWith: [PARTNER] }));
    server.federated.set(PARTNER, bundle(PARTNER, "partner-1"));
    await synchronizer.sync(forever);
    const { own, federated } = cache.bundle.value;
    server.own = bundle(HOME, "root-1");
    server.federated.set(PARTNER, bundle(PARTNER, "partner-1"));
    await synchronizer.sync(forever);
    expect(cache.bundle.value.own).toBe(own);
    expect(cache.bundle.value.federated.get(PARTNER)).toBe(federated.get(PARTNER));
    expect(trusted).toHaveLength(1);
  });

  test("a federated bundle that the server does not have is left out", async () => {
    const { cache, server, synchronizer, messages } = setUp();
    server.entries = entryMap(entry("a", { federatesWith: [PARTNER] }));
    await synchronizer.sync(forever);
    expect(cache.bundle.value.federated.size).toBe(0);
    expect(messages()).toContain("Federated bundle not found");
  });

  test.each([
    { what: "of another trust domain", answer: bundle(HOME, "root-1") },
    { what: "that does not parse", answer: new Fault("invalid", "unable to parse X.509 authority") },
  ])("T-F1 a federated bundle $what is left out", async ({ answer }) => {
    const { cache, server, synchronizer, messages } = setUp();
    server.entries = entryMap(entry("a", { federatesWith: [PARTNER] }));
    server.federated.set(PARTNER, answer);
    await synchronizer.sync(forever);
    expect(cache.bundle.value.federated.size).toBe(0);
    expect(messages().join()).toContain("Received malformed bundle");
  });

  test("any other failure to get one fails the sync as a whole", async () => {
    const { cache, server, synchronizer } = setUp();
    await synchronizer.sync(forever);
    server.entries = entryMap(entry("a", { federatesWith: [PARTNER] }));
    server.federated.set(PARTNER, new Fault("unavailable", "away"));
    expect((await faultFrom(synchronizer.sync(forever))).kind).toBe("unavailable");
    expect(cache.current(selectors("unix:uid:1000")).entitled).toBe(false);
  });

  test.each([
    { what: "empty", own: bundle(HOME) },
    { what: "of another trust domain", own: bundle(PARTNER, "partner-1") },
  ])("T-F1 an own bundle that is $what does not replace the one held", async ({ own }) => {
    const { cache, server, synchronizer, trusted } = setUp();
    await synchronizer.sync(forever);
    const held = cache.bundle.value.own;
    server.own = own;
    await synchronizer.sync(forever);
    expect(cache.bundle.value.own).toBe(held);
    expect(trusted).toHaveLength(1);
  });

  test("an authority that becomes tainted is acted on once", async () => {
    const { clock, cache, server, synchronizer, tainted } = setUp();
    const keyId = ca.certificate.subjectKeyId;
    const web = entry("a");
    server.entries = entryMap(web);
    server.own = { ...bundle(HOME), x509Authorities: [{ asn1: ca.der, tainted: false }] };
    await synchronizer.sync(forever);
    const times = {
      renewAt: new Date(clock.now().getTime() + 60_000),
      expiresAt: new Date(clock.now().getTime() + 90_000),
    };
    cache.accept(new Map([["a", svidFor(web, { ...times, authorityKeyId: keyId })]]));
    expect(cache.due()).toEqual([]);
    server.own = { ...server.own, x509Authorities: [{ asn1: ca.der, tainted: true }] };
    await synchronizer.sync(forever);
    expect(cache.due().map(({ entry: { id } }) => id)).toEqual(["a"]);
    await synchronizer.sync(forever);
    expect(tainted).toEqual([[keyId]]);
  });
});

describe("syncing again and again", () => {
  const running = (synchronizer: Synchronizer) => {
    const stop = new AbortController();
    const run = synchronizer.run(stop.signal).catch((error: unknown) => {
      if (!stop.signal.aborted) throw error;
    });
    return { run, stop };
  };

  test("happens every interval, and no less often than every 5 s while there is nothing to serve", async () => {
    const { clock, cache, server, synchronizer } = setUp(20_000);
    const { run, stop } = running(synchronizer);
    await clock.advance(11_000);
    expect(server.times).toEqual([5, 10]);
    const web = entry("a");
    server.entries = entryMap(web);
    await clock.advance(5_000);
    cache.accept(
      new Map([["a", svidFor(web, { renewAt: new Date("2027-01-01"), expiresAt: new Date("2027-01-01") })]]),
    );
    await clock.advance(60_000);
    expect(server.times.slice(2)).toEqual([15, 20, 40, 60]);
    stop.abort();
    await run;
  });

  test("backs off to 48 intervals while the server is away, keeps what it has, and is back at once", async () => {
    const { clock, cache, server, synchronizer, refusals, messages } = setUp();
    server.entries = entryMap(entry("a"));
    await synchronizer.sync(forever);
    server.down = new Fault("unavailable", "failed to fetch authorized entries: away");
    server.times.length = 0;
    const { run, stop } = running(synchronizer);
    await clock.advance(30 * 60_000);
    const gaps = server.times.slice(1).map((time, at) => time - server.times[at]!);
    expect(gaps.slice(0, 4)).toEqual([7.5, 11.25, 16.875, 25.3125]);
    expect(Math.max(...gaps)).toBe(240);
    expect(cache.current(selectors("unix:uid:1000")).entitled).toBe(true);
    expect(refusals[0]?.message).toBe("failed to fetch authorized entries: away");
    expect(messages()).toContain("Synchronize failed");
    server.down = undefined;
    server.times.length = 0;
    await clock.advance(260_000);
    expect(server.times.slice(1, 3).map((time, at) => time - server.times[at]!)).toEqual([5, 5]);
    expect(messages().filter((message) => message === "Synchronize recovered")).toHaveLength(1);
    stop.abort();
    await run;
  });

  test("no back-off lasts longer than 8 minutes", async () => {
    const { clock, server, synchronizer } = setUp(60_000);
    server.down = new Fault("unavailable", "away");
    const { run, stop } = running(synchronizer);
    await clock.advance(4 * 3_600_000);
    expect(Math.max(...server.times.slice(1).map((time, at) => time - server.times[at]!))).toBe(480);
    stop.abort();
    await run;
  });

  test("ends when the refusal is final", async () => {
    const { clock, server, synchronizer } = setUp();
    server.down = new Fault("denied", "agent is banned", { code: "agent-banned" });
    const outcome = faultFrom(synchronizer.run(forever));
    await clock.advance(5_000);
    expect((await outcome).code).toBe("agent-banned");
  });
});

test("entries stay the same objects for the cache when the sync says so", async () => {
  const { cache, server, synchronizer, messages } = setUp();
  const web: CachedEntry = entry("a");
  server.entries = entryMap(web);
  await synchronizer.sync(forever);
  await synchronizer.sync(forever);
  expect(messages().filter((message) => message.startsWith("Entry"))).toEqual(["Entry created"]);
  expect(cache.current(selectors("unix:uid:1000")).entitled).toBe(true);
});

describe("asking before a caller is refused", () => {
  test("asks at once, at most once a second, and not while changes are pushed", async () => {
    const { cache, clock, server, synchronizer } = setUp(3_600_000);
    await synchronizer.sync(forever);
    const stop = new AbortController();
    const running = synchronizer.run(stop.signal).catch(() => undefined);
    server.entries = entryMap(entry("a"));
    await synchronizer.refresh(forever);
    expect(cache.entitles(entry("a").selectors)).toBe(true);
    server.entries = entryMap(entry("b"));
    await synchronizer.refresh(forever);
    expect(server.times).toHaveLength(2);
    await clock.advance(1_000);
    await synchronizer.refresh(forever);
    expect(server.times).toHaveLength(3);
    synchronizer.setPushed(true);
    await clock.advance(1_000);
    await synchronizer.refresh(forever);
    expect(server.times).toHaveLength(3);
    stop.abort();
    await running;
  });

  test("a server that does not answer is waited for no longer than two seconds", async () => {
    const { clock, server, synchronizer } = setUp(3_600_000);
    await synchronizer.sync(forever);
    server.down = new Fault("unavailable", "away");
    const stop = new AbortController();
    const asking = synchronizer.refresh(stop.signal);
    await clock.advance(2_000);
    await asking;
    stop.abort();
  });
});

describe("changes that are pushed", () => {
  test("a sync that began before one says nothing any more", async () => {
    const { cache, server, synchronizer } = setUp();
    await synchronizer.sync(forever);
    const syncing = synchronizer.sync(forever);
    server.entries = entryMap();
    synchronizer.takeEntries(new Map([["new", entry("new")]]), new Set());
    await syncing;
    expect(cache.entitles(entry("new").selectors)).toBe(true);
    synchronizer.takeEntries(new Map(), new Set(["new"]));
    expect(cache.entitles(entry("new").selectors)).toBe(false);
  });

  test("an own bundle without authorities is left out", async () => {
    const { cache, synchronizer } = setUp();
    await synchronizer.sync(forever);
    const held = cache.bundle.value.own;
    await synchronizer.takeBundles([bundle(HOME)], []);
    expect(cache.bundle.value.own).toBe(held);
    await synchronizer.takeBundles([bundle(HOME, "root-2"), bundle(PARTNER, "p")], []);
    expect(cache.bundle.value.own).not.toBe(held);
    expect([...cache.bundle.value.federated.keys()]).toEqual([PARTNER]);
    await synchronizer.takeBundles([], [PARTNER]);
    expect(cache.bundle.value.federated.size).toBe(0);
  });
});
