import { describe, expect, test } from "vitest";
import { command, group, type Program, runCommandLine } from "../../../src/runtime/cli.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { outputFlag } from "../../../src/runtime/flags.ts";
import type { Io } from "../../../src/runtime/terminal.ts";

interface Outcome {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

const create = command({
  summary: "Creates registration entries",
  description: "Creates registration entries, one from flags or many from a file.",
  flags: {
    spiffeID: { type: "string", doc: "The SPIFFE ID that this record represents" },
    ttl: { type: "int", doc: "The lifetime, in seconds", default: 600 },
    path: { type: "string", doc: "Path to the socket", default: "/tmp/api.sock" },
    timeout: { type: "duration", doc: "Time to wait", default: "5s" },
    selector: { type: "strings", doc: "A selector. Can be used more than once" },
    admin: { type: "bool", doc: "Grants access" },
    output: outputFlag,
  },
  examples: ["entry create -spiffeID spiffe://example.org/w -selector unix:uid:1000"],
  async run({ flags, io }) {
    const ttl: number = flags.ttl;
    const selectors: readonly string[] = flags.selector;
    if (selectors.length === 0)
      throw new Fault("invalid", "at least one selector is required", { code: "no-selector", hint: "add -selector" });
    io.stdout.write(`${flags.spiffeID ?? "none"} ${ttl} ${selectors.join()} ${flags.admin} ${flags.timeout}\n`);
    return flags.admin ? 3 : undefined;
  },
});

const fetchCommand = command({
  summary: "Fetches X.509-SVIDs",
  flags: {},
  operands: "[-- COMMAND…]",
  examples: ["api fetch", "api fetch -- ls"],
  run: async ({ args, io }) => void io.stdout.write(`fetch ${args.join(" ")}\n`),
});

const program: Program = {
  name: "spire-server",
  version: "1.2.3",
  summary: "Issues SPIFFE identities.",
  commands: {
    entry: group("Registration entries", {
      create,
      fail: command({
        summary: "Fails",
        flags: {},
        examples: ["entry fail"],
        run: () => Promise.reject(new TypeError("oops")),
      }),
    }),
    api: group("The Workload API", {
      fetch: {
        ...fetchCommand,
        commands: {
          jwt: command({ summary: "Fetches JWT-SVIDs", flags: {}, examples: ["api fetch jwt"], run: async () => 7 }),
        },
      },
    }),
    wait: command({
      summary: "Waits",
      flags: {},
      examples: ["wait"],
      run: ({ signal }) =>
        new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason as Error))),
    }),
  },
};

async function run(line: string, signal = new AbortController().signal): Promise<Outcome> {
  const out: string[] = [];
  const err: string[] = [];
  const io: Io = {
    stdout: { write: (part) => out.push(part) },
    stderr: { write: (part) => err.push(part) },
    stdin: (async function* () {})(),
    env: {},
  };
  const status = await runCommandLine(program, { args: line.split(" ").filter(Boolean), io, signal });
  return { status, out: out.join(""), err: err.join("") };
}

describe("running commands", () => {
  test("flags reach the command with their types, and nothing returned is status 0", async () => {
    const line = "entry create -spiffeID spiffe://a.test/w --selector a:1 -selector=b:2 --timeout 1m";
    expect(await run(line)).toEqual({ status: 0, out: "spiffe://a.test/w 600 a:1,b:2 false 60000\n", err: "" });
  });

  test("what a command returns is the status", async () => {
    expect((await run("entry create -selector a:1 -admin")).status).toBe(3);
  });

  test("words after the last flag are ignored with a warning, as SPIRE ignores them", async () => {
    const { status, err } = await run("entry create -selector a:1 -admin true");
    expect([status, err]).toEqual([3, 'Warning: ignored, as it belongs to no flag: "true"\n']);
    const { out } = await run("entry create -selector a:1 config /server.conf");
    expect(out).toMatch(/ a:1 false /);
  });

  test("a place can be a command and hold others", async () => {
    expect((await run("api fetch")).out).toBe("fetch \n");
    expect((await run("api fetch jwt")).status).toBe(7);
    expect((await run("api fetch -- jwt x")).out).toBe("fetch jwt x\n");
  });

  test("a fault is its cause, its hint and its code, status 1", async () => {
    expect(await run("entry create")).toEqual({
      status: 1,
      out: "",
      err: "Error: at least one selector is required\nHint: add -selector\nCode: no-selector\n",
    });
  });

  test("with -output json an error leaves standard output empty, as SPIRE does", async () => {
    const { status, out, err } = await run("entry create -output json");
    expect({ status, out }).toEqual({ status: 1, out: "" });
    expect(err).toContain("Error: at least one selector is required\n");
  });

  test("an error nobody expected is status 1, without its stack", async () => {
    expect(await run("entry fail")).toEqual({ status: 1, out: "", err: "Error: oops\nCode: internal\n" });
  });

  test("a command that was stopped is status 0", async () => {
    const stop = new AbortController();
    const running = run("wait", stop.signal);
    stop.abort();
    expect(await running).toEqual({ status: 0, out: "", err: "" });
  });
});

