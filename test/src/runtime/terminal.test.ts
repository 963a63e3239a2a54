import { describe, expect, test } from "vitest";
import { alignColumns, type Io, paint, readStdin, withProgress } from "../../../src/runtime/terminal.ts";
import { FakeClock } from "../../support/clock.ts";

function terminal(env: Io["env"], isTTY: boolean): Io & { readonly written: () => string } {
  const written: string[] = [];
  const output = { isTTY, write: (text: string) => written.push(text) };
  return { stdout: output, stderr: output, stdin: (async function* () {})(), env, written: () => written.join("") };
}

describe("tables", () => {
  test("columns are aligned, and lines end without spaces", () => {
    expect(alignColumns([["a", "long cell", "x"], ["bbb", "c", ""], ["d"]])).toBe("a    long cell  x\nbbb  c\nd\n");
  });
});

describe("colour", () => {
  test.each([
    { what: "a terminal", env: {}, isTTY: true, painted: true },
    { what: "a pipe", env: {}, isTTY: false, painted: false },
    { what: "NO_COLOR", env: { NO_COLOR: "1" }, isTTY: true, painted: false },
    { what: "an empty NO_COLOR", env: { NO_COLOR: "" }, isTTY: true, painted: true },
    { what: "a dumb terminal", env: { TERM: "dumb" }, isTTY: true, painted: false },
  ])("with $what text is painted: $painted", ({ env, isTTY, painted }) => {
    expect(paint(terminal(env, isTTY), "green", "x")).toBe(painted ? "\u001b[32mx\u001b[0m" : "x");
  });
});

describe("progress", () => {
  async function during(ms: number, io: Io): Promise<void> {
    const clock = new FakeClock();
    const work = Promise.withResolvers<string>();
    const waiting = withProgress(io, "Waiting for the server", work.promise, clock);
    await clock.advance(ms);
    work.resolve("done");
    expect(await waiting).toBe("done");
  }

  test("work of less than a second shows nothing", async () => {
    const io = terminal({}, true);
    await during(999, io);
    expect(io.written()).toBe("");
  });

  test("longer work counts the seconds, and the line is erased at the end", async () => {
    const io = terminal({}, true);
    await during(2100, io);
    expect(io.written()).toContain("\r\u001b[KWaiting for the server … 1 s");
    expect(io.written()).toContain("\r\u001b[KWaiting for the server … 2 s");
    expect(io.written().endsWith("\r\u001b[K")).toBe(true);
  });

  test.each([
    { what: "a pipe", env: {}, isTTY: false },
    { what: "a dumb terminal", env: { TERM: "dumb" }, isTTY: true },
  ])("$what gets none", async ({ env, isTTY }) => {
    const io = terminal(env, isTTY);
    await during(5000, io);
    expect(io.written()).toBe("");
  });

  test("a failure goes through, and the line is erased", async () => {
    const io = terminal({}, true);
    const clock = new FakeClock();
    const work = Promise.withResolvers<never>();
    const waiting = withProgress(io, "Waiting", work.promise, clock);
    await clock.advance(1500);
    work.reject(new Error("refused"));
    await expect(waiting).rejects.toThrow("refused");
    expect(io.written().endsWith("\r\u001b[K")).toBe(true);
  });
});

describe("standard input", () => {
  async function* chunks(): AsyncGenerator<Uint8Array | string> {
    yield "ab";
    yield Buffer.from("é").subarray(0, 1);
    yield Buffer.from("é").subarray(1);
  }

  test.each([
    { limit: 4, text: "abé" },
    { limit: 3, text: undefined },
  ])("T-F4 of 4 bytes, a limit of $limit lets through $text", async ({ limit, text }) => {
    expect(await readStdin({ ...terminal({}, false), stdin: chunks() }, limit)).toBe(text);
  });
});
