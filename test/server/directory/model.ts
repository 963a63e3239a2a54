import fc from "fast-check";
import type { AttestedNode } from "../../../server/store/store.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { type SpiffeId, serverId } from "../../../src/spiffe/id.ts";
import { formatSelector, parseSelector, selectorSet } from "../../../src/spiffe/selector.ts";
import { id, makeEntry, START, TD } from "../ca/support.ts";
import { type Changes, makeNode } from "./support.ts";

const SERVER = serverId(TD);

/** The same rules, written as slowly and plainly as possible. */
export class Model {
  readonly entries = new Map<string, Entry>();
  readonly nodes = new Map<SpiffeId, AttestedNode>();

  apply({ entries = [], deletedEntries = [], nodes = [], deletedNodes = [] }: Changes): void {
    for (const put of entries) this.entries.set(put.id, put);
    for (const gone of deletedEntries) this.entries.delete(gone);
    for (const put of nodes) this.nodes.set(put.id, put);
    for (const gone of deletedNodes) this.nodes.delete(gone);
  }

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

export const AGENTS = [
  id("/spire/agent/join_token/one"),
  id("/spire/agent/join_token/two"),
  id("/spire/agent/x509pop/three"),
];
const PATHS = ["/a", "/b", "/c", "/d"].map(id);
const SELECTORS = ["k8s:x", "k8s:y", "k8s:z"];
const anyName = fc.constantFrom("e1", "e2", "e3", "e4", "e5", "e6", "e7");
const anyEnd = fc
  .constantFrom(0, 30, 90)
  .map((seconds) => (seconds === 0 ? 0 : Math.floor(START.getTime() / 1000) + seconds));
export const anyEntry = fc
  .record({
    id: anyName,
    spiffeId: fc.constantFrom(...PATHS),
    parentId: fc.constantFrom(SERVER, ...AGENTS, ...PATHS),
    selectors: fc.subarray(SELECTORS, { minLength: 1 }).map((texts) => selectorSet(texts.map(parseSelector))),
    expiresAt: anyEnd,
  })
  .map(makeEntry);
export const anyNode = fc
  .record({
    id: fc.constantFrom(...AGENTS),
    selectors: fc.subarray(SELECTORS),
    serialNumber: fc.constantFrom("1", "2", ""),
    expiresAt: fc.constantFrom(60, 120).map((seconds) => new Date(START.getTime() + seconds * 1000)),
  })
  .map(makeNode);
export const anyChange: fc.Arbitrary<Changes & { readonly wait?: number }> = fc.oneof(
  fc.record({ entries: fc.array(anyEntry, { maxLength: 3 }) }),
  fc.record({ deletedEntries: fc.array(anyName, { maxLength: 2 }) }),
  fc.record({ nodes: fc.array(anyNode, { maxLength: 2 }) }),
  fc.record({ deletedNodes: fc.array(fc.constantFrom(...AGENTS), { maxLength: 1 }) }),
  fc.record({ wait: fc.integer({ min: 1, max: 40 }) }),
);
