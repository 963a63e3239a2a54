import { describe, expect, test } from "vitest";
import { IdentityCache } from "../../../agent/cache/entries.ts";
import type { CachedEntry } from "../../../agent/cache/entry.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { FakeClock } from "../../support/clock.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { bundle, bundles, entry, entryMap, HOME, Reader, selectors, svidFor } from "./support.ts";

const PARTNER = parseTrustDomain("partner.test");
const MINUTE = 60_000;

function setUp(maxSvids = 1000) {
  const clock = new FakeClock();
  const log = new RecordingLog();
  const cache = new IdentityCache({ clock, log, maxSvids, bundles: bundles() });
  const sign = (...entries: readonly CachedEntry[]) => {
    const times = {
      renewAt: new Date(clock.now().getTime() + 5 * MINUTE),
      expiresAt: new Date(clock.now().getTime() + 10 * MINUTE),
    };
    cache.accept(new Map(entries.map((each) => [each.id, svidFor(each, times)])));
  };
  const listen = (...texts: readonly string[]) => new Reader((signal) => cache.subscribe(selectors(...texts), signal));
  const dueIds = () => cache.due().map(({ entry: { id } }) => id);
  const logged = (message: string) => log.lines.filter((line) => line.message === message).map(({ fields }) => fields);
  return { clock, cache, sign, listen, dueIds, logged };
}

