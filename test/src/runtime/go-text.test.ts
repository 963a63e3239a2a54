import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatDuration, formatRoundDuration, parseDuration } from "../../../src/runtime/duration.ts";
import { expandEnv } from "../../../src/runtime/expand-env.ts";
import { quote } from "../../../src/runtime/logfmt.ts";
import go from "../../vectors/go-text.json" with { type: "json" };

describe("durations as Go has them", () => {
  test.each(go.durations)("$text is $ms ms", ({ text, ms }) => {
    expect(parseDuration(text)).toBe(ms ?? undefined);
  });

  test.each(go.durations.filter((one) => one.string !== undefined))(
    "$ms ms is printed as $string",
    ({ ms, string }) => {
      expect(formatDuration(ms ?? 0)).toBe(string);
    },
  );

  test("what is printed is read back", () => {
    fc.assert(fc.property(fc.integer({ min: -2e9, max: 2e9 }), (ms) => parseDuration(formatDuration(ms)) === ms));
  });

  test.each([
    { ms: 86_400_000, text: "24h" },
    { ms: 5_400_000, text: "1h30m" },
    { ms: 14_399_999, text: "3h59m59s" },
    { ms: 60_000, text: "1m" },
    { ms: 1999, text: "1s" },
  ])("$ms ms without zero parts is $text", ({ ms, text }) => expect(formatRoundDuration(ms)).toBe(text));
});

describe("expansion of environment variables as Go's os.Expand", () => {
  test.each(go.expansions.cases)("$text becomes $expanded", ({ text, expanded }) => {
    expect(expandEnv(text, go.expansions.env).text).toBe(expanded);
  });

  test("names that are not set are told", () => {
    expect(expandEnv("$A $B ${C} $B $$", { A: "1" }).unset).toEqual(["B", "C"]);
    expect(expandEnv("$toString ${constructor}", {}).text).toBe(" ");
  });

  test("text without dollar signs stays as it is", () => {
    fc.assert(
      fc.property(
        fc.string().filter((text) => !text.includes("$")),
        (text) => expandEnv(text, {}).text === text,
      ),
    );
  });
});

describe("quoting", () => {
  test("a quoted text holds only printable characters and no bare quote", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        const inside = quote(text).slice(1, -1);
        expect(inside.replace(/\\./g, "")).not.toMatch(/["\\\p{C}\p{Zl}\p{Zp}]/u);
      }),
    );
  });
});
