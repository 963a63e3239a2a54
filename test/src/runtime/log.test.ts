import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rename, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Fault } from "../../../src/runtime/fault.ts";
import {
  createLog,
  type Log,
  type LogFields,
  type LogHandle,
  type LogOptions,
  parseLogLevel,
} from "../../../src/runtime/log.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import go from "../../vectors/go-text.json" with { type: "json" };

class Lines extends Writable {
  text = "";

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.text += chunk.toString();
    done();
  }
}

const CLOCK = new FakeClock("2026-11-22T01:41:09.120Z");

function open(options: Partial<LogOptions> = {}): { readonly log: LogHandle; readonly out: Lines } {
  const out = new Lines();
  const log = createLog({ level: "trace", format: "text", stream: out, clock: CLOCK, ...options });
  return { log, out };
}

function write(log: Log, level: string, message: string, fields: LogFields): void {
  if (level === "debug") log.debug(message, fields);
  else if (level === "info") log.info(message, fields);
  else if (level === "warn") log.warn(message, fields);
  else log.error(message, fields);
}

describe("SPIRE's two log formats", () => {
  test.each(go.logrusLines)("text is as logrus writes it: $level $msg", ({ level, msg, fields, text }) => {
    const { log, out } = open();
    write(log, level, msg, fields as LogFields);
    expect(out.text).toBe(text);
  });

  test.each(go.logrusLines)("JSON has logrus' fields: $level $msg", ({ level, msg, fields, json }) => {
    const { log, out } = open({ format: "json" });
    write(log, level, msg, fields as LogFields);
    expect(JSON.parse(out.text)).toEqual(json);
  });

  test.each(go.logrusFields)("a field is quoted as logrus quotes it: $line", ({ value, line }) => {
    const { log, out } = open();
    log.info("m", { k: value });
    expect(out.text.replace(/^time="[^"]*" /, "")).toBe(line);
  });

  test("text lines have fractions of a second only when the format was chosen, as in SPIRE", () => {
    const { log, out } = open({ fractionalSeconds: true });
    log.info("x");
    expect(out.text).toBe('time="2026-11-22T01:41:09.12Z" level=info msg=x\n');
  });

  test("times are local: the line's and those in fields", async () => {
    const script = `
      import { createLog } from ${JSON.stringify(new URL("../../../src/runtime/log.ts", import.meta.url).href)};
      const clock = { now: () => new Date(1763775669120) };
      for (const format of ["text", "json"]) {
        await using log = createLog({ level: "info", format, clock });
        log.info("x", { at: new Date(1763775669000) });
      }`;
    const env = { ...process.env, TZ: "Asia/Kolkata" };
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], { env });
    const [text = "", json = ""] = (await output(child)).split("\n");
    expect(text).toBe('time="2025-11-22T07:11:09+05:30" level=info msg=x at="2025-11-22 07:11:09 +0530 GMT+5:30"');
    expect(JSON.parse(json)).toMatchObject({ time: "2025-11-22T07:11:09.12+05:30", at: "2025-11-22T07:11:09+05:30" });
  });

  test("a code is its name in text and its number in JSON", () => {
    const fields = { status_code: { number: 5, name: "NotFound" } };
    const [text, json] = [open(), open({ format: "json" })];
    text.log.info("x", fields);
    json.log.info("x", fields);
    expect(text.out.text).toContain("status_code=NotFound\n");
    expect(JSON.parse(json.out.text)).toMatchObject({ status_code: 5 });
  });

  test("a child carries where its events are counted", () => {
    const counted: string[] = [];
    const metrics = { increment: (key: string) => counted.push(key), set: () => {}, observe: () => {} };
    const { log } = open();
    log.measured(metrics).child({ a: 1 }).metrics.increment("x");
    log.metrics.increment("y");
    expect(counted).toEqual(["x"]);
  });

  test("an error is its message, never its stack", () => {
    const { log, out } = open();
    log.error("failed", { error: new Fault("denied", "agent is banned", { hint: "h" }) });
    expect(out.text).toBe('time="2026-11-22T01:41:09Z" level=error msg=failed error="agent is banned"\n');
  });

  test("a child's lines carry its fields, and the call's win", () => {
    const { log, out } = open();
    const child = log.child({ subsystem_name: "api", a: "1" }).child({ b: "2" });
    child.info("x", { a: "3", missing: undefined, n: 12n, big: 2n ** 80n });
    expect(out.text).toContain("msg=x a=3 b=2 big=1208925819614629174706176 n=12 subsystem_name=api\n");
  });

  test.each(["text", "json"] as const)("no message or value can forge a %s line", (format) => {
    const { log, out } = open({ format });
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }), (message, value) => {
        out.text = "";
        log.child({ c: value }).warn(message, { k: value });
        expect(out.text.endsWith("\n")).toBe(true);
        expect(out.text.slice(0, -1)).not.toMatch(/\p{Cc}/u);
        if (format === "json")
          expect(JSON.parse(out.text)).toMatchObject({ level: "warning", msg: message.toWellFormed() });
      }),
    );
  });

  test("source location names the caller's file and line", () => {
    const { log, out } = open({ sourceLocation: true });
    log.child({}).info("x");
    expect(out.text).toMatch(/ file="log\.test\.ts:\d+"/);
    expect(open().out.text).not.toContain("file=");
  });
});

