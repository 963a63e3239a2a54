import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { ConfigObject, ConfigValue } from "../../../src/runtime/config-value.ts";
import { isFault } from "../../../src/runtime/fault.ts";
import { parseHcl } from "../../../src/runtime/hcl.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import vectors from "../../vectors/hcl.json" with { type: "json" };

/** The form of `test/vectors/hcl.json`. */
function treeOf(value: ConfigValue): unknown {
  if (value.kind === "object") return { o: entriesOf(value) };
  if (value.kind === "list") return { l: value.items.map(treeOf) };
  return value.kind === "null" ? null : { [value.kind.slice(0, 1)]: value.text };
}

function entriesOf(object: ConfigObject): unknown {
  return object.entries.map(({ key, value }) => [key, treeOf(value)]);
}

describe("HCL 1, held against the reference implementation's results", () => {
  const named = vectors.map(({ text, tree }) => ({ name: JSON.stringify(text), text, tree }));

  test.each(named.filter(({ tree }) => tree !== null))(
    "$name is read as HashiCorp's parser reads it",
    ({ text, tree }) => {
      expect(entriesOf(parseHcl(text, "a.conf"))).toEqual(tree);
    },
  );

  test.each(named.filter(({ tree }) => tree === null))("$name is refused, as by HashiCorp's parser", ({ text }) => {
    expect(faultOf(() => parseHcl(text, "a.conf"))).toMatchObject(refusal("invalid", "config-syntax"));
  });
});

describe("places", () => {
  test("every key and value knows its line and column", () => {
    const text = 'server {\n  # comment\n  ca_ttl = "1h" /* x\n */ log = [\n    1,\n    <<E\ntext\nE\n  ]\n}\n';
    const places: string[] = [];
    const visit = (value: ConfigValue): void => {
      if (value.kind === "list") value.items.forEach(visit);
      if (value.kind !== "object") places.push(`${value.kind}@${value.at.line}:${value.at.column}`);
      else
        for (const entry of value.entries) {
          places.push(`${entry.key}@${entry.at.line}:${entry.at.column}`);
          visit(entry.value);
        }
    };
    visit(parseHcl(text, "a.conf"));
    expect(places).toEqual([
      "server@1:1",
      "ca_ttl@3:3",
      "string@3:12",
      "log@4:5",
      "number@5:5",
      "string@6:5",
      "list@4:11",
    ]);
  });

  test.each([
    { text: "a =\n", message: "a.conf:2:1: expected a value, found the end of the file" },
    { text: "a = 08", message: "a.conf:1:5: illegal octal number" },
    { text: "a = 1\nb = c\n", message: 'a.conf:2:5: expected a value, found "c"; strings need quotes' },
    { text: 'a = "x\n', message: "a.conf:1:5: string not terminated" },
    { text: 'a = "x\\q"', message: "a.conf:1:7: illegal escape in string" },
    { text: "server {\n  a = 1\n", message: "a.conf:3:1: expected a key, found the end of the file" },
    { text: 'a "b" = 1', message: 'a.conf:1:7: a key "a" with a label is a block: write "{" instead of "="' },
    { text: "a: 1", message: 'a.conf:1:2: illegal character ":"' },
    { text: "a = [1 2]", message: 'a.conf:1:8: expected "," or "]", found "2"' },
    { text: "\n\n/* x", message: "a.conf:3:1: comment not terminated" },
    { text: "a = <<E\nx\n", message: 'a.conf:1:5: heredoc not terminated: no line "E"' },
    { text: "a\nb", message: 'a.conf:2:2: expected "=" or "{" after key "a", found the end of the file' },
    { text: 'a "p4ss"', message: 'a.conf:1:9: expected "=" or "{" after key "a", found the end of the file' },
    { text: '"p4ss" 1', message: 'a.conf:1:8: expected "=" or "{" after key, found "1"' },
    { text: 'a = [1 "p4ss"]', message: 'a.conf:1:8: expected "," or "]", found a string' },
  ])("$message", ({ text, message }) => expect(faultOf(() => parseHcl(text, "a.conf")).message).toBe(message));
});

describe("bounds", () => {
  test.each([
    { what: "objects", text: "a { ".repeat(100_000) },
    { what: "lists", text: `a = ${"[".repeat(100_000)}` },
    { what: "labels", text: `${"a ".repeat(100_000)}{}` },
    { what: "objects in lists", text: `a = ${"[{b = ".repeat(100_000)}` },
  ])("T-F4 a hundred thousand nested $what are refused at once", ({ text }) => {
    const started = performance.now();
    expect(faultOf(() => parseHcl(text, "a.conf")).message).toContain("levels deep");
    expect(performance.now() - started).toBeLessThan(2000);
  });

  test.each([
    { what: "keys", text: "a = 1\n".repeat(150_000) },
    { what: "comments", text: "# x\n".repeat(250_000) },
    { what: "one string", text: `a = "${"x".repeat(1_000_000)}"` },
    { what: "one heredoc", text: `a = <<E\n${"x\n".repeat(500_000)}E\n` },
    { what: "interpolations", text: `a = "${"${x}".repeat(250_000)}"` },
  ])("T-F4 a megabyte of $what takes time in proportion", ({ text }) => {
    const started = performance.now();
    parseHcl(text, "a.conf");
    expect(performance.now() - started).toBeLessThan(3000);
  });

  const piece = fc.constantFrom(
    ...' \n\t#/*{}[]=,"\\$<-.0x1eEOFab',
    "<<E\n",
    "\nE\n",
    "${",
    "é",
    "\u0000",
    "true",
    '"',
    "//",
  );
  test("T-F4 no text makes it throw anything but a fault with a place", () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string({ unit: "binary" }),
          fc.array(piece, { maxLength: 60 }).map((all) => all.join("")),
        ),
        (text) => {
          try {
            parseHcl(text, "a.conf");
          } catch (error) {
            expect(isFault(error, "invalid")).toBe(true);
            expect(String((error as Error).message)).toMatch(/^a\.conf:\d+:\d+: /);
          }
        },
      ),
      { numRuns: 3000 },
    );
  });
});
