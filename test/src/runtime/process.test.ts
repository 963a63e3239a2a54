import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, test } from "vitest";
import { eventually } from "../../support/eventually.ts";

const PROCESS = JSON.stringify(new URL("../../../src/runtime/process.ts", import.meta.url).href);
const FAULT = JSON.stringify(new URL("../../../src/runtime/fault.ts", import.meta.url).href);

interface Running {
  readonly child: ChildProcess;
  out: string;
  err: string;
  readonly ended: Promise<readonly [status: number | null, signal: string | null]>;
}

/** A program whose `main` is the given code, with `signal` and a `wait` for it. */
function start(main: string, options = "{}"): Running {
  const script = `
    import { raiseUmask, runProgram } from ${PROCESS};
    import { Fault } from ${FAULT};
    const stopped = (signal) => new Promise((resolve) => signal.addEventListener("abort", resolve));
    const forever = () => new Promise(() => setInterval(() => {}, 1000));
    await runProgram(async (signal) => { ${main} }, ${options});`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script]);
  const running: Running = {
    child,
    out: "",
    err: "",
    ended: once(child, "close") as Promise<[number | null, string | null]>,
  };
  child.stdout.on("data", (chunk: Buffer) => {
    running.out += chunk.toString();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    running.err += chunk.toString();
  });
  return running;
}

async function ready(running: Running): Promise<void> {
  await eventually("the program to be ready", () => running.out.includes("ready"));
}

describe("exit status", () => {
  test.each([
    { what: "nothing returned", main: "", status: 0, err: "" },
    { what: "a number returned", main: "return 3;", status: 3, err: "" },
    {
      what: "a fault",
      main: 'throw new Fault("invalid", "bad flag", { hint: "use another" });',
      status: 1,
      err: "Error: bad flag\nHint: use another\nCode: invalid\n",
    },
    { what: "an error", main: 'throw new TypeError("oops");', status: 1, err: "Error: oops\nCode: internal\n" },
    {
      what: "a rejection nobody handles",
      main: 'void Promise.reject(new Error("lost")); await forever();',
      status: 1,
      err: "Error: lost\nCode: internal\n",
    },
    {
      what: "an exception nobody catches",
      main: 'setImmediate(() => { throw new Error("thrown"); }); await forever();',
      status: 1,
      err: "Error: thrown\nCode: internal\n",
    },
    { what: "work that is left over", main: "setInterval(() => {}, 1000);", status: 0, err: "" },
  ])("$what is status $status", async ({ main, status, err }) => {
    const running = start(main);
    expect(await running.ended).toEqual([status, null]);
    expect(running.err).toBe(err);
  });

  test("output is complete before the process ends", async () => {
    const running = start('process.stdout.write("x".repeat(3_000_000));');
    expect(await running.ended).toEqual([0, null]);
    expect(running.out).toHaveLength(3_000_000);
  });

  test("a reader that goes away ends the program, as SIGPIPE would", async () => {
    const running = start('for (;;) { process.stdout.write("x".repeat(100_000)); await new Promise(setImmediate); }');
    await once(running.child.stdout ?? running.child, "data");
    running.child.stdout?.destroy();
    expect(await running.ended).toEqual([141, null]);
  });
});

describe("signals", () => {
  test.each(["SIGINT", "SIGTERM"] as const)("%s ends the program in order, with status 0", async (name) => {
    const running = start('console.log("ready"); await stopped(signal); console.log("drained");');
    await ready(running);
    running.child.kill(name);
    expect(await running.ended).toEqual([0, null]);
    expect(running.out).toContain("drained");
  });

  test.each([
    { what: "an aborted wait", end: "signal.throwIfAborted();" },
    { what: "a cancelled fault", end: 'throw new Fault("cancelled", "start-up was stopped");' },
  ])("during start-up too, when it ends by $what", async ({ end }) => {
    const running = start(`console.log("ready"); await stopped(signal); ${end}`);
    await ready(running);
    running.child.kill("SIGTERM");
    expect(await running.ended).toEqual([0, null]);
    expect(running.err).toBe("");
  });

  test("what goes wrong while stopping is told, status 1", async () => {
    const running = start('console.log("ready"); await stopped(signal); throw new Error("flush failed");');
    await ready(running);
    running.child.kill("SIGTERM");
    expect(await running.ended).toEqual([1, null]);
    expect(running.err).toBe("Error: flush failed\nCode: internal\n");
  });

  test("a second signal ends it by force", async () => {
    const running = start('console.log("ready"); await stopped(signal); console.log("stopping"); await forever();');
    await ready(running);
    running.child.kill("SIGTERM");
    await eventually("the first signal to arrive", () => running.out.includes("stopping"));
    running.child.kill("SIGINT");
    expect(await running.ended).toEqual([1, null]);
    expect(running.err).toBe("Error: stopped by force: second signal (SIGINT)\n");
  });

  test("so does the end of the time to drain", async () => {
    const running = start('console.log("ready"); await forever();', "{ drainMs: 300 }");
    await ready(running);
    running.child.kill("SIGTERM");
    expect(await running.ended).toEqual([1, null]);
    expect(running.err).toBe("Error: stopped by force: not stopped within 0.3 s\n");
  });
});

describe("umask", () => {
  const print = "console.log(process.umask().toString(8)); ";
  const raise = `raiseUmask({ info: (text) => console.log(text) }); ${print}`;

  test("a permissive one is raised to SPIRE's least, in SPIRE's words", async () => {
    const running = start(`process.umask(0o022); ${raise}`);
    await running.ended;
    expect(running.out).toBe("Current umask 0022 is too permissive; setting umask 0027\n27\n");
  });

  test("a stricter one stays as it is, without a word", async () => {
    const running = start(`process.umask(0o077); ${raise}`);
    await running.ended;
    expect(running.out).toBe("77\n");
  });
});
