import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ConfigReader, type Keys, type Values } from "../../../src/runtime/config.ts";
import {
  block,
  duration,
  flag,
  ignored,
  integer,
  list,
  oneOf,
  parsed,
  text,
  texts,
  unsupported,
} from "../../../src/runtime/config-keys.ts";
import { plugins } from "../../../src/runtime/config-plugins.ts";
import { keyReference } from "../../../src/runtime/config-reference.ts";
import type { ConfigValue } from "../../../src/runtime/config-value.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { parseHcl } from "../../../src/runtime/hcl.ts";
import { nearestName } from "../../../src/runtime/nearest.ts";
import { faultOf, refusal } from "../../support/faults.ts";

function upper(spelling: string): string {
  if (!/^[a-z]+$/.test(spelling)) throw new Fault("invalid", "letters only");
  return spelling.toUpperCase();
}

const KEYS = {
  name: text({ doc: "A name." }),
  place: text({ doc: "A place.", default: "here" }),
  on: flag({ doc: "On.", default: false }),
  count: integer(1, 10)({ doc: "A count.", default: 3 }),
  wait: duration(1000, "1s")({ doc: "A wait.", default: 60_000, shown: "1m" }),
  colour: oneOf(["red", "blue"])({ doc: "A colour." }),
  words: texts({ doc: "Words.", default: [] }),
  loud: parsed("word", upper, "could not shout")({ doc: "A word.", own: true }),
  louder: list("words", upper)({ doc: "Words.", default: [] }),
  inner: block("A block.", { deep: block("A block in it.", { key: text({ doc: "A key | with a bar." }) }) }),
  tuning: ignored("Tuning."),
  missing: unsupported("Not built.", ["never"]),
  plugins: plugins({
    Store: {
      doc: "Stores.",
      plugins: { sql: { doc: "SQL.", keys: { url: text({ doc: "A URL." }) } }, etcd: undefined },
    },
    Empty: { doc: "Nothing built.", plugins: { other: undefined } },
  }),
};

interface Read<K extends Keys> {
  readonly values: Values<K>;
  readonly warnings: readonly string[];
}

function read(source: string, overrides: ReadonlyMap<string, ConfigValue> = new Map()): Read<typeof KEYS> {
  const reader = new ConfigReader("a.conf", overrides);
  const values = reader.readKeys(KEYS, [parseHcl(source, "a.conf")], { path: "", at: { source: "a.conf" } });
  reader.throwFaults();
  return { values, warnings: reader.warnings };
}

describe("values", () => {
  test("what nobody sets has its default", () => {
    expect(read("").values).toEqual({
      name: undefined,
      place: "here",
      on: false,
      count: 3,
      wait: 60_000,
      colour: undefined,
      words: [],
      loud: undefined,
      louder: [],
      inner: { deep: { key: undefined } },
      tuning: undefined,
      missing: undefined,
      plugins: { Store: {}, Empty: {} },
    });
  });

  test.each([
    { source: 'name = "x"', key: "name", value: "x" },
    { source: "name = 12", key: "name", value: "12" },
    { source: 'place = ""', key: "place", value: "here" },
    { source: "on = true", key: "on", value: true },
    { source: 'count = "7"', key: "count", value: 7 },
    { source: "count = 0x0A", key: "count", value: 10 },
    { source: "count = 07", key: "count", value: 7 },
    { source: 'wait = "1m30s"', key: "wait", value: 90_000 },
    { source: 'colour = "RED"', key: "colour", value: "red" },
    { source: 'words = ["a", "b",]', key: "words", value: ["a", "b"] },
    { source: 'loud = "hey"', key: "loud", value: "HEY" },
    { source: 'louder = ["a", "b"]', key: "louder", value: ["A", "B"] },
    { source: 'inner { deep { key = "x" } }', key: "inner", value: { deep: { key: "x" } } },
    { source: 'inner = { deep = { key = "x" } }', key: "inner", value: { deep: { key: "x" } } },
    { source: 'inner = [{ deep = [{ key = "x" }] }]', key: "inner", value: { deep: { key: "x" } } },
    { source: 'inner {}\ninner { deep { key = "x" } }', key: "inner", value: { deep: { key: "x" } } },
    { source: 'NAME = "x"', key: "name", value: "x" },
    { source: 'missing = "never"', key: "missing", value: undefined },
    { source: "missing = false", key: "missing", value: undefined },
    { source: "missing { a = 0, b = [] }", key: "missing", value: undefined },
  ] as const)("$source", ({ source, key, value }) => expect(read(source).values[key]).toEqual(value));

  test("a flag goes before the file, and before the file's faults", () => {
    const at = { source: "-count" };
    const { values } = read("count = 99", new Map([["count", { kind: "number", at, text: "4" }]]));
    expect(values.count).toBe(4);
    const wrong = new Map<string, ConfigValue>([["inner.deep.key", { kind: "string", at, text: "x" }]]);
    expect(read("", wrong).values.inner.deep.key).toBe("x");
  });
});

