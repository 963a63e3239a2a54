import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  type InnerList,
  isInnerList,
  parseDictionary,
  serializeInnerList,
  serializeItem,
  Token,
} from "../../../src/client/structured-fields.ts";
import { faultOf, refusal } from "../../support/faults.ts";

describe("a dictionary", () => {
  test("is read with items, inner lists and parameters, and written in the one canonical form", () => {
    const text = 'a=( "x";req  "y" );n=1;s="q\\"\\\\";t=w/z;b=:AQI=:;f=?0;g,  b=-12 ,c,d=?0;x, e=tok';
    const read = parseDictionary(text);
    expect([...read.keys()]).toEqual(["a", "b", "c", "d", "e"]);
    const list = read.get("a") as InnerList;
    expect(isInnerList(list)).toBe(true);
    expect([...list.parameters]).toEqual([
      ["n", 1],
      ["s", 'q"\\'],
      ["t", new Token("w/z")],
      ["b", Buffer.from([1, 2])],
      ["f", false],
      ["g", true],
    ]);
    expect(serializeInnerList(list)).toBe('("x";req "y");n=1;s="q\\"\\\\";t=w/z;b=:AQI=:;f=?0;g');
    expect(read.get("b")).toEqual({ value: -12, parameters: new Map() });
    expect(read.get("c")).toEqual({ value: true, parameters: new Map() });
    expect(read.get("d")).toEqual({ value: false, parameters: new Map([["x", true]]) });
  });

  test.each([
    'a="x',
    'a="\\n"',
    'a="é"',
    "a=(",
    'a=("x""y")',
    'a=("x" "y"',
    "a=:AQ I=:",
    "a=:AR==:",
    "a=:AQI=",
    "a=1.5",
    "a=1234567890123456",
    "a=-",
    "a=?2",
    "a=",
    "A=1",
    "a=1,",
    "a=1 b=2",
    "a=1;",
    "a=1;A",
    "a=1;x;x",
    "a=1, a=2",
    "=1",
    "a=1\u0000",
    "a=1\nb=2",
    `a="${"x".repeat(9000)}"`,
  ])("%j is refused", (text) => {
    expect(faultOf(() => parseDictionary(text))).toMatchObject(refusal("invalid", "structured-field"));
  });

  test("what is written is read back as it was", () => {
    const ascii = fc.string({
      unit: fc.integer({ min: 0x20, max: 0x7e }).map((code) => String.fromCharCode(code)),
      maxLength: 40,
    });
    const bare = fc.oneof(
      ascii,
      fc.integer({ min: -999_999_999_999_999, max: 999_999_999_999_999 }),
      fc.boolean(),
      fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
    );
    const parameters = fc
      .array(fc.tuple(fc.stringMatching(/^[a-z*][a-z0-9_.*-]{0,9}$/), bare), { maxLength: 5 })
      .map((pairs) => new Map(pairs));
    const item = fc.record({ value: bare, parameters });
    fc.assert(
      fc.property(fc.record({ items: fc.array(item, { maxLength: 5 }), parameters }), item, (list, single) => {
        const read = parseDictionary(`l=${serializeInnerList(list)}, i=${serializeItem(single)}`);
        expect(read.get("l")).toEqual(list);
        expect(read.get("i")).toEqual(single);
      }),
    );
  });

  test("no text takes time out of proportion, and nothing but a fault is thrown", () => {
    const unit = fc.constantFrom("a", "=", "(", ")", '"', "\\", ":", "A", ";", ",", " ", "?", "1", "-", "\t");
    fc.assert(
      fc.property(fc.string({ unit, maxLength: 200 }), (text) => {
        try {
          parseDictionary(text);
        } catch (error) {
          expect(error).toMatchObject(refusal("invalid", "structured-field"));
        }
      }),
      { numRuns: 2000 },
    );
    for (const part of ['"\\"', "a=(", ";a", ":A", " ", "((", "a,"]) {
      const started = performance.now();
      try {
        parseDictionary(`a=${part.repeat(Math.floor(8000 / part.length))}`);
      } catch {
        // Refused is as good.
      }
      expect(performance.now() - started).toBeLessThan(2000);
    }
  });
});