describe("a subscription", () => {
  test("WAPI-11 answers at once with what is held", async () => {
    const { cache, sign, listen } = setUp();
    const web = entry("web");
    cache.replace(entryMap(web), bundles());
    sign(web);
    const reader = listen("unix:uid:1000", "unix:gid:1000");
    expect(await reader.news()).toEqual(["web"]);
    await reader.stop();
  });

  test("is shared with nobody whose selectors only look alike when they stand side by side", async () => {
    const { cache, sign, listen } = setUp();
    const web = entry("web", { selectors: ["docker:label:a:b", "unix:uid:0"] });
    cache.replace(entryMap(web), bundles());
    sign(web);
    const entitled = listen("docker:label:a:b", "unix:uid:0");
    expect(await entitled.news()).toEqual(["web"]);
    for (const separator of ["\0", ",", '","']) {
      const value = `label:a:b${separator}unix:uid:0`;
      const forger = new Reader((signal) => cache.subscribe([{ type: "docker", value }], signal));
      expect(await forger.news()).toEqual(["nothing"]);
      await forger.stop();
    }
    await entitled.stop();
  });

  test("waits for the first sync, and then for the SVID, and asks for it", async () => {
    const { cache, sign, listen, dueIds } = setUp();
    const reader = listen("unix:uid:1000");
    expect(await reader.news()).toEqual([]);
    const web = entry("web", { disableX509SvidPrefetch: true });
    const ticks = cache.work.value;
    cache.replace(entryMap(web), bundles());
    expect(await reader.news()).toEqual([]);
    expect(cache.work.value).toBeGreaterThan(ticks);
    expect(dueIds()).toEqual(["web"]);
    sign(web);
    expect(await reader.news()).toEqual(["web"]);
    await reader.stop();
  });

  test("says so at once when nothing matches", async () => {
    const { cache, listen } = setUp();
    cache.replace(entryMap(entry("web")), bundles());
    const reader = listen("unix:uid:2000");
    expect(await reader.news()).toEqual(["nothing"]);
    await reader.stop();
  });

  test("WAPI-09 WAPI-10 gets the whole state again after each change that it would notice, and nothing else", async () => {
    const { clock, cache, sign, listen } = setUp();
    const web = entry("web", { createdAt: 1 });
    const api = entry("api", { createdAt: 2 });
    cache.replace(entryMap(web, api), bundles());
    sign(web, api);
    const reader = listen("unix:uid:1000");
    expect(await reader.news()).toEqual(["web,api"]);

    cache.replace(entryMap(web, api), bundles());
    cache.replace(entryMap(web, api, entry("foreign", { selectors: ["unix:uid:5"] })), bundles());
    expect(await reader.news()).toEqual([]);

    await clock.advance(MINUTE);
    sign(api);
    expect(await reader.news()).toEqual(["web,api"]);

    cache.replace(entryMap(web, api), bundles(bundle(HOME, "root-1", "root-2")));
    expect(await reader.news()).toEqual(["web,api"]);
    expect(reader.last?.bundle.x509Authorities).toHaveLength(2);

    cache.replace(entryMap(web), bundles(bundle(HOME, "root-1", "root-2")));
    expect(await reader.news()).toEqual(["web"]);
    await reader.stop();
  });

  test("WAPI-32 learns that its last entry has gone", async () => {
    const { cache, sign, listen } = setUp();
    const web = entry("web");
    cache.replace(entryMap(web), bundles());
    sign(web);
    const reader = listen("unix:uid:1000");
    expect(await reader.news()).toEqual(["web"]);
    cache.replace(entryMap(), bundles());
    expect(await reader.news()).toEqual(["nothing"]);
    await reader.stop();
  });

  test("an update without a visible effect is silent until the SVID is signed anew", async () => {
    const { cache, sign, listen, dueIds } = setUp();
    const web = entry("web");
    cache.replace(entryMap(web), bundles());
    sign(web);
    const reader = listen("unix:uid:1000");
    await reader.news();
    const revised = entry("web", { revisionNumber: 1 });
    cache.replace(entryMap(revised), bundles());
    expect(await reader.news()).toEqual([]);
    expect(dueIds()).toEqual(["web"]);
    sign(revised);
    expect(dueIds()).toEqual([]);
    expect(await reader.news()).toEqual(["web"]);
    await reader.stop();
  });

  test("the SVID of an entry that names another ID now is not given to anyone any more", async () => {
    const { cache, sign, listen } = setUp();
    const web = entry("web");
    cache.replace(entryMap(web), bundles());
    sign(web);
    const early = listen("unix:uid:1000");
    expect(await early.news()).toEqual(["web"]);
    const renamed = entry("web", { path: "/renamed", revisionNumber: 1 });
    cache.replace(entryMap(renamed), bundles());
    const late = listen("unix:uid:1000");
    expect(await late.news()).toEqual([]);
    expect(cache.current(selectors("unix:uid:1000"))).toMatchObject({ identities: [], entitled: true });
    sign(renamed);
    expect(await early.news()).toEqual(["web"]);
    expect(await late.news()).toEqual(["web"]);
    await Promise.all([early.stop(), late.stop()]);
  });

  describe("of several identities, when an entry comes to name another SPIFFE ID", () => {
    const [web, api] = [entry("web"), entry("api", { createdAt: 2000 })];
    const renamed = entry("web", { path: "/renamed", revisionNumber: 1 });
    const names = ({ last }: Reader) => last?.identities.map(({ entry: { spiffeId } }) => spiffeId.split("/").at(-1));

    async function renaming() {
      const made = setUp();
      made.cache.replace(entryMap(web, api), bundles());
      made.sign(web, api);
      const reader = made.listen("unix:uid:1000");
      expect(await reader.news()).toEqual(["web,api"]);
      made.cache.replace(entryMap(renamed, api), bundles());
      return { ...made, reader };
    }

    test("is one change, from the old ones to the new ones", async () => {
      const { sign, dueIds, reader } = await renaming();
      expect(await reader.news()).toEqual([]);
      expect(dueIds()).toEqual(["web"]);
      sign(renamed);
      expect(await reader.news()).toEqual(["web,api"]);
      expect(names(reader)).toEqual(["renamed", "api"]);
      await reader.stop();
    });

    test("nobody new is given the former one, however it ends", async () => {
      for (const end of ["signed", "taken back"] as const) {
        const { cache, sign, listen, reader } = await renaming();
        const late = listen("unix:uid:1000");
        expect(await late.news()).toEqual([]);
        expect(cache.current(selectors("unix:uid:1000")).identities).toHaveLength(1);
        if (end === "signed") sign(renamed);
        else cache.replace(entryMap(entry("web", { revisionNumber: 2 }), api), bundles());
        expect(await late.news()).toEqual(["web,api"]);
        expect(names(late)).toEqual([end === "signed" ? "renamed" : "web", "api"]);
        await Promise.all([reader.stop(), late.stop()]);
      }
    });

    test("the former one goes when the new one is refused, or long in coming", async () => {
      for (const end of ["refused", "late"] as const) {
        const { clock, cache, sign, listen, reader } = await renaming();
        const late = listen("unix:uid:1000");
        await clock.advance(4_999);
        expect([await reader.news(), await late.news()]).toEqual([[], []]);
        if (end === "refused") cache.fail(["web"], true);
        else await clock.advance(1);
        expect([await reader.news(), await late.news()]).toEqual([["api"], ["api"]]);
        sign(renamed);
        expect([await reader.news(), await late.news()]).toEqual([["web,api"], ["web,api"]]);
        await Promise.all([reader.stop(), late.stop()]);
      }
    });

    test("being renamed again and again does not lengthen the life of the first one", async () => {
      const { clock, cache, reader } = await renaming();
      await clock.advance(4_000);
      cache.replace(entryMap(entry("web", { path: "/third", revisionNumber: 2 }), api), bundles());
      expect(await reader.news()).toEqual([]);
      await clock.advance(1_000);
      expect(await reader.news()).toEqual(["api"]);
      await reader.stop();
    });

    test("what is deleted meanwhile goes at once", async () => {
      const { cache, sign, reader } = await renaming();
      cache.replace(entryMap(renamed), bundles());
      expect(await reader.news()).toEqual(["web"]);
      expect(names(reader)).toEqual(["web"]);
      sign(renamed);
      expect(await reader.news()).toEqual(["web"]);
      expect(names(reader)).toEqual(["renamed"]);
      await reader.stop();
    });

    test("the former one federates as the entry does now, and is for the SVID store as it is now", async () => {
      const { cache, reader } = await renaming();
      cache.replace(
        entryMap(entry("web", { path: "/renamed", revisionNumber: 2, federatesWith: [PARTNER] }), api),
        bundles(undefined, bundle(PARTNER, "partner-1")),
      );
      expect(await reader.news()).toEqual(["web,api"]);
      expect([...(reader.last?.federatedBundles.keys() ?? [])]).toEqual([PARTNER]);
      cache.replace(
        entryMap(entry("web", { path: "/renamed", revisionNumber: 3, storeSvid: true }), api),
        bundles(undefined, bundle(PARTNER, "partner-1")),
      );
      expect(await reader.news()).toEqual(["api"]);
      await reader.stop();
    });
  });

  test("an entry that is deleted goes at once, whatever takes its place", async () => {
    const { cache, sign, listen } = setUp();
    const [web, api] = [entry("web"), entry("api", { createdAt: 2000 })];
    cache.replace(entryMap(web, api), bundles());
    sign(web, api);
    const reader = listen("unix:uid:1000");
    await reader.news();
    cache.replace(entryMap(api, entry("other", { createdAt: 3000 })), bundles());
    expect(await reader.news()).toEqual(["api"]);
    await reader.stop();
  });

  test("an identity whose entry is replaced by one that gives the same SPIFFE ID is there all the time", async () => {
    const { clock, cache, sign, listen } = setUp();
    const [web, api] = [entry("web"), entry("api", { createdAt: 2000 })];
    const again = entry("again", { path: "/web", createdAt: 3000 });
    cache.replace(entryMap(web, api), bundles());
    sign(web, api);
    const reader = listen("unix:uid:1000");
    await reader.news();
    cache.replace(entryMap(api, again), bundles());
    expect(await reader.news()).toEqual(["api,again"]);
    const chainOf = () => reader.last?.identities[1]?.chain;
    const before = chainOf();
    cache.fail(["again"], false);
    await clock.advance(MINUTE);
    expect(await reader.news()).toEqual([]);
    sign(again);
    expect(await reader.news()).toEqual(["api,again"]);
    expect(chainOf()).not.toBe(before);
    const elsewhere = entry("elsewhere", { path: "/web", selectors: ["unix:uid:5"], createdAt: 3000 });
    cache.replace(entryMap(api, elsewhere), bundles());
    expect(await reader.news()).toEqual(["api"]);
    const other = listen("unix:uid:5");
    expect(await other.news()).toEqual([]);
    await Promise.all([reader.stop(), other.stop()]);
  });

  test("T-J6 what was being signed while the entry came to name another ID, and other callers, goes to nobody", async () => {
    const { cache, sign, listen, dueIds } = setUp();
    const asked = entry("web");
    cache.replace(entryMap(asked), bundles());
    expect(dueIds()).toEqual(["web"]);
    const renamed = entry("web", { path: "/renamed", selectors: ["unix:uid:2000"], revisionNumber: 1 });
    cache.replace(entryMap(renamed), bundles());
    const caller = listen("unix:uid:2000");
    sign(asked);
    expect(await caller.news()).toEqual([]);
    expect(cache.current(selectors("unix:uid:2000"))).toMatchObject({ identities: [], entitled: true });
    expect(dueIds()).toEqual(["web"]);
    sign(renamed);
    expect(await caller.news()).toEqual(["web"]);
    await caller.stop();
  });

  test("an entry that cannot be signed does not hold back the others", async () => {
    const { cache, sign, listen } = setUp();
    const web = entry("web");
    const broken = entry("broken");
    cache.replace(entryMap(web, broken), bundles());
    sign(web);
    const reader = listen("unix:uid:1000");
    expect(await reader.news()).toEqual([]);
    cache.fail(["broken"], true);
    expect(await reader.news()).toEqual(["web"]);
    await reader.stop();
  });

  test("WAPI-27 WAPI-62 has the oldest entry first and one identity for each hint", async () => {
    const { cache, sign, listen, logged } = setUp();
    const young = entry("a-young", { createdAt: 3, hint: "internal" });
    const old = entry("z-old", { createdAt: 1, hint: "internal" });
    const middle = entry("m-middle", { createdAt: 2 });
    cache.replace(entryMap(young, old, middle), bundles());
    sign(young, old, middle);
    const reader = listen("unix:uid:1000");
    expect(await reader.news()).toEqual(["z-old,m-middle"]);
    expect(logged("Ignoring entry with duplicate hint")).toEqual([{ hint: "internal", entry_id: "a-young" }]);
    cache.replace(entryMap(young, middle), bundles());
    expect(await reader.news()).toEqual(["m-middle,a-young"]);
    await reader.stop();
  });

  test("brings the foreign bundles that its entries name, as they come and go", async () => {
    const { cache, sign, listen } = setUp();
    const web = entry("web", { federatesWith: [PARTNER] });
    cache.replace(
      entryMap(web),
      bundles(undefined, bundle(PARTNER, "partner-1"), bundle(parseTrustDomain("third.test"), "third-1")),
    );
    sign(web);
    const reader = listen("unix:uid:1000");
    await reader.news();
    expect([...cache.current(selectors("unix:uid:1000")).federatedBundles.keys()]).toEqual([PARTNER]);
    cache.replace(entryMap(web), bundles(undefined, bundle(PARTNER, "partner-1", "partner-2")));
    expect(await reader.news()).toEqual(["web"]);
    cache.replace(entryMap(web), bundles());
    expect(await reader.news()).toEqual(["web"]);
    expect(reader.last?.federatedBundles.size).toBe(0);
    await reader.stop();
  });

  test("an entry for the SVID store is never served, and not signed", async () => {
    const { cache, listen, dueIds } = setUp();
    cache.replace(entryMap(entry("stored", { storeSvid: true })), bundles());
    const reader = listen("unix:uid:1000");
    expect(await reader.news()).toEqual(["nothing"]);
    expect(dueIds()).toEqual([]);
    await reader.stop();
  });

  test("an expired SVID is not given to a new caller", async () => {
    const { clock, cache, sign, listen } = setUp();
    const web = entry("web");
    cache.replace(entryMap(web), bundles());
    sign(web);
    clock.step(11 * MINUTE);
    const reader = listen("unix:uid:1000");
    expect(await reader.news()).toEqual([]);
    sign(web);
    expect(await reader.news()).toEqual(["web"]);
    await reader.stop();
  });

  test("T-F7 a wall clock set forward and back again leaves the identities in place", async () => {
    const { clock, cache, sign, listen } = setUp();
    const web = entry("web");
    cache.replace(entryMap(web), bundles());
    sign(web);
    for (const ms of [60 * MINUTE, 365 * 24 * 60 * MINUTE]) {
      clock.step(ms);
      expect(cache.current(selectors("unix:uid:1000")).identities).toHaveLength(0);
      clock.step(-ms);
      const reader = listen("unix:uid:1000");
      expect(await reader.news()).toEqual(["web"]);
      await reader.stop();
    }
  });

  test("callers with the same selectors share one answer", async () => {
    const { cache, sign, listen } = setUp();
    const web = entry("web");
    cache.replace(entryMap(web), bundles());
    sign(web);
    const readers = [listen("unix:uid:1000", "unix:gid:5"), listen("unix:gid:5", "unix:uid:1000")];
    for (const reader of readers) await reader.news();
    const [first, second] = readers.map(({ last }) => last);
    expect(first).toBeDefined();
    expect(first).toBe(second);
    for (const reader of readers) await reader.stop();
  });
});