const USAGE = `Usage of entry create:
  -admin
    	Grants access
  -output value
    	Desired output format (pretty, json, table, wide, yaml); default: pretty.
  -path string
    	Path to the socket (default "/tmp/api.sock")
  -selector value
    	A selector. Can be used more than once
  -spiffeID string
    	The SPIFFE ID that this record represents
  -timeout duration
    	Time to wait (default 5s)
  -ttl int
    	The lifetime, in seconds (default 600)
`;

describe("wrong use", () => {
  test.each([
    {
      line: "entry create -spifeID x",
      err: `flag provided but not defined: -spifeID\nHint: did you mean "-spiffeID"?\nCode: usage\n${USAGE}`,
    },
    { line: "entry create -ttl x", err: `invalid value "x" for flag -ttl: parse error\nCode: usage\n${USAGE}` },
    { line: "entry create -spiffeID", err: `flag needs an argument: -spiffeID\nCode: usage\n${USAGE}` },
    {
      line: "entry create -admin true -ttl 5",
      err: `unexpected argument "true"\nHint: write -flag=true\nCode: usage\n${USAGE}`,
    },
    {
      line: "entry create -admin false",
      err: `unexpected argument "false"\nHint: write -flag=false\nCode: usage\n${USAGE}`,
    },
    {
      line: "entry create x -admin",
      err: `unexpected argument "x"\nHint: put flags first, and quote values that hold spaces\nCode: usage\n${USAGE}`,
    },
  ])("$line: as Go says it, with the usage, status 1", async ({ line, err }) => {
    expect(await run(line)).toEqual({ status: 1, out: "", err });
  });

  test.each([
    { line: "", status: 127, err: /^Issues SPIFFE identities\./ },
    {
      line: "entri",
      status: 127,
      err: /^Error: unknown command "entri"\nHint: did you mean "entry"\?\nCode: usage\nIssues/,
    },
    {
      line: "zzzzz",
      status: 127,
      err: /^Error: unknown command "zzzzz"\nHint: run "spire-server --help" for the list\n/,
    },
    { line: "entry", status: 1, err: /^Registration entries\n/ },
    { line: "entry creat", status: 1, err: /^Error: unknown command "entry creat"\nHint: did you mean "create"\?\n/ },
    { line: "entry toString", status: 1, err: /^Error: unknown command "entry toString"/ },
    {
      line: "-x entry",
      status: 1,
      err: /^Invalid flags before the subcommand\. If these flags are for\nthe subcommand, please put/,
    },
  ])("'$line' has SPIRE's status $status", async ({ line, status, err }) => {
    const outcome = await run(line);
    expect(outcome).toMatchObject({ status, out: "" });
    expect(outcome.err).toMatch(err);
  });
});

describe("help", () => {
  test("a command's help has description, flags and an example, on standard output", async () => {
    expect(await run("entry create --help")).toEqual({
      status: 0,
      err: "",
      out: `Creates registration entries, one from flags or many from a file.

Usage: spire-server entry create [flags]

${USAGE.replace("Usage of entry create:", "Flags:")}
Example:
  spire-server entry create -spiffeID spiffe://example.org/w -selector unix:uid:1000
`,
    });
  });

  test("a group's help lists its commands", async () => {
    expect((await run("entry --help")).out).toBe(`Registration entries

Usage: spire-server entry <command> [<args>]

Available commands are:
   create  Creates registration entries
   fail    Fails

Run "spire-server entry <command> --help" for the flags of a command and an example.
`);
  });

  test.each(["--help", "-h", "-help", "entry -h", "entry create -h", "api fetch -help", "entry create -admin --help"])(
    "%s is status 0",
    async (line) => {
      const { status, out, err } = await run(line);
      expect({ status, err }).toEqual({ status: 0, err: "" });
      expect(out).toContain("Usage: spire-server");
    },
  );

  test.each(["--version", "-version", "-v", "version"])("%s prints the version alone", async (line) => {
    expect(await run(line)).toEqual({ status: 0, out: "1.2.3\n", err: "" });
  });
});
