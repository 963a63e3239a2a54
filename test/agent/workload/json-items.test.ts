import { describe, expect, test } from "vitest";
import { JsonItems } from "../../../agent/workload/json-items.ts";
import { PodReader } from "../../../agent/workload/pod-reader.ts";
import type { Pod } from "../../../agent/workload/pods.ts";
import { faultOf } from "../../support/faults.ts";
import { podJson } from "../../support/kubelet.ts";

interface Read {
  readonly items: readonly unknown[];
  readonly frame: Readonly<Record<string, unknown>>;
}

/** Reads a text in pieces of this many bytes. */
function read(text: string, pieceBytes: number, maxItemBytes = 10_000): Read {
  const items: unknown[] = [];
  const reader = new JsonItems({
    ...{ maxItemBytes, peer: "the double" },
    onItem: (json) => void items.push(JSON.parse(json.toString("utf8"))),
  });
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; at += pieceBytes) reader.push(bytes.subarray(at, at + pieceBytes));
  return { frame: reader.end(), items };
}

describe("a list is read item by item", () => {
  const nasty = [
    { a: 'quo"te', b: "back\\slash", c: '\\"', d: '\\\\"]}' },
    { items: [{ x: 1 }, [{ y: [] }]], text: '"items":[{' },
    { braces: "}]{[", "k\\": "é€𝄞\u2028", n: [1, -2.5e3, true, null, {}] },
    {},
  ];
  const lists: readonly { readonly what: string; readonly text: string; readonly items: readonly unknown[] }[] = [
    {
      what: "as JSON.stringify writes it",
      text: JSON.stringify({ kind: "L", metadata: { a: [{}] }, items: nasty }),
      items: nasty,
    },
    { what: "indented", text: JSON.stringify({ items: nasty, kind: "L", more: [{}, []] }, undefined, 2), items: nasty },
    { what: "empty", text: '{"kind":"L","items":[ ]}', items: [] },
    { what: "null", text: '{"items" : null,"kind":"L"}', items: [] },
    { what: "after another list", text: '{"other":[{"z":1}],"kind":"L","items":[{"a":1}]}', items: [{ a: 1 }] },
  ];

  test.each(lists)("$what, in pieces of every size", ({ text, items }) => {
    for (let pieceBytes = 1; pieceBytes <= Buffer.byteLength(text); pieceBytes += 1) {
      const found = read(text, pieceBytes);
      expect(found.items).toEqual(items);
      const { items: _, ...frame } = JSON.parse(text) as Record<string, unknown>;
      expect(found.frame).toMatchObject(frame);
    }
  });

  test.each([
    { what: "no JSON", text: "<html>", reason: /is not JSON/ },
    { what: "nothing", text: "", reason: /is not JSON/ },
    { what: "cut off", text: '{"items":[{"a":1},{"b"', reason: /is not JSON/ },
    { what: "no comma between items", text: '{"items":[{}{}]}', reason: /is not JSON/ },
    { what: "a comma too many", text: '{"items":[{},]}', reason: /is not JSON/ },
    { what: "something after it", text: '{"items":[]} {}', reason: /is not JSON/ },
    { what: "brackets that do not match", text: '{"items":[{"a":1}}]', reason: /is not JSON/ },
    { what: "no items", text: '{"kind":"L"}', reason: /expected an items array/ },
    { what: "items that are an object", text: '{"items":{"a":1}}', reason: /expected an items array/ },
    { what: "a list of lists", text: '{"items":[[{}],{}]}', reason: /array of objects/ },
    { what: "numbers", text: '{"items":[0,0]}', reason: /array of objects/ },
    { what: "items twice", text: '{"items":[{"a":1}],"items":[]}', reason: /array of objects/ },
    { what: "items under an escaped key", text: '{"\\u0069tems":[{"a":1}]}', reason: /array of objects/ },
    {
      what: "other items under an escaped key",
      text: '{"items":[{}],"\\u0069tems":[{"a":1}]}',
      reason: /array of objects/,
    },
    { what: "an array", text: '[{"items":[]}]', reason: /expected an object/ },
  ])("but $what is refused", ({ text, reason }) => {
    for (const pieceBytes of [1, 3, 1000])
      expect(faultOf(() => read(text, pieceBytes))).toMatchObject({ kind: "unavailable", message: reason });
  });

  test.each([
    { what: "an item", text: `{"items":[{"a":"${"x".repeat(2000)}"}]}` },
    { what: "an item without an end", text: `{"items":[{"a":"${"x".repeat(2000)}` },
    { what: "what stands around them", text: `{"items":[{}],"a":"${"x".repeat(2000)}"}` },
  ])("and $what that is too long is refused before it is parsed", ({ text }) =>
    expect(faultOf(() => read(text, 100, 1000))).toMatchObject({ message: /longer than 1000 bytes/ }),
  );
});

describe("pods that have not changed", () => {
  const json = (...names: readonly string[]): string =>
    JSON.stringify({ items: names.map((name) => podJson({ uid: `uid-${name}`, name })) });

  function podsOf(reader: PodReader, text: string): readonly Pod[] {
    const reading = reader.begin();
    reading.push(Buffer.from(text));
    return reading.end();
  }

  test("are not parsed again, in whatever order they come", () => {
    const reader = new PodReader("the double");
    const first = podsOf(reader, json("a", "b", "c"));
    expect(podsOf(reader, json("c", "a", "b"))).toBe(first);
    const changed = podsOf(reader, json("c", "a", "d"));
    expect(changed.map(({ name }) => name)).toEqual(["c", "a", "d"]);
    expect(changed[1]).toBe(first[0]);
    expect(podsOf(reader, json("a"))).toHaveLength(1);
    expect(podsOf(reader, json("a", "a"))).toHaveLength(2);
    expect(podsOf(reader, json("a"))).toHaveLength(1);
    expect(podsOf(reader, '{"items":null}')).toEqual([]);
  });

  test("stay known when a list cannot be read", () => {
    const reader = new PodReader("the double");
    const first = podsOf(reader, json("a", "b"));
    for (const broken of ['{"items":[{"metadata":{"uid":"x"}},', '{"items":[{"metadata":}]}'])
      expect(() => podsOf(reader, broken)).toThrow(/is not JSON/);
    expect(podsOf(reader, json("b", "a"))).toBe(first);
  });
});
