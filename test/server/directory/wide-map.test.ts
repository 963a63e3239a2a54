import fc from "fast-check";
import { expect, test } from "vitest";
import { WideMap } from "../../../server/directory/wide-map.ts";

const key = fc.oneof(fc.string({ maxLength: 3 }), fc.constantFrom("/a/1", "/b/1", "spiffe://example.org/workload/1"));
const step = fc.record({ key, value: fc.option(fc.nat(), { nil: undefined }) });

test("a wide map holds what a map holds", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const wide = new WideMap<string, number>();
      const map = new Map<string, number>();
      for (const { key, value } of steps) {
        if (value === undefined) {
          wide.delete(key);
          map.delete(key);
        } else {
          wide.set(key, value);
          map.set(key, value);
        }
        expect(wide.size).toBe(map.size);
      }
      for (const { key } of steps) expect(wide.get(key)).toBe(map.get(key));
    }),
  );
});
