import fc from "fast-check";
import { expect, test } from "vitest";
import { parseUniqueJson } from "../../../src/runtime/json.ts";

test.each([
  '{"a":1,"a":1}',
  '{"a":1,"\\u0061":2}',
  '{"x":{"a":[{"b":1,"b":2}]}}',
  '[{"a":"}","b":"{,","a":"\\""}]',
  '{ "a" : 1 , "b" : 2 , "a" : 3 }',
  '{"":1,"":2}',
  '{"__proto__":1,"__proto__":2}',
])("JWT-22 TDB-24 a repeated member is refused: %s", (text) => {
  expect(() => JSON.parse(text)).not.toThrow();
  expect(() => parseUniqueJson(text)).toThrow(SyntaxError);
});

test.each(['{"a":"a","b":["a","a"],"c":{"a":1}}', '[["x","x"],{"x":"x"},{"x":"x"}]', '"a"', "7", "null"])(
  "equal texts that are no members are let through: %s",
  (text) => {
    expect(parseUniqueJson(text)).toEqual(JSON.parse(text));
  },
);

test("any JSON that has no repeats reads as JSON.parse reads it", () => {
  fc.assert(
    fc.property(fc.json(), fc.constantFrom(undefined, 1), (text, space) => {
      const spaced = JSON.stringify(JSON.parse(text), null, space);
      expect(parseUniqueJson(spaced)).toEqual(JSON.parse(spaced));
    }),
  );
});

test("deep and long texts cost no more than their length", () => {
  expect(() => parseUniqueJson(`${"[".repeat(5000)}${"]".repeat(5000)}`)).not.toThrow();
  expect(parseUniqueJson(JSON.stringify({ a: '"\\'.repeat(500_000) }))).toEqual({ a: '"\\'.repeat(500_000) });
});