describe("levels", () => {
  test.each([
    { level: "trace", written: ["debug", "info", "warning", "error"] },
    { level: "DEBUG", written: ["debug", "info", "warning", "error"] },
    { level: "INFO", written: ["info", "warning", "error"] },
    { level: "Warning", written: ["warning", "error"] },
    { level: "WARN", written: ["warning", "error"] },
    { level: "ERROR", written: ["error"] },
    { level: "FATAL", written: [] },
    { level: "PANIC", written: [] },
  ])("at $level, $written are written", ({ level, written }) => {
    const { log, out } = open({ level });
    for (const severity of ["debug", "info", "warn", "error"]) write(log, severity, "x", {});
    expect([...out.text.matchAll(/level=(\w+)/g)].map((found) => found[1])).toEqual(written);
  });

  test("a change takes effect at once, for children too", () => {
    const { log, out } = open({ level: "info" });
    const child = log.child({ a: 1 });
    child.debug("before");
    log.level = "debug";
    child.debug("after");
    expect(log.level).toBe("debug");
    expect(out.text).toBe('time="2026-11-22T01:41:09Z" level=debug msg=after a=1\n');
  });

  test("an unknown level is refused, with the known ones", () => {
    const fault = faultOf(() => parseLogLevel("loud"));
    expect(fault).toMatchObject(refusal("invalid", "log-level-unknown"));
    expect(fault.hint).toContain("debug");
  });
});

describe("outputs", () => {
  let folder = "";
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "steeple-log-"));
  });
  afterEach(() => rm(folder, { recursive: true }));

  test("a file is appended to, is not for everyone, and is complete after disposal", async () => {
    const file = join(folder, "a.log");
    for (const message of ["one", "two"]) {
      await using log = createLog({ level: "info", format: "text", file });
      for (let i = 0; i < 1000; i += 1) log.info(message);
    }
    const text = await readFile(file, "utf8");
    expect(text.match(/msg=one/g)).toHaveLength(1000);
    expect(text.match(/msg=two/g)).toHaveLength(1000);
    expect((await stat(file)).mode & 0o007).toBe(0);
  });

  test("SIGUSR2 makes it open the file anew, and lines before it stay in the old one", async () => {
    const file = join(folder, "a.log");
    const script = `
      import { createLog } from ${JSON.stringify(new URL("../../../src/runtime/log.ts", import.meta.url).href)};
      await using log = createLog({ level: "info", format: "text", file: ${JSON.stringify(file)} });
      log.info("before");
      process.stdin.on("data", () => log.info("tick"));
      await new Promise((resolve) => process.stdin.on("end", resolve));`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["pipe", "ignore", "inherit"],
    });
    await eventually("first line", async () => (await readFile(file, "utf8")).includes("before"));
    await rename(file, `${file}.1`);
    child.kill("SIGUSR2");
    await eventually("line in the new file", async () => {
      child.stdin.write("x");
      return (await readFile(file, "utf8")).includes("tick");
    });
    child.stdin.end();
    await once(child, "exit");
    expect(await readFile(`${file}.1`, "utf8")).toContain("before");
    expect(await readFile(file, "utf8")).not.toContain("before");
  });

  test("a file that can't be opened is refused at once, with its name", () => {
    const file = join(folder, "none", "a.log");
    const fault = faultOf(() => createLog({ level: "info", format: "text", file }));
    expect(fault).toMatchObject(refusal("unavailable", "log-file-unavailable"));
    expect(fault.message).toContain(file);
  });

  test("a reader of standard output that goes away stops the log, not the program", async () => {
    const script = `
      import { createLog } from ${JSON.stringify(new URL("../../../src/runtime/log.ts", import.meta.url).href)};
      const log = createLog({ level: "info", format: "text" });
      for (let i = 0; i < 200; i++) {
        log.info("x".repeat(10_000));
        await new Promise(setImmediate);
      }
      await log[Symbol.asyncDispose]();
      log.info("after the end");`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script]);
    await once(child.stdout, "data");
    child.stdout.destroy();
    expect(await once(child, "close")).toEqual([0, null]);
  });

  test("what is logged after disposal is dropped", async () => {
    const file = join(folder, "a.log");
    const log = createLog({ level: "info", format: "text", file });
    log.info("before");
    await log[Symbol.asyncDispose]();
    await log[Symbol.asyncDispose]();
    log.info("after");
    log.reopen();
    expect(await readFile(file, "utf8")).toMatch(/msg=before\n$/);
  });

  test("standard output gets every line, also when the program ends at once", async () => {
    const script = `
      import { createLog } from ${JSON.stringify(new URL("../../../src/runtime/log.ts", import.meta.url).href)};
      const log = createLog({ level: "info", format: "text" });
      for (let i = 0; i < 5000; i++) log.info("line", { i });
      process.exit(0);`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script]);
    const lines = (await output(child)).trimEnd().split("\n");
    expect(lines).toHaveLength(5000);
    expect(lines.at(-1)).toContain("i=4999");
  });
});

async function output(child: ChildProcess): Promise<string> {
  let text = "";
  child.stdout?.on("data", (chunk: Buffer) => {
    text += chunk.toString();
  });
  await once(child, "close");
  return text;
}
