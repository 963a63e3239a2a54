import fc from "fast-check";
import { expect, test } from "vitest";
import { HashIndex, hashOf } from "../../../server/directory/hash-index.ts";

const key = fc.oneof(fc.string({ maxLength: 2 }), fc.constantFrom("/a/1", "/b/1", "spiffe://example.org/workload/1"));
const step = fc.oneof(fc.record({ add: key }), fc.record({ remove: fc.nat() }));

test("an index of texts finds one that was added and not removed, however far it grows", () => {
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 400 }),
      fc.constantFrom(hashOf, (text: string) => text.length),
      (steps, hash) => {
        const index = new HashIndex();
        const held: { item: number; text: string }[] = [];
        const texts: string[] = [];
        for (const one of steps) {
          if ("add" in one) {
            const item = texts.push(one.add) - 1;
            index.add(hash(one.add), item);
            held.unshift({ item, text: one.add });
          } else if (held.length > 0) {
            const [gone] = held.splice(one.remove % held.length, 1);
            index.remove(gone?.item ?? -1);
          }
        }
        for (const text of new Set([...texts, "none"])) {
          const found = index.find(hash(text), (item) => texts[item] === text);
          const items = held.filter((one) => one.text === text).map(({ item }) => item);
          expect(items.length === 0 ? [-1] : items).toContain(found);
        }
      },
    ),
  );
});

test("texts that differ in one place have different hashes", () => {
  const hashes = new Set(Array.from({ length: 20_000 }, (_, n) => hashOf(`spiffe://example.org/ns/${n}/sa/default`)));
  expect(hashes.size).toBeGreaterThan(19_990);
});
