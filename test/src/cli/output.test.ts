import { describe, expect, test } from "vitest";
import { type Answer, printAnswer } from "../../../src/cli/output.ts";
import { relativeTime, renderTable, type Table } from "../../../src/cli/table.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import type { OutputFormat } from "../../../src/runtime/flags.ts";
import type { Io } from "../../../src/runtime/terminal.ts";
import { FakeClock } from "../../support/clock.ts";

const NOW = new Date("2026-11-29T04:00:00Z");

const TABLE: Table = {
  columns: [{ title: "ID" }, { title: "SELECTORS" }, { title: "EXPIRES" }, { title: "HINT", wide: true }],
  rows: [
    ["a", ["unix:uid:1000", "unix:gid:5"], new Date("2026-11-29T05:30:00Z"), "internal"],
    ["longer", [], undefined, ""],
  ],
};

describe("tables", () => {
  test("align their columns; times are absolute and relative", () => {
    expect(renderTable(TABLE, { wide: false, width: undefined, now: NOW })).toBe(
      "ID      SELECTORS                 EXPIRES\n" +
        "a       unix:uid:1000,unix:gid:5  2026-11-29T05:30:00Z (in 1h)\n" +
        "longer  -                         -\n",
    );
  });

  test("have more columns when wide", () => {
    expect(renderTable(TABLE, { wide: true, width: undefined, now: NOW })).toMatch(/EXPIRES +HINT\n.* internal\n/);
  });

  test.each([20, 30, 50, 79])("fit a terminal of %i columns, cut where they are widest", (width) => {
    const lines = renderTable(TABLE, { wide: false, width, now: NOW }).trimEnd().split("\n");
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(Math.max(width, 22));
    expect(lines[1]?.includes("…")).toBe(width < 60);
  });

  test("of a SPIFFE ID the end is kept, of other text the beginning", () => {
    const table = {
      columns: [{ title: "ID" }, { title: "HINT" }],
      rows: [["spiffe://a.test/ns/billing", "a long hint"]],
    };
    expect(renderTable(table, { wide: false, width: 20, now: NOW })).toBe("ID         HINT\n…/billing  a long h…\n");
  });

  test("what another party wrote does not steer the terminal", () => {
    const table = { columns: [{ title: "HINT" }], rows: [["\u001b[2Jboo\n"]] };
    expect(renderTable(table, { wide: false, width: undefined, now: NOW })).toBe("HINT\n\u{fffd}[2Jboo\u{fffd}\n");
  });

  test.each([
    ["2026-11-29T04:00:00Z", "now"],
    ["2026-11-29T04:00:59Z", "in 59s"],
    ["2026-11-29T05:59:00Z", "in 1h"],
    ["2026-11-27T04:00:00Z", "2d ago"],
  ])("%s is %s", (at, text) => expect(relativeTime(new Date(at), NOW)).toBe(text));
});

describe("one answer in every form", () => {
  const answer: Answer = {
    message: { b: [Buffer.from("x")], a: "<1>", none: null },
    pretty: ({ stdout }) => void stdout.write("for people\n"),
    table: TABLE,
  };

  async function printed(
    output: OutputFormat,
    of: Answer = answer,
    isTTY = false,
  ): Promise<{ out: string; thrown: unknown }> {
    const parts: string[] = [];
    const io: Io = {
      stdout: { write: (part) => parts.push(part), isTTY },
      stderr: { write: () => {} },
      stdin: (async function* () {})(),
      env: {},
    };
    const thrown = await printAnswer(of, { io, output, clock: new FakeClock(NOW.toISOString()) }).catch(
      (error: unknown) => error,
    );
    return { out: parts.join(""), thrown };
  }

  test("pretty is SPIRE's text", async () => expect((await printed("pretty")).out).toBe("for people\n"));

  test("and on a terminal steers nothing; elsewhere every byte stays", async () => {
    const hostile = { ...answer, pretty: ({ stdout }: Io) => void stdout.write("a\u001b[2J\tb\n") };
    expect((await printed("pretty", hostile)).out).toBe("a\u001b[2J\tb\n");
    expect((await printed("pretty", hostile, true)).out).toBe("a\u{fffd}[2J\tb\n");
  });

  test("json is the message as Go prints it", async () => {
    expect((await printed("json")).out).toBe('{"a":"\\u003c1\\u003e","b":["eA=="]}\n');
  });

  test("yaml says the same", async () => expect((await printed("yaml")).out).toBe("a: <1>\nb:\n  - eA==\n"));

  test("table falls back to SPIRE's text where there is none", async () => {
    const { table: _, ...without } = answer;
    expect((await printed("wide", without)).out).toBe("for people\n");
  });

  test.each([
    { output: "pretty", fails: true },
    { output: "table", fails: true },
    { output: "yaml", fails: true },
    { output: "json", fails: false },
  ] as const)("a refused item fails the command in $output: $fails", async ({ output, fails }) => {
    const failure = new Fault("invalid", "refused");
    expect((await printed(output, { ...answer, failure })).thrown).toBe(fails ? failure : undefined);
  });
});