describe("what is due for signing", () => {
  test("who waits comes first, then what expires next, then what is fetched ahead of need", async () => {
    const { clock, cache, sign, listen, dueIds } = setUp();
    const [soon, later] = [entry("soon", { selectors: ["unix:uid:1"] }), entry("later", { selectors: ["unix:uid:2"] })];
    cache.replace(entryMap(soon, later), bundles());
    sign(soon);
    await clock.advance(MINUTE);
    sign(later);
    await clock.advance(8 * MINUTE);
    const ahead = entry("ahead", { selectors: ["unix:uid:3"] });
    cache.replace(entryMap(later, soon, ahead, entry("waited")), bundles());
    const reader = listen("unix:uid:1000");
    await reader.news();
    expect(dueIds()).toEqual(["waited", "soon", "later", "ahead"]);
    await reader.stop();
  });

  test("a refused entry is left alone until the next sync, or for a while that grows", async () => {
    const { clock, cache, dueIds } = setUp();
    const entries = entryMap(entry("a"), entry("b"));
    cache.replace(entries, bundles());
    cache.fail(["a"], true);
    expect(dueIds()).toEqual(["b"]);
    cache.replace(entries, bundles());
    expect(dueIds()).toEqual(["a", "b"]);
    for (const ms of [1000, 2000, 4000]) {
      cache.fail(["a"], true);
      expect(cache.msUntilDue()).toBe(ms);
      await clock.advance(ms - 1);
      expect(dueIds()).toEqual(["b"]);
      await clock.advance(1);
      expect(dueIds()).toEqual(["a", "b"]);
    }
    for (let refusals = 0; refusals < 20; refusals += 1) cache.fail(["a"], true);
    expect(cache.msUntilDue()).toBe(30_000);
    cache.replace(entryMap(entry("a", { revisionNumber: 1 }), entry("b")), bundles());
    cache.fail(["a"], true);
    expect(cache.msUntilDue()).toBe(500);
  });

  test("SVIDs under a tainted authority are due at once and served until then", async () => {
    const { clock, cache, listen, dueIds } = setUp();
    const [bad, good] = [entry("bad"), entry("good", { createdAt: 2000 })];
    cache.replace(entryMap(bad, good), bundles());
    const times = {
      renewAt: new Date(clock.now().getTime() + MINUTE),
      expiresAt: new Date(clock.now().getTime() + 2 * MINUTE),
    };
    cache.accept(
      new Map([
        ["bad", svidFor(bad, { ...times, authorityKeyId: "aa" })],
        ["good", svidFor(good, { ...times, authorityKeyId: "bb" })],
      ]),
    );
    const reader = listen("unix:uid:1000");
    expect(cache.taint(new Set(["aa"]))).toBe(1);
    expect(dueIds()).toEqual(["bad"]);
    expect(await reader.news()).toEqual(["bad,good"]);
    await reader.stop();
  });

  test("no more is fetched ahead than fits", () => {
    const { cache, dueIds } = setUp(3);
    cache.replace(entryMap(...Array.from({ length: 10 }, (_, at) => entry(`e${at}`))), bundles());
    expect(dueIds()).toHaveLength(3);
  });

  test("the next renewal is the earliest of those held", async () => {
    const { clock, cache, sign } = setUp();
    const [a, b] = [entry("a"), entry("b")];
    cache.replace(entryMap(a, b), bundles());
    expect(cache.msUntilDue()).toBe(Number.POSITIVE_INFINITY);
    sign(a);
    await clock.advance(MINUTE);
    sign(b);
    expect(cache.msUntilDue()).toBe(4 * MINUTE);
    expect(cache.nextExpiry()).toEqual(new Date(clock.now().getTime() + 9 * MINUTE));
  });
});

