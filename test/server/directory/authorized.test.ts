import fc from "fast-check";
import { beforeEach, describe, expect, test } from "vitest";
import { Directory } from "../../../server/directory/authorized.ts";
import { atOnce } from "../../../server/directory/steps.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { parseSpiffeId, parseTrustDomain, type SpiffeId, serverId } from "../../../src/spiffe/id.ts";
import { parseSelector, selectorSet } from "../../../src/spiffe/selector.ts";
import { id, ManualClock, makeEntry, START, TD } from "../ca/support.ts";
import { AGENTS, anyChange, Model } from "./model.ts";
import { type Changes, changeSet, makeBundle, makeNode } from "./support.ts";

const AGENT = id("/spire/agent/join_token/one");
const OTHER = id("/spire/agent/join_token/two");
const SERVER = serverId(TD);

let clock: ManualClock;
let directory: Directory;
beforeEach(() => {
  clock = new ManualClock();
  directory = new Directory({ trustDomain: TD, clock });
});

function apply(changes: Changes): void {
  atOnce(directory.apply(changeSet(changes)));
}

function entry(name: string, parentId: SpiffeId, fields: Partial<Entry> = {}): Entry {
  return makeEntry({ id: name, spiffeId: id(`/${name}`), parentId, ...fields });
}

function alias(name: string, selectors: readonly string[], fields: Partial<Entry> = {}): Entry {
  return entry(name, SERVER, { selectors: selectorSet(selectors.map(parseSelector)), ...fields });
}

function authorized(agent: SpiffeId): readonly string[] {
  return directory
    .authorizedEntries(agent)
    .map((found) => found.id)
    .sort();
}

/** Both questions at once: they must never disagree. */
function expectAuthorized(agent: SpiffeId, ids: readonly string[]): void {
  expect(authorized(agent)).toEqual(ids);
  for (const name of ["a", "b", "c", "d", "cluster"]) {
    expect(directory.authorizedEntry(agent, name) !== undefined).toBe(ids.includes(name));
  }
}

describe("authorized entries", () => {
  test("are the direct children of the agent, and nobody else's", () => {
    apply({ nodes: [makeNode({ id: AGENT })], entries: [entry("a", AGENT), entry("b", OTHER)] });
    expectAuthorized(AGENT, ["a"]);
    expectAuthorized(OTHER, ["b"]);
  });

  test("an agent that is not known yet has its direct children", () => {
    apply({ entries: [entry("a", AGENT), alias("cluster", ["k8s:x"]), entry("b", id("/cluster"))] });
    expectAuthorized(AGENT, ["a"]);
  });

  test("include those of every node alias whose selectors the node has", () => {
    apply({
      nodes: [
        makeNode({ id: AGENT, selectors: ["k8s:cluster", "k8s:gpu"] }),
        makeNode({ id: OTHER, selectors: ["k8s:gpu"] }),
      ],
      entries: [
        alias("cluster", ["k8s:cluster"]),
        alias("both", ["k8s:cluster", "k8s:gpu"]),
        entry("a", id("/cluster")),
        entry("b", id("/both")),
      ],
    });
    expectAuthorized(AGENT, ["a", "b"]);
    expectAuthorized(OTHER, []);
  });

  test("the aliases themselves are nobody's workload", () => {
    apply({ nodes: [makeNode({ id: AGENT, selectors: ["k8s:x"] })], entries: [alias("cluster", ["k8s:x"])] });
    expectAuthorized(AGENT, []);
    expect(directory.entry("cluster")?.parentId).toBe(SERVER);
  });

  test("descend: an entry's ID is a parent too, and cycles end", () => {
    apply({
      nodes: [makeNode({ id: AGENT })],
      entries: [
        entry("a", AGENT),
        entry("b", id("/a")),
        entry("c", id("/b")),
        entry("d", id("/c"), { spiffeId: id("/a") }),
      ],
    });
    expectAuthorized(AGENT, ["a", "b", "c", "d"]);
  });

  test("a join token's alias hangs below the token's agent and leads on", () => {
    const text = `spiffe_id:${AGENT}`;
    apply({
      nodes: [makeNode({ id: AGENT })],
      entries: [entry("a", AGENT, { selectors: [parseSelector(text)] }), entry("b", id("/a"))],
    });
    expectAuthorized(AGENT, ["a", "b"]);
  });

  test("a banned agent gets nothing, an expired one no aliases", () => {
    const entries = [entry("a", AGENT), alias("cluster", ["k8s:x"]), entry("b", id("/cluster"))];
    apply({ entries, nodes: [makeNode({ id: AGENT, selectors: ["k8s:x"] })] });
    expectAuthorized(AGENT, ["a", "b"]);
    clock.move(3600);
    expectAuthorized(AGENT, ["a"]);
    apply({ nodes: [makeNode({ id: AGENT, selectors: ["k8s:x"], serialNumber: "" })] });
    expectAuthorized(AGENT, []);
  });

  test("an entry ends by itself, with what hangs below it, and so does an alias", () => {
    const soon = Math.floor(START.getTime() / 1000) + 60;
    apply({
      nodes: [makeNode({ id: AGENT, selectors: ["k8s:x"] })],
      entries: [
        entry("a", AGENT, { expiresAt: soon }),
        entry("b", id("/a")),
        alias("cluster", ["k8s:x"], { expiresAt: soon + 60 }),
        entry("c", id("/cluster")),
      ],
    });
    expectAuthorized(AGENT, ["a", "b", "c"]);
    clock.move(60);
    expectAuthorized(AGENT, ["c"]);
    clock.move(60);
    expectAuthorized(AGENT, []);
  });

  test("follow changes of entries and selectors at once", () => {
    apply({
      nodes: [makeNode({ id: AGENT, selectors: ["k8s:x"] })],
      entries: [entry("a", AGENT), alias("cluster", ["k8s:x"]), entry("b", id("/cluster"))],
    });
    expectAuthorized(AGENT, ["a", "b"]);
    apply({ entries: [entry("a", OTHER)] });
    expectAuthorized(AGENT, ["b"]);
    apply({ nodes: [makeNode({ id: AGENT, selectors: ["k8s:y"] })] });
    expectAuthorized(AGENT, []);
    apply({ nodes: [makeNode({ id: AGENT, selectors: ["k8s:x"] })], deletedEntries: ["b"] });
    expectAuthorized(AGENT, []);
    apply({ deletedNodes: [AGENT] });
    expect(directory.node(AGENT)).toBeUndefined();
  });

  test("an entry of another trust domain is never held", () => {
    const foreign = parseSpiffeId("spiffe://partner.test/x");
    apply({ entries: [entry("a", AGENT, { spiffeId: foreign }), entry("b", foreign)] });
    expect(directory.counts.entries).toBe(0);
  });
});