describe("faults", () => {
  test.each([
    { source: "nam = 1", message: 'a.conf:1:1: unknown key "nam"; did you mean "name"?' },
    { source: "\n  inner { dep {} }", message: 'a.conf:2:11: unknown key "dep" in inner; did you mean "deep"?' },
    { source: "zzzzzz = 1", message: 'a.conf:1:1: unknown key "zzzzzz"' },
    { source: "toString = 1", message: 'a.conf:1:1: unknown key "toString"' },
    { source: "name = [1]", message: "a.conf:1:1: name: expected a string in quotes" },
    { source: "name = true", message: "a.conf:1:1: name: expected a string in quotes" },
    { source: 'on = "true"', message: "a.conf:1:1: on: expected true or false, without quotes" },
    { source: "count = 11", message: "a.conf:1:1: count: 11 is not between 1 and 10" },
    { source: 'count = "1x"', message: 'a.conf:1:1: count: expected a whole number, found "1x"' },
    { source: "count = 1.5", message: 'a.conf:1:1: count: expected a whole number, found "1.5"' },
    { source: 'wait = "1x"', message: 'a.conf:1:1: wait: invalid duration "1x"; write it like 24h or 1h30m' },
    { source: 'wait = "999ms"', message: "a.conf:1:1: wait: must be at least 1s" },
    { source: 'wait = "-1h"', message: "a.conf:1:1: wait: must be at least 1s" },
    { source: 'colour = "pink"', message: 'a.conf:1:1: colour: "pink" is not one of red, blue' },
    { source: 'words = "a"', message: "a.conf:1:1: words: expected a list of strings in brackets" },
    { source: 'loud = "a b"', message: 'a.conf:1:1: loud: could not shout "a b": letters only' },
    { source: 'louder = ["a", "1"]', message: "a.conf:1:1: louder: letters only" },
    { source: "inner = 5", message: "a.conf:1:1: inner: expected a block such as inner { … }" },
    { source: "name = 1\nname = 2", message: "a.conf:2:1: name is set twice; the first is at a.conf:1:1" },
    { source: "name = 1\nNAME = 2", message: "a.conf:2:1: name is set twice; the first is at a.conf:1:1" },
    { source: "missing = true", message: "a.conf:1:1: missing is not supported by this version of Steeple" },
    { source: 'missing { a { b = "x" } }', message: "a.conf:1:1: missing is not supported by this version of Steeple" },
    { source: 'plugins { Stor "sql" {} }', message: 'a.conf:1:11: unknown plugin type "Stor"; did you mean "Store"?' },
    { source: 'plugins { Store "sqll" {} }', message: 'a.conf:1:17: unknown Store plugin "sqll"; did you mean "sql"?' },
    {
      source: 'plugins { Store "etcd" { plugin_data { x = 1 } } }',
      message: 'a.conf:1:17: plugin Store "etcd" is not supported by this version of Steeple',
    },
    {
      source: 'plugins { Store "mine" { plugin_cmd = "/x" } }',
      message: 'a.conf:1:17: external plugins such as Store "mine" are not supported by this version of Steeple',
    },
    {
      source: 'plugins { Store "sql" { plugin_cmd = "/x" } }',
      message: "a.conf:1:25: plugins.Store.sql.plugin_cmd is not supported by this version of Steeple",
    },
    {
      source: 'plugins { Store "sql" { plugin_checksum = "ab" } }',
      message: "a.conf:1:25: plugins.Store.sql.plugin_checksum is not supported by this version of Steeple",
    },
    {
      source: 'plugins { Store "sql" { plugin_data { ulr = "x" } } }',
      message: 'a.conf:1:39: unknown key "ulr" in plugins.Store.sql; did you mean "url"?',
    },
    {
      source: 'plugins { Store "sql" { plugin_dat {} } }',
      message: 'a.conf:1:25: unknown key "plugin_dat" in plugins.Store.sql; did you mean "plugin_data"?',
    },
    {
      source: 'plugins {\n Store "sql" {}\n Store "sql" {}\n}',
      message: 'a.conf:3:8: plugin "Store"/"sql" declared more than once',
    },
    { source: "plugins { Store = 5 }", message: 'a.conf:1:11: plugins: expected Store "name" { … }' },
    { source: "plugins { Store { sql = 5 } }", message: 'a.conf:1:19: plugins.Store.sql: expected Store "sql" { … }' },
    { source: "plugins = 5", message: "a.conf:1:1: plugins: expected a block such as plugins { … }" },
    {
      source: 'plugins { Store "sql" { plugin_data {} plugin_data_file = "x" } }',
      message: "a.conf:1:17: plugins.Store.sql: only one of [plugin_data, plugin_data_file] can be used",
    },
    {
      source: 'plugins { Store "sql" { plugin_data_file = "/nowhere/x" } }',
      message:
        "a.conf:1:17: plugins.Store.sql.plugin_data_file: failed to read plugin configuration: open /nowhere/x: no such file or directory",
    },
  ])("$source: $message", ({ source, message }) => {
    const fault = faultOf(() => read(source));
    expect(fault).toMatchObject(refusal("invalid", "config-invalid"));
    expect(fault.message).toBe(message);
  });

  test("all are told at once, each with its place", () => {
    const fault = faultOf(() => read('on = 1\ncount = 0\ninner { x = 1 }\nplugins { Store "etcd" {} }'));
    expect(fault.message).toBe(
      [
        "4 faults in the configuration:",
        "  a.conf:1:1: on: expected true or false, without quotes",
        "  a.conf:2:1: count: 0 is not between 1 and 10",
        '  a.conf:3:9: unknown key "x" in inner',
        '  a.conf:4:17: plugin Store "etcd" is not supported by this version of Steeple',
      ].join("\n"),
    );
  });

  test("T-F4 but of thousands only the first, with their number", () => {
    const lines = faultOf(() => read(Array.from({ length: 5000 }, (_, i) => `zz${i} = 1`).join("\n"))).message.split(
      "\n",
    );
    expect(lines[0]).toBe("5000 faults in the configuration:");
    expect(lines.at(-1)).toBe("  and 4980 more");
    expect(lines).toHaveLength(22);
  });

  test.each([
    { what: "unknown keys", source: Array.from({ length: 100_000 }, (_, i) => `k${i} = 1`).join("\n") },
    { what: "repeated keys", source: "name = 1\n".repeat(100_000) },
    { what: "repeated blocks", source: "inner {}\n".repeat(100_000) },
    { what: "plug-ins", source: `plugins {\n${'Store "sql" {}\n'.repeat(60_000)}}` },
  ])("T-F4 a file full of $what is answered soon", ({ source }) => {
    const started = performance.now();
    try {
      read(source);
    } catch (error) {
      expect(error).toMatchObject(refusal("invalid", "config-invalid"));
    }
    expect(performance.now() - started).toBeLessThan(5000);
  });

  test("a flag's fault names the flag", () => {
    const overrides = new Map<string, ConfigValue>([
      ["count", { kind: "number", at: { source: "-count" }, text: "40" }],
    ]);
    expect(faultOf(() => read("", overrides)).message).toBe("-count: count: 40 is not between 1 and 10");
  });
});