describe("the limit on SVIDs", () => {
  test("drops those used longest ago, and never one that a subscriber has", async () => {
    const { cache, sign, listen } = setUp(2);
    const all = ["a", "b", "c"].map((id) => entry(id, { selectors: [`unix:user:${id}`] }));
    const [a, b, c] = all as [CachedEntry, CachedEntry, CachedEntry];
    cache.replace(entryMap(...all), bundles());
    sign(a, b);
    const onA = listen("unix:user:a");
    await onA.news();
    const onB = listen("unix:user:b");
    await onB.news();
    await onB.stop();
    sign(c);
    expect(cache.svidCount).toBe(2);
    expect(cache.current(selectors("unix:user:a")).identities).toHaveLength(1);
    expect(cache.current(selectors("unix:user:c")).identities).toHaveLength(0);
    expect(cache.current(selectors("unix:user:b")).identities).toHaveLength(1);
    await onA.stop();
  });

  test("is passed by what subscribers use alone, and by nothing once they have gone", async () => {
    const { cache, sign, listen, dueIds, logged } = setUp(2);
    const all = ["a", "b", "c", "d"].map((id) => entry(id, { selectors: [`unix:user:${id}`] }));
    cache.replace(entryMap(...all), bundles());
    expect(dueIds()).toHaveLength(2);
    const held = () => all.filter(({ id }) => cache.current(selectors(`unix:user:${id}`)).identities.length > 0);
    const heldIds = () => held().map(({ id }) => id);
    const readers = ["a", "b", "c"].map((id) => listen(`unix:user:${id}`));
    sign(...all);
    for (const reader of readers) await reader.news();
    expect(heldIds()).toEqual(["a", "b", "c"]);
    const [onA, onB, onC] = readers as [(typeof readers)[0], (typeof readers)[0], (typeof readers)[0]];
    await onB.stop();
    expect(heldIds()).toEqual(["a", "c"]);
    await onA.stop();
    await onC.stop();
    expect(heldIds()).toEqual(["a", "c"]);
    const onD = listen("unix:user:d");
    await onD.news();
    sign(...all.filter(({ id }) => dueIds().includes(id)));
    expect(await onD.news()).toEqual(["d"]);
    expect(heldIds()).toEqual(["c", "d"]);
    await onD.stop();
    expect(logged("Removing SVID record").map((fields) => fields["record_id"])).toEqual(["d", "b", "a"]);
  });

  test("gives way to subscribers", async () => {
    const { cache, sign, listen } = setUp(1);
    const [a, b] = [entry("a", { selectors: ["unix:user:a"] }), entry("b", { selectors: ["unix:user:b"] })];
    cache.replace(entryMap(a, b), bundles());
    const readers = [listen("unix:user:a"), listen("unix:user:b")];
    sign(a, b);
    expect(await Promise.all(readers.map((reader) => reader.news()))).toEqual([["a"], ["b"]]);
    expect(cache.svidCount).toBe(2);
    for (const reader of readers) await reader.stop();
  });
});

test("entries that come, change and go are logged with their names", () => {
  const { cache, logged } = setUp();
  cache.replace(entryMap(entry("a"), entry("b")), bundles());
  cache.replace(entryMap(entry("a", { revisionNumber: 1 })), bundles());
  expect(logged("Entry created")).toEqual([
    { entry: "a", spiffe_id: "spiffe://home.test/a" },
    { entry: "b", spiffe_id: "spiffe://home.test/b" },
  ]);
  expect(logged("Entry updated")).toEqual([{ entry: "a", spiffe_id: "spiffe://home.test/a" }]);
  expect(logged("Entry removed")).toEqual([{ entry: "b", spiffe_id: "spiffe://home.test/b" }]);
});
