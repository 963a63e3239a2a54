import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { ERROR_CODES, fixOf } from "../src/cli/error-codes.ts";
import { errorReference } from "../src/cli/errors.ts";
import { FAULT_KINDS } from "../src/runtime/fault.ts";
import { PROJECT, sourceFiles } from "./support/imports.ts";

const TABLES = "src/cli/error-codes";
const SOURCES = ["src", "server", "agent"]
  .flatMap(sourceFiles)
  .filter((path) => !path.startsWith(TABLES))
  .map((path) => ({ path, text: readFileSync(join(PROJECT, path), "utf8") }));

const CODE = "[a-z0-9]+(?:-[a-z0-9]+)*";
const KNOWN = new Set(ERROR_CODES.map(({ code }) => code));

/** Codes that are put together, by the text in the source that does it. */
const COMPOSED: Readonly<Record<string, readonly string[]>> = {
  [`code: \`agent-\${reason`]: ["expired", "not-attested", "not-active", "banned", "must-reattest"].map(
    (reason) => `agent-${reason}`,
  ),
  [`code: \`entry-\${verb}-failed\``]: ["entry-create-failed", "entry-update-failed", "entry-delete-failed"],
  [`code: \`federation-\${verb}-failed\``]: ["federation-create-failed", "federation-update-failed"],
  [`code: \`\${flag}-missing\``]: ["audience-missing", "svid-missing"],
  [`code: \`\${what}-missing\``]: ["audience-missing", "svid-missing"],
  [`code: \`vault-\${status}\``]: [400, 403, 404, 429, 500, 503].map((status) => `vault-${status}`),
  [`code: \`\${kind}-disabled\``]: ["jwt-disabled", "wit-disabled"],
  [`code: \`\${name.toLowerCase()}-disabled\``]: ["jwt-disabled", "wit-disabled"],
  [`code: \`\${noun} \${reason}\``]: ["x509-ca", "jwt-key", "wit-key"].flatMap((noun) =>
    ["missing", "expired", "not-yet-valid", "tainted", "not-published"].map((reason) => `${noun}-${reason}`),
  ),
};

/** The literal codes of a source: of a fault's options, and of calls of functions that take a code. */
function literalCodes(text: string): readonly string[] {
  const options = [...text.matchAll(new RegExp(`\\bcode: "(${CODE})"`, "g"))];
  const takers = [...text.matchAll(/function (\w+)\([^)]*\bcode: string/g)].map(([, name]) => name);
  if (text.includes("tokenRefused")) takers.push("tokenRefused");
  const calls = takers.flatMap((name) => [
    ...text.matchAll(new RegExp(`\\b${name}\\((?:[^()]|\\([^()]*\\))*?"(${CODE}-${CODE})"`, "g")),
  ]);
  return [...options, ...calls].map(([, code]) => code ?? "");
}

describe("error codes", () => {
  test("every code that is given to an error has a line in the table", () => {
    const unknown = SOURCES.flatMap(({ path, text }) =>
      literalCodes(text)
        .filter((code) => !KNOWN.has(code))
        .map((code) => `${path}: add a line for ${code} to ${TABLES}/`),
    );
    expect(unknown).toEqual([]);
  });

  test("so has every code that is put together", () => {
    const templates = SOURCES.flatMap(({ path, text }) =>
      [...text.matchAll(/code: `[^`]*`/g)].map(([template]) => ({ path, template })),
    );
    for (const { path, template } of templates) {
      const known = Object.keys(COMPOSED).some((start) => template.startsWith(start));
      expect(known, `${path}: list what ${template} can be in this test`).toBe(true);
    }
    const missing = Object.values(COMPOSED)
      .flat()
      .filter((code) => !KNOWN.has(code));
    expect(missing).toEqual([]);
  });

  test("and every kind of error, for those without a code of their own", () => {
    expect(FAULT_KINDS.filter((kind) => !KNOWN.has(kind))).toEqual([]);
  });

  test("the table has no line for what no error has, none twice, and all say what to do", () => {
    const used = new Set([
      ...SOURCES.flatMap(({ text }) => [...text.matchAll(new RegExp(`"(${CODE})"`, "g"))].map(([, code]) => code)),
      ...Object.values(COMPOSED).flat(),
      ...FAULT_KINDS,
    ]);
    expect([...KNOWN].filter((code) => !used.has(code))).toEqual([]);
    expect(ERROR_CODES).toHaveLength(KNOWN.size);
    for (const { code, cause, fix } of ERROR_CODES) {
      expect(cause, code).toMatch(/^[A-Z/].*\.$/);
      expect(fix, code).toMatch(/^\S.*[."]\.?$/);
      const advice = fix === "Mend what the message names." ? undefined : fix;
      expect(fixOf(code), code).toBe(advice);
    }
  });

  test("the reference page is what the table says", () => {
    // `npx steeple-server errors -markdown > src/cli/error-codes.md`
    expect(readFileSync(join(PROJECT, "src/cli/error-codes.md"), "utf8")).toBe(errorReference());
  });
});
