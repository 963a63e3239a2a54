import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Directory } from "../../../server/directory/authorized.ts";
import { atOnce, inTurns } from "../../../server/directory/steps.ts";
import type { AttestedNode } from "../../../server/store/store.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { parseTrustDomain, type SpiffeId } from "../../../src/spiffe/id.ts";
import { parseSelector } from "../../../src/spiffe/selector.ts";
import { id, ManualClock, makeEntry, TD } from "../ca/support.ts";
import { AGENTS, anyEntry, anyNode, Model } from "./model.ts";
import { type Changes, changeSet, makeBundle, makeNode } from "./support.ts";

const NAMES = ["e1", "e2", "e3", "e4", "e5", "e6", "e7"];
const PARTNER = parseTrustDomain("partner.test");

const anySet = fc.record({
  entries: fc.uniqueArray(anyEntry, { maxLength: 6, selector: (entry) => entry.id }),
  deletedEntries: fc.subarray(NAMES, { maxLength: 3 }),
  nodes: fc.uniqueArray(anyNode, { maxLength: 3, selector: (node) => node.id }),
  deletedNodes: fc.subarray(AGENTS, { maxLength: 1 }),
  bundles: fc.constantFrom([], [makeBundle(TD)], [makeBundle(TD, 2n), makeBundle(PARTNER)]),
});

/** Everything that can be asked. */
function answers(directory: Directory): object {
  return {
    entries: NAMES.map((name) => directory.entry(name)),
    nodes: AGENTS.map((agent) => directory.node(agent)),
    authorized: AGENTS.map((agent) => idsOf(directory.authorizedEntries(agent))),
    each: AGENTS.map((agent) => NAMES.filter((name) => directory.authorizedEntry(agent, name) !== undefined)),
    admins: ["/a", "/b", "/c", "/d"].map((path) => [directory.isAdmin(id(path)), directory.isDownstream(id(path))]),
    bundles: [...directory.bundles.value.values()],
    own: directory.ownBundle.value,
    counts: directory.counts,
  };
}

function idsOf(entries: readonly Entry[]): readonly string[] {
  return entries.map((entry) => entry.id).sort();
}

function filled(changes: readonly Changes[]): { readonly directory: Directory; readonly model: Model } {
  const directory = new Directory({ trustDomain: TD, clock: new ManualClock() });
  const model = new Model();
  for (const change of changes) {
    atOnce(directory.apply(changeSet(change)));
    model.apply(change);
  }
  return { directory, model };
}

function expectModel(directory: Directory, model: Model): void {
  const now = new ManualClock().now();
  for (const agent of AGENTS) expect(idsOf(directory.authorizedEntries(agent))).toEqual(model.authorized(agent, now));
  expect(directory.counts).toMatchObject({ entries: model.entries.size, nodes: model.nodes.size });
}

test("T-C1 whoever asks between any two steps of a change is answered by all of what was, or by all of what is", () => {
  fc.assert(
    fc.property(fc.array(anySet, { maxLength: 4 }), anySet, fc.infiniteStream(fc.boolean()), (before, change, asks) => {
      const { directory, model } = filled(before);
      const old = answers(directory);
      const after = filled([...before, change]);
      const next = answers(after.directory);
      let isNext = false;
      for (const _ of directory.apply(changeSet(change))) {
        if (asks.next().value === false) continue;
        const now = answers(directory);
        isNext ||= !isDeepStrictEqual(now, old);
        expect(now).toEqual(isNext ? next : old);
      }
      expect(answers(directory)).toEqual(next);
      model.apply(change);
      expectModel(directory, model);
    }),
    { numRuns: 500 },
  );
});

test("T-C1 a change that ends between two steps is held whole or not at all, and the next one is right", () => {
  fc.assert(
    fc.property(fc.array(anySet, { maxLength: 3 }), anySet, fc.nat(40), anySet, (before, broken, steps, later) => {
      const { directory, model } = filled(before);
      const old = answers(directory);
      const work = directory.apply(changeSet(broken));
      for (let step = 0; step < steps; step += 1) work.next();
      work.return();
      if (!isDeepStrictEqual(answers(directory), old)) model.apply(broken);
      expectModel(directory, model);
      atOnce(directory.apply(changeSet(later)));
      model.apply(later);
      expectModel(directory, model);
    }),
    { numRuns: 500 },
  );
});

