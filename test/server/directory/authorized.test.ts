import fc from "fast-check";
import { beforeEach, describe, expect, test } from "vitest";
import { Directory } from "../../../server/directory/authorized.ts";
import type { AttestedNode } from "../../../server/store/store.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { parseSpiffeId, parseTrustDomain, type SpiffeId, serverId } from "../../../src/spiffe/id.ts";
import { formatSelector, parseSelector, selectorSet } from "../../../src/spiffe/selector.ts";
import { id, ManualClock, makeEntry, START, TD } from "../ca/support.ts";
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
  directory.apply(changeSet(changes));
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

describe("cost", () => {
  test("one change among 100,000 entries is applied in microseconds, and one agent's answer is found at once", () => {
    const parents = Array.from({ length: 1000 }, (_, n) => id(`/spire/agent/join_token/${n}`));
    const entries = Array.from({ length: 100_000 }, (_, n) => entry(`e${n}`, parents[n % 1000] ?? AGENT));
    apply({ entries });
    const changes = entries
      .slice(0, 2000)
      .map((changed) => changeSet({ entries: [{ ...changed, revisionNumber: 1 }] }));
    const started = performance.now();
    for (const change of changes) directory.apply(change);
    const microseconds = ((performance.now() - started) * 1000) / changes.length;
    expect(microseconds).toBeLessThan(200);
    expect(directory.authorizedEntries(parents[7] ?? AGENT)).toHaveLength(100);
  });
});

/** The same rules, written as slowly and plainly as possible. */
class Model {
  readonly entries = new Map<string, Entry>();
  readonly nodes = new Map<SpiffeId, AttestedNode>();

  authorized(agent: SpiffeId, now: Date): readonly string[] {
    const node = this.nodes.get(agent);
    if (node?.serialNumber === "") return [];
    const live = [...this.entries.values()].filter(
      ({ expiresAt }) => expiresAt === 0 || expiresAt * 1000 > now.getTime(),
    );
    const has = new Set(node !== undefined && node.expiresAt > now ? node.selectors.map(formatSelector) : []);
    const aliases = live.filter(
      ({ parentId, selectors }) => parentId === SERVER && selectors.every((s) => has.has(formatSelector(s))),
    );
    const parents = new Set<SpiffeId>([agent, ...aliases.map(({ spiffeId }) => spiffeId)]);
    const found = new Set<string>();
    for (let size = -1; size !== found.size; ) {
      size = found.size;
      for (const { id: name, parentId, spiffeId } of live) {
        if (parentId === SERVER || !parents.has(parentId)) continue;
        found.add(name);
        parents.add(spiffeId);
      }
    }
    return [...found].sort();
  }
}

const AGENTS = [AGENT, OTHER, id("/spire/agent/x509pop/three")];
const PATHS = ["/a", "/b", "/c", "/d"].map(id);
const SELECTORS = ["k8s:x", "k8s:y", "k8s:z"];
const anyName = fc.constantFrom("e1", "e2", "e3", "e4", "e5", "e6", "e7");
const anyEnd = fc
  .constantFrom(0, 30, 90)
  .map((seconds) => (seconds === 0 ? 0 : Math.floor(START.getTime() / 1000) + seconds));
const anyEntry = fc
  .record({
    id: anyName,
    spiffeId: fc.constantFrom(...PATHS),
    parentId: fc.constantFrom(SERVER, ...AGENTS, ...PATHS),
    selectors: fc.subarray(SELECTORS, { minLength: 1 }).map((texts) => selectorSet(texts.map(parseSelector))),
    expiresAt: anyEnd,
  })
  .map(makeEntry);
const anyNode = fc
  .record({
    id: fc.constantFrom(...AGENTS),
    selectors: fc.subarray(SELECTORS),
    serialNumber: fc.constantFrom("1", "2", ""),
    expiresAt: fc.constantFrom(60, 120).map((seconds) => new Date(START.getTime() + seconds * 1000)),
  })
  .map(makeNode);
const anyChange: fc.Arbitrary<Changes & { readonly wait?: number }> = fc.oneof(
  fc.record({ entries: fc.array(anyEntry, { maxLength: 3 }) }),
  fc.record({ deletedEntries: fc.array(anyName, { maxLength: 2 }) }),
  fc.record({ nodes: fc.array(anyNode, { maxLength: 2 }) }),
  fc.record({ deletedNodes: fc.array(fc.constantFrom(...AGENTS), { maxLength: 1 }) }),
  fc.record({ wait: fc.integer({ min: 1, max: 40 }) }),
);

test("T-C1 after any changes, in any order, each agent is entitled to what the plain model says and to nothing else", () => {
  fc.assert(
    fc.property(fc.array(anyChange, { minLength: 1, maxLength: 40 }), (changes) => {
      const time = new ManualClock();
      const index = new Directory({ trustDomain: TD, clock: time });
      const model = new Model();
      for (const { wait = 0, ...change } of changes) {
        time.move(wait);
        index.apply(changeSet(change));
        for (const put of change.entries ?? []) model.entries.set(put.id, put);
        for (const gone of change.deletedEntries ?? []) model.entries.delete(gone);
        for (const put of change.nodes ?? []) model.nodes.set(put.id, put);
        for (const gone of change.deletedNodes ?? []) model.nodes.delete(gone);
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
        index.apply(changeSet(change));
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
