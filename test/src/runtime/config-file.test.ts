import { chmod, mkdir, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { parseJson, parseYaml } from "../../../src/runtime/config-document.ts";
import { readConfigFile } from "../../../src/runtime/config-file.ts";
import type { ConfigValue } from "../../../src/runtime/config-value.ts";
import { isFault } from "../../../src/runtime/fault.ts";
import { parseHcl } from "../../../src/runtime/hcl.ts";
import { faultOf, refusal } from "../../support/faults.ts";

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-config-"));
});
afterEach(() => rm(folder, { recursive: true }));

async function file(name: string, text: string | Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

/** Keys and spellings, without places. */
function plain(value: ConfigValue): unknown {
  if (value.kind === "object") return value.entries.map((entry) => [entry.key, plain(entry.value)]);
  if (value.kind === "list") return value.items.map(plain);
  return value.kind === "null" ? null : `${value.kind} ${value.text}`;
}

const HCL =
  'server {\n  trust_domain = "a.test"\n  bind_port = 8081\n  audit = true\n  ids = ["x", "y"]\n}\nplugins {\n  DataStore "sql" {\n    plugin_data {}\n  }\n}\n';
const YAML =
  "server:\n  trust_domain: a.test\n  bind_port: 8081\n  audit: true\n  ids: [x, y]\nplugins:\n  DataStore:\n    sql:\n      plugin_data: {}\n";
const JSON_TEXT =
  '{"server": {"trust_domain": "a.test", "bind_port": 8081, "audit": true, "ids": ["x", "y"]},\n "plugins": {"DataStore": {"sql": {"plugin_data": {}}}}}';

describe("the three formats", () => {
  test.each([
    { name: "server.conf", text: HCL },
    { name: "server.hcl", text: HCL },
    { name: "server", text: HCL },
    { name: "server.yaml", text: YAML },
    { name: "server.YML", text: YAML },
    { name: "server.json", text: JSON_TEXT },
    { name: "server.conf", text: `\n ${JSON_TEXT}` },
  ])("$name is the same configuration in each", async ({ name, text }) => {
    const { root } = readConfigFile(await file(name, text));
    expect(plain(root)).toEqual(plain(parseHcl(HCL, "")));
  });

  test.each([
    { name: "empty.conf", text: "" },
    { name: "empty.yaml", text: "" },
    { name: "comment.yaml", text: "# nothing\n" },
    { name: "null.yaml", text: "null\n" },
    { name: "empty.json", text: "{}" },
  ])("$name has no keys", async ({ name, text }) =>
    expect(readConfigFile(await file(name, text)).root.entries).toEqual([]),
  );
});

describe("faults of YAML and JSON name the place", () => {
  test.each([
    { name: "a.yaml", text: "a: 1\nb: [1\n", message: /a\.yaml:3:1: / },
    { name: "a.yaml", text: "a: 1\na: 2\n", message: /a\.yaml:2:1: Map keys must be unique/ },
    { name: "a.yaml", text: "a: &x 1\nb: *x\n", message: /a\.yaml:2:4: aliases are not supported/ },
    { name: "a.yaml", text: "a: !secret x\n", message: /a\.yaml:1:4: / },
    { name: "a.yaml", text: "a: 1\n---\nb: 2\n", message: /a\.yaml:2:1: / },
    { name: "a.yaml", text: "- a\n", message: /a\.yaml:1:1: expected keys and values at the top/ },
    { name: "a.yaml", text: "? [a]\n: 1\n", message: /keys must be plain words/ },
    { name: "a.json", text: '{"a": 1,}', message: /a\.json:1:9: / },
    { name: "a.json", text: '{"a": 1, "a": 2}', message: /a\.json:1:10: Map keys must be unique/ },
    { name: "a.json", text: "{'a': 1}", message: /a\.json:1:2: / },
    { name: "a.json", text: "a: 1", message: /a\.json:1/ },
    { name: "a.json", text: "[1]", message: /a\.json:1:1: expected keys and values at the top/ },
    { name: "a.json", text: '{"a": 1', message: /a\.json:1/ },
  ])("$name $text", async ({ name, text, message }) => {
    const path = await file(name, text);
    const fault = faultOf(() => readConfigFile(path));
    expect(fault).toMatchObject(refusal("invalid", "config-syntax"));
    expect(fault.message).toMatch(message);
  });
});

test.each([
  { name: "a.json", text: '{"a": "p4ss",}' },
  { name: "a.json", text: '{"a": p4ss}' },
  { name: "a.json", text: '{"a" "p4ss"}' },
  { name: "a.json", text: "p4ss" },
  { name: "a.yaml", text: "a: 'p4ss\n" },
  { name: "a.yaml", text: "a: b: p4ss\n" },
  { name: "a.conf", text: 'a "password=p4ss"\n' },
  { name: "a.conf", text: 'a = "p4ss' },
])("a syntax fault never quotes the text: $name $text", async ({ name, text }) => {
  const path = await file(name, text);
  expect(faultOf(() => readConfigFile(path)).message).not.toContain("p4s");
});

describe("files", () => {
  test("one that isn't there is said in SPIRE's words", () => {
    const fault = faultOf(() => readConfigFile("/nowhere/server.conf"));
    expect(fault).toMatchObject(refusal("not_found", "config-not-found"));
    expect(fault.message).toBe("could not find config file /nowhere/server.conf: please use the -config flag");
  });

  test("a directory, or one that can't be read, is another fault", async () => {
    await mkdir(join(folder, "conf"));
    expect(faultOf(() => readConfigFile(join(folder, "conf")))).toMatchObject(
      refusal("unavailable", "config-unreadable"),
    );
    const path = await file("closed.conf", "a = 1");
    await chmod(path, 0);
    if (process.geteuid?.() !== 0) expect(faultOf(() => readConfigFile(path)).kind).toBe("unavailable");
  });

  test("T-F4 a file of more than a megabyte is refused before it's read", async () => {
    const path = await file("big.conf", "");
    await truncate(path, 1024 ** 4);
    const fault = faultOf(() => readConfigFile(path));
    expect(fault).toMatchObject(refusal("invalid", "config-syntax"));
    expect(fault.message).toBe(`${path}: larger than 1048576 bytes`);
  });

  test("T-F4 so is one that expansion makes larger", async () => {
    const path = await file("grow.conf", "# $BIG $BIG\n");
    expect(faultOf(() => readConfigFile(path, { variables: { BIG: "x".repeat(600_000) } })).message).toContain(
      "larger than",
    );
  });

  test("bytes that aren't UTF-8 are refused", async () => {
    const path = await file("latin1.conf", Buffer.from('a = "\xe9"', "latin1"));
    expect(faultOf(() => readConfigFile(path)).message).toBe(`${path}: not UTF-8 text`);
  });

  test("variables are expanded before the text is read, only when asked", async () => {
    const path = await file("env.conf", 'a = "$NAME"\nb = $PORT\n');
    const { root, unsetVariables } = readConfigFile(path, { variables: { PORT: "81" } });
    expect(plain(root)).toEqual([
      ["a", "string "],
      ["b", "number 81"],
    ]);
    expect(unsetVariables).toEqual(["NAME"]);
    expect(faultOf(() => readConfigFile(path)).message).toContain(":2:5: illegal character");
  });
});

describe("bounds of YAML and JSON", () => {
  test.each([
    { what: "YAML flow lists", read: parseYaml, text: `a: ${"[".repeat(200_000)}` },
    { what: "YAML flow lists that close", read: parseYaml, text: `a: ${"[".repeat(50_000)}${"]".repeat(50_000)}` },
    {
      what: "YAML maps",
      read: parseYaml,
      text: Array.from({ length: 1000 }, (_, depth) => `${" ".repeat(depth)}a:\n`).join(""),
    },
    { what: "JSON lists", read: parseJson, text: `{"a": ${"[".repeat(100_000)}${"]".repeat(100_000)}}` },
    { what: "JSON objects", read: parseJson, text: `${'{"a":'.repeat(50_000)}1${"}".repeat(50_000)}` },
  ])("T-F4 deeply nested $what are refused", ({ read, text }) => {
    const started = performance.now();
    expect(faultOf(() => read(text, "a"))).toMatchObject(refusal("invalid", "config-syntax"));
    expect(performance.now() - started).toBeLessThan(5000);
  });

  test("T-F4 a bomb of aliases stays small", () => {
    const bomb = ["a: &a [x,x,x,x,x,x,x,x,x]"];
    for (const [name, last] of ["ba", "cb", "dc", "ed", "fe", "gf", "hg"])
      bomb.push(`${name}: &${name} [${Array(9).fill(`*${last}`).join()}]`);
    expect(faultOf(() => parseYaml(bomb.join("\n"), "a")).message).toContain("aliases are not supported");
  });

  const piece = fc.constantFrom(..."{}[]:,\"'#&*!|>-?%@` \n\tab1", "- ", ": ", "null", "true", "\n  ", "---\n");
  test.each([
    { what: "YAML", read: parseYaml },
    { what: "JSON", read: parseJson },
  ])("T-F4 no text makes the $what reader throw anything but a fault", ({ read }) => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string({ unit: "binary" }),
          fc.array(piece, { maxLength: 40 }).map((all) => all.join("")),
        ),
        (text) => {
          try {
            read(text, "a");
          } catch (error) {
            expect(isFault(error, "invalid")).toBe(true);
          }
        },
      ),
      { numRuns: 2000 },
    );
  });

  test("what JSON says is what is read", () => {
    const key = fc.stringMatching(/^[a-z_]{1,8}$/);
    const { tree } = fc.letrec((tie) => ({
      tree: fc.dictionary(
        key,
        fc.oneof(fc.string(), fc.integer(), fc.boolean(), fc.constant(null), fc.array(fc.string()), tie("tree")),
        { maxKeys: 4 },
      ),
    }));
    const spell = (value: unknown): unknown => {
      if (value === null) return null;
      if (Array.isArray(value)) return value.map(spell);
      if (typeof value === "object") return Object.entries(value).map(([name, part]) => [name, spell(part)]);
      return `${typeof value === "boolean" ? "bool" : typeof value} ${value}`;
    };
    fc.assert(
      fc.property(tree, (value) => {
        expect(plain(parseJson(JSON.stringify(value), "a"))).toEqual(spell(value));
      }),
    );
  });
});