test("T-C1 a whole reload is unseen until its end, and leaves nothing behind when it is abandoned", () => {
  fc.assert(
    fc.property(fc.array(anySet, { maxLength: 3 }), anySet, fc.boolean(), (before, content, finishes) => {
      const { directory, model } = filled(before);
      const old = answers(directory);
      const reload = directory.reload();
      for (const entry of content.entries) {
        reload.entry(entry);
        expect(answers(directory)).toEqual(old);
      }
      for (const node of content.nodes) reload.node(node);
      for (const bundle of content.bundles) reload.bundle(bundle);
      expect(answers(directory)).toEqual(old);
      atOnce(finishes ? reload.finish() : reload.abandon());
      const loaded = new Model();
      loaded.apply({ entries: content.entries, nodes: content.nodes });
      if (finishes) expect([...directory.bundles.value.values()]).toEqual(content.bundles);
      else expect(answers(directory)).toEqual(old);
      expectModel(directory, finishes ? loaded : model);
    }),
    { numRuns: 500 },
  );
});

test("a reload keeps the entries that are as they were, and takes those in that differ under the same revision", () => {
  const { directory } = filled([{ entries: ["e1", "e2", "e3"].map((name) => makeEntry({ id: name })) }]);
  const held = directory.entry("e1");
  const reload = directory.reload();
  reload.entry(makeEntry({ id: "e1" }));
  reload.entry(makeEntry({ id: "e2", selectors: [parseSelector("unix:uid:0")] }));
  atOnce(reload.finish());
  expect(directory.entry("e1")).toBe(held);
  expect(directory.entry("e2")?.selectors).toEqual([{ type: "unix", value: "uid:0" }]);
  expect(directory.entry("e3")).toBeUndefined();
  const second = directory.reload();
  atOnce(second.finish());
  expect(directory.counts.entries).toBe(0);
});

test("a large change gives the event loop its turns, and tells each watcher of it once, when all of it is held", async () => {
  const agents = Array.from({ length: 60 }, (_, n) => id(`/spire/agent/join_token/${n}`));
  const nodes: AttestedNode[] = agents.map((agent, n) => makeNode({ id: agent, selectors: [`k8s:${n % 2}`] }));
  const alias = makeEntry({
    id: "alias",
    spiffeId: id("/cluster"),
    parentId: id("/spire/server"),
    selectors: [parseSelector("k8s:1")],
  });
  const directory = new Directory({ trustDomain: TD, clock: systemClock });
  atOnce(directory.apply(changeSet({ nodes, entries: [alias] })));
  const stop = new AbortController();
  const told = new Map<SpiffeId, number[]>(agents.map((agent) => [agent, []]));
  const watching = agents.map(async (agent) => {
    for await (const entries of directory.watchAuthorized(agent, stop.signal)) told.get(agent)?.push(entries.size);
  });
  await new Promise(setImmediate);
  const entries = Array.from({ length: 30_000 }, (_, n) =>
    makeEntry({ id: `e${n}`, spiffeId: id(`/w/${n}`), parentId: id("/cluster") }),
  );
  let turns = 0;
  const timer = setInterval(() => {
    turns += 1;
  }, 1);
  await inTurns(systemClock, directory.apply(changeSet({ entries })));
  clearInterval(timer);
  await new Promise(setImmediate);
  expect(turns).toBeGreaterThan(5);
  expect([...told.values()]).toEqual(agents.map((_, n) => (n % 2 === 1 ? [0, 30_000] : [0])));
  await inTurns(systemClock, directory.apply(changeSet({ bundles: [makeBundle(PARTNER)] })));
  await new Promise(setImmediate);
  expect([...told.values()]).toEqual(agents.map((_, n) => (n % 2 === 1 ? [0, 30_000, 30_000] : [0, 0])));
  stop.abort();
  await Promise.all(watching);
});
