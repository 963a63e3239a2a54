import { describe, expect, test } from "vitest";
import { agentProgram } from "../../agent/cli/program.ts";
import { serverProgram } from "../../server/cli/program.ts";
import { type CommandNode, type Program, runCommandLine } from "../../src/runtime/cli.ts";

const PROGRAMS = {
  "steeple-server": serverProgram({ SPIRE_SERVER_FFLAGS: "wit-svid" }),
  "steeple-agent": agentProgram(),
};

interface Place {
  readonly program: Program;
  readonly words: readonly string[];
  readonly node: CommandNode;
}

function places(program: Program, words: readonly string[] = [], node: CommandNode = program): readonly Place[] {
  const below = Object.entries(node.commands ?? {}).flatMap(([name, child]) =>
    places(program, [...words, name], child),
  );
  return [{ program, words, node }, ...below];
}

async function help({
  program,
  words,
}: Place): Promise<{ readonly status: number; readonly out: string; readonly err: string }> {
  const [out, err]: [string[], string[]] = [[], []];
  const io = {
    stdout: { write: (part: string) => out.push(part) },
    stderr: { write: (part: string) => err.push(part) },
    stdin: (async function* () {})(),
    env: {},
  };
  const status = await runCommandLine(program, {
    args: [...words, "--help"],
    io,
    signal: new AbortController().signal,
  });
  return { status, out: out.join(""), err: err.join("") };
}

const ALL = Object.values(PROGRAMS).flatMap((program) => places(program));

describe("help", () => {
  test.each(ALL.map((place) => ({ line: [place.program.name, ...place.words].join(" "), place })))(
    "$line --help",
    async ({ line, place }) => {
      const { status, out, err } = await help(place);
      expect({ status, err }).toEqual({ status: 0, err: "" });
      expect(out).toContain(`Usage: ${line}`);
      if (place.node.command === undefined) return;
      // Every example is a line of this command.
      for (const example of place.node.command.examples) expect(example.startsWith(place.words.join(" "))).toBe(true);
      expect(out).toMatch(/\nExamples?:\n {2}steeple-/);
    },
  );

  /** Command words of SPIRE's programs. */
  test.each([
    ...["agent ban", "agent count", "agent evict", "agent list", "agent purge", "agent show", "bundle count"],
    ...["bundle delete", "bundle list", "bundle set", "bundle show", "debug getinfo", "entry count", "entry create"],
    ...["entry delete", "entry show", "entry update", "federation create", "federation delete", "federation list"],
    ...["federation refresh", "federation show", "federation update", "healthcheck", "jwt mint", "logger get"],
    ...["logger reset", "logger set", "run", "token generate", "upstreamauthority revoke", "upstreamauthority taint"],
    ...["validate", "wit mint", "x509 mint"],
    ...["x509", "jwt", "wit"].flatMap((kind) =>
      ["show", "prepare", "activate", "taint", "revoke"].map((step) => `localauthority ${kind} ${step}`),
    ),
  ])("steeple-server %s is a command", (line) => {
    expect(ALL.some(({ program, words }) => program.name === "steeple-server" && words.join(" ") === line)).toBe(true);
  });

  test.each([
    ...[
      "api fetch",
      "api fetch jwt",
      "api fetch x509",
      "api validate jwt",
      "api watch",
      "debug getinfo",
      "healthcheck",
    ],
    ...["logger get", "logger reset", "logger set", "run", "validate"],
  ])("steeple-agent %s is a command", (line) => {
    expect(ALL.some(({ program, words }) => program.name === "steeple-agent" && words.join(" ") === line)).toBe(true);
  });

  test("wit is there only when the environment asks for it, as in SPIRE", () => {
    expect(Object.keys(serverProgram({}).commands)).not.toContain("wit");
  });
});