describe("plug-ins", () => {
  test.each([
    'plugins { Store "sql" { plugin_data { url = "x" } } }',
    'plugins { Store { sql { plugin_data { url = "x" } } } }',
    'plugins { "Store" "sql" plugin_data { url = "x" } }',
    'plugins = { Store = [{ sql = { plugin_data = { url = "x" } } }] }',
    'plugins { Store "sql" { plugin_data { url = "x" }\n enabled = true } }',
  ])("%s is the same plug-in", (source) =>
    expect(read(source).values.plugins).toEqual({ Store: { sql: { url: "x" } }, Empty: {} }),
  );

  test.each([
    'Store "sql" { enabled = false }',
    'Store "etcd" { enabled = false }',
    'Empty "other" { enabled = false\n plugin_data { x = 1 } }',
  ])("%s is left out", (source) =>
    expect(read(`plugins { ${source} }`).values.plugins).toEqual({ Store: {}, Empty: {} }),
  );
});

describe("warnings", () => {
  test("a key without effect is named once, with its place", () => {
    const { warnings } = read("\ntuning { a = 1 }\n");
    expect(warnings).toEqual(["a.conf:2:1: tuning has no effect in this version of Steeple"]);
  });
});

describe("the reference", () => {
  test("is made from the keys", () => {
    expect(keyReference("Test", { test: block("A section.", KEYS), plugins: KEYS.plugins })).toBe(`## Test

### \`test\`

A section.

| key | type | default | meaning | compared with SPIRE |
|---|---|---|---|---|
| \`name\` | string |  | A name. | as SPIRE |
| \`place\` | string | \`here\` | A place. | as SPIRE |
| \`on\` | bool | \`false\` | On. | as SPIRE |
| \`count\` | int | \`3\` | A count. | as SPIRE |
| \`wait\` | duration | \`1m\` | A wait. | as SPIRE |
| \`colour\` | red or blue |  | A colour. | as SPIRE |
| \`words\` | list of strings |  | Words. | as SPIRE |
| \`loud\` | word |  | A word. | Steeple only |
| \`louder\` | list of words |  | Words. | as SPIRE |
| \`inner\` | block |  | A block. | as SPIRE |
| \`inner.deep\` | block |  | A block in it. | as SPIRE |
| \`inner.deep.key\` | string |  | A key \\| with a bar. | as SPIRE |
| \`tuning\` |  |  | Tuning. | accepted, no effect |
| \`missing\` |  |  | Not built. | not supported |
| \`plugins\` | block |  | Plug-ins, each as Type "name" { plugin_data { … } }. | as SPIRE |

### \`plugins\`

Plug-ins, each as Type "name" { plugin_data { … } }.

#### \`Store\`

Stores.

**\`Store "sql"\`** SQL.

| key | type | default | meaning | compared with SPIRE |
|---|---|---|---|---|
| \`url\` | string |  | A URL. | as SPIRE |

Not supported in this version: \`etcd\`.

#### \`Empty\`

Nothing built.

Not supported in this version: \`other\`.

`);
  });
});

describe("nearest names", () => {
  test.each([
    { name: "trust_domian", nearest: "trust_domain" },
    { name: "trustdomain", nearest: "trust_domain" },
    { name: "Bind-Port", nearest: "bind_port" },
    { name: "bindport", nearest: "bind_port" },
    { name: "ca_tl", nearest: "ca_ttl" },
    { name: "x", nearest: undefined },
    { name: "socket", nearest: undefined },
  ])("$name is taken for $nearest", ({ name, nearest }) => {
    expect(nearestName(name, ["trust_domain", "bind_port", "ca_ttl", "socket_path"])).toBe(nearest);
  });

  test("a name is nearest to itself, and long ones cost nothing", () => {
    fc.assert(
      fc.property(
        fc.stringMatching(/^[a-z]{1,20}$/),
        (name) => nearestName(name, ["another_one", name]) === name || name === "anotherone",
      ),
    );
    const started = performance.now();
    nearestName("x".repeat(1_000_000), ["y".repeat(1000)]);
    expect(performance.now() - started).toBeLessThan(100);
  });
});
