import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { PROJECT } from "./support/imports.ts";

const PAGE = readFileSync(join(PROJECT, "test/untested.md"), "utf8");
const listed = [...PAGE.matchAll(/^\| ([A-Z0-9]+-\d+[a-z]?) \|/gm)].map(([, id]) => id ?? "");

/** What stands in the title of any test. */
const titles = readdirSync(join(PROJECT, "test"), { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".test.ts"))
  .flatMap((path) => readFileSync(join(PROJECT, "test", path), "utf8").split("\n"))
  .filter((line) => /["'`]/.test(line))
  .join("\n");

test("what is listed as untested is named in no test, and once", () => {
  expect(listed.length).toBeGreaterThan(0);
  expect(listed.filter((id) => new RegExp(`\\b${id}(?![\\da-z])`).test(titles))).toEqual([]);
  expect(new Set(listed).size).toBe(listed.length);
});

test("every line says what is asked and why there is no test", () => {
  const lines = PAGE.split("\n").filter((line) => /^\| [A-Z]/.test(line));
  expect(lines).toHaveLength(listed.length);
  for (const line of lines) expect(line).toMatch(/^\| \S+ \| \S.{9,}\. \| \S.{7,}\. \|$/);
});
