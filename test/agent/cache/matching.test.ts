import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { SelectorIndex } from "../../../agent/cache/matching.ts";
import { matches, selectorTexts } from "../../../src/spiffe/selector.ts";
import { entry, selectors } from "./support.ts";

const names = [
  "unix:uid:0",
  "unix:uid:1000",
  "unix:gid:1000",
  "unix:path:/bin/a",
  "k8s:ns:default",
  "k8s:sa:web",
] as const;
const someSelectors = fc.uniqueArray(fc.constantFrom(...names), { minLength: 1, maxLength: 4 });

describe("the index of entries by selector", () => {
  test("finds what a look at every entry finds, through additions and removals", () => {
    const steps = fc.array(fc.record({ remove: fc.boolean(), id: fc.nat(15).map(String), has: someSelectors }), {
      maxLength: 60,
    });
    fc.assert(
      fc.property(steps, fc.uniqueArray(fc.constantFrom(...names)), (changes, caller) => {
        const index = new SelectorIndex();
        const model = new Map<string, ReturnType<typeof entry>>();
        for (const { remove, id, has } of changes) {
          const held = model.get(id);
          if (held !== undefined) index.delete(held);
          model.delete(id);
          if (remove) continue;
          const added = entry(id, { selectors: has });
          model.set(id, added);
          index.add(added);
        }
        const present = selectorTexts(selectors(...caller));
        const naive = [...model.values()].filter((each) => matches(each.selectors, present));
        expect(index.match(present).sort(byId)).toEqual(naive.sort(byId));
      }),
    );
  });

  test("an entry with one selector that the caller lacks is not found", () => {
    const index = new SelectorIndex();
    const narrow = entry("a", { selectors: ["unix:uid:1000", "unix:gid:1000"] });
    index.add(narrow);
    expect(index.match(selectorTexts(selectors("unix:uid:1000")))).toEqual([]);
    expect(index.match(selectorTexts(selectors("unix:uid:1000", "unix:gid:1000", "unix:user:me")))).toEqual([narrow]);
  });

  test("does not look at entries that share a common selector but need a rare one", () => {
    const index = new SelectorIndex();
    for (let at = 0; at < 5000; at += 1) index.add(entry(`e${at}`, { selectors: ["k8s:ns:default", `k8s:pod:${at}`] }));
    let looked = 0;
    const present = new Proxy(selectorTexts(selectors("k8s:ns:default", "k8s:pod:77")), {
      get(target, key) {
        if (key === "has") {
          return (text: string) => {
            looked += 1;
            return target.has(text);
          };
        }
        const value: unknown = Reflect.get(target, key);
        return typeof value === "function" ? (value as (...args: unknown[]) => unknown).bind(target) : value;
      },
    });
    expect(index.match(present).map(({ id }) => id)).toEqual(["e77"]);
    expect(looked).toBeLessThan(10);
  });
});

function byId(a: { readonly id: string }, b: { readonly id: string }): number {
  return a.id < b.id ? -1 : 1;
}