describe("privileges", () => {
  test("T-C11 belong to an ID that an entry of this trust domain names with that bit, as long as it stands", () => {
    const until = Math.floor(START.getTime() / 1000) + 60;
    apply({
      entries: [
        entry("a", AGENT, { spiffeId: id("/admin"), admin: true }),
        entry("b", AGENT, { spiffeId: id("/down"), downstream: true }),
        entry("c", AGENT, { spiffeId: id("/brief"), admin: true, expiresAt: until }),
        entry("d", AGENT, { spiffeId: parseSpiffeId("spiffe://partner.test/admin"), admin: true }),
      ],
    });
    const admins = ["/admin", "/down", "/brief", "/web"].map((path) => directory.isAdmin(id(path)));
    expect(admins).toEqual([true, false, true, false]);
    expect([directory.isDownstream(id("/down")), directory.isDownstream(id("/admin"))]).toEqual([true, false]);
    expect(directory.isAdmin(parseSpiffeId("spiffe://partner.test/admin"))).toBe(false);
    clock.move(60);
    expect(directory.isAdmin(id("/brief"))).toBe(false);
    apply({ entries: [entry("a", AGENT, { spiffeId: id("/admin") })] });
    expect(directory.isAdmin(id("/admin"))).toBe(false);
  });
});

describe("feeds", () => {
  test("bundles are swapped whole; the own one has a feed of its own", () => {
    const partner = parseTrustDomain("partner.test");
    const before = directory.bundles.value;
    apply({ bundles: [makeBundle(TD, 3n), makeBundle(partner, 1n)] });
    expect(before.size).toBe(0);
    expect(directory.ownBundle.value?.sequenceNumber).toBe(3n);
    const own = directory.ownBundle.value;
    apply({ bundles: [makeBundle(partner, 2n)] });
    expect(directory.ownBundle.value).toBe(own);
    expect(directory.bundle(partner)?.sequenceNumber).toBe(2n);
  });
});

test("one change takes as many steps among 20,000 entries as among 20", () => {
  const steps = [20, 20_000].map((size) => {
    const index = new Directory({ trustDomain: TD, clock });
    const parents = Array.from({ length: 10 }, (_, n) => id(`/spire/agent/join_token/${n}`));
    const entries = Array.from({ length: size }, (_, n) => entry(`e${n}`, parents[n % 10] ?? AGENT));
    atOnce(index.apply(changeSet({ entries })));
    expect(index.authorizedEntries(parents[7] ?? AGENT)).toHaveLength(size / 10);
    return [...index.apply(changeSet({ entries: [entry("e7", AGENT)], deletedEntries: ["e8"] }))].length;
  });
  expect(steps[0]).toBe(steps[1]);
});

test("T-C1 after any changes, in any order, each agent is entitled to what the plain model says and to nothing else", () => {
  fc.assert(
    fc.property(fc.array(anyChange, { minLength: 1, maxLength: 40 }), (changes) => {
      const time = new ManualClock();
      const index = new Directory({ trustDomain: TD, clock: time });
      const model = new Model();
      for (const { wait = 0, ...change } of changes) {
        time.move(wait);
        atOnce(index.apply(changeSet(change)));
        model.apply(change);
        for (const agent of AGENTS) {
          const expected = model.authorized(agent, time.now());
          expect(
            index
              .authorizedEntries(agent)
              .map((found) => found.id)
              .sort(),
          ).toEqual(expected);
          for (const name of ["e1", "e4"])
            expect(index.authorizedEntry(agent, name)?.id).toBe(expected.includes(name) ? name : undefined);
        }
      }
    }),
    { numRuns: 400 },
  );
});

test("whoever watches an agent always has, a moment later, what asking would answer", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(anyChange, { minLength: 1, maxLength: 30 }), async (changes) => {
      const time = new ManualClock();
      const index = new Directory({ trustDomain: TD, clock: time });
      const stop = new AbortController();
      const latest = new Map<SpiffeId, ReadonlyMap<string, Entry>>();
      const watching = AGENTS.map(async (agent) => {
        for await (const entries of index.watchAuthorized(agent, stop.signal)) latest.set(agent, entries);
      });
      for (const { wait = 0, ...change } of changes) {
        time.move(wait);
        atOnce(index.apply(changeSet(change)));
        await new Promise(setImmediate);
        for (const agent of AGENTS) {
          const asked = index.authorizedEntries(agent);
          expect([...(latest.get(agent)?.values() ?? [])]).toEqual(asked);
        }
      }
      stop.abort();
      await Promise.all(watching);
      expect(time.sleepers).toBe(0);
    }),
    { numRuns: 200 },
  );
});
