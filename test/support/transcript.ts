import { readFileSync } from "node:fs";
import { Readable } from "node:stream";
import { expect } from "vitest";
import { agentProgram } from "../../agent/cli/program.ts";
import { serverProgram } from "../../server/cli/program.ts";
import { runCommandLine } from "../../src/runtime/cli.ts";
import type { TextOutput } from "../../src/runtime/terminal.ts";

/**
 * One step of a transcript file:
 *
 *     # a comment
 *     $ server entry count        must end with status 0
 *     ! server entry delete       must end with status 1; `!127 …` names another
 *     < {"ids": []}               lines of standard input
 *     > 1 registration entry      the whole standard output, line by line; `*` stands for anything
 *     2> Error: *                 the whole standard error
 *
 * `server` and `agent` are the programs. `<name>*` keeps what it stood for; `${name}` puts it in. A pattern `...` ends the
 * comparison.
 */
export interface Step {
  readonly line: number;
  readonly command: string;
  readonly status: number;
  readonly input: string;
  readonly stdout: readonly string[];
  readonly stderr: readonly string[];
}

function readTranscript(path: string): readonly Step[] {
  const steps: { line: number; command: string; status: number; input: string; stdout: string[]; stderr: string[] }[] =
    [];
  for (const [index, text] of readFileSync(path, "utf8").split("\n").entries()) {
    const start = /^(\$|!(\d*)) (.*)$/.exec(text);
    const last = steps.at(-1);
    if (start !== null) {
      const status = start[1] === "$" ? 0 : Number(start[2] || 1);
      steps.push({ line: index + 1, command: start[3] ?? "", status, input: "", stdout: [], stderr: [] });
    } else if (text.startsWith("#") || text === "") continue;
    else if (last === undefined) throw new Error(`${path}:${index + 1}: output before the first command`);
    else if (text.startsWith("< ")) last.input += `${text.slice(2)}\n`;
    else if (/^2>( |$)/.test(text)) last.stderr.push(text.slice(3));
    else if (/^>( |$)/.test(text)) last.stdout.push(text.slice(2));
    else throw new Error(`${path}:${index + 1}: not a transcript line: ${text}`);
  }
  return steps;
}

export interface Ran {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

const programs = { server: serverProgram, agent: agentProgram };

/** For `wit mint`, which SPIRE has behind this flag. */
const ENVIRONMENT = { SPIRE_SERVER_FFLAGS: "wit-svid" };

/** Runs all steps of a file, and fails at the first that goes otherwise. `flagsFor` adds flags to a command. */
export async function runTranscript(
  path: string,
  variables: Map<string, string>,
  flagsFor: (command: string) => readonly string[],
): Promise<void> {
  for (const step of readTranscript(path)) {
    const ran = await runStep(step, variables, flagsFor(step.command));
    const where = `${path}:${step.line}: ${step.command}\n`;
    expect(ran.status, `${where}status, with ${ran.stderr}${ran.stdout}`).toBe(step.status);
    expect(difference(ran.stdout, step.stdout, variables), `${where}standard output`).toBeUndefined();
    expect(difference(ran.stderr, step.stderr, variables), `${where}standard error`).toBeUndefined();
  }
}

function runStep(step: Step, variables: ReadonlyMap<string, string>, flags: readonly string[]): Promise<Ran> {
  return runProgram(expand(step.command, variables), { input: expand(step.input, variables), flags });
}

interface RunOptions {
  readonly input?: string;
  /** Go before those of the line. */
  readonly flags?: readonly string[];
}

/** Runs `server …` or `agent …` against whatever its socket leads to; double quotes hold words together. */
export async function runProgram(line: string, { input = "", flags = [] }: RunOptions = {}): Promise<Ran> {
  const words = [...line.matchAll(/"([^"]*)"|(\S+)/g)].map((match) => match[1] ?? match[2] ?? "");
  const [name, ...args] = words;
  const program = programs[name as keyof typeof programs](ENVIRONMENT);
  const [stdout, stderr] = [output(), output()];
  const io = { stdout, stderr, stdin: Readable.from([input]), env: ENVIRONMENT };
  const signal = new AbortController().signal;
  const status = await runCommandLine(program, { args: withFlags(args, flags), io, signal });
  return { status, stdout: stdout.text(), stderr: stderr.text() };
}

function output(): TextOutput & { text(): string } {
  const parts: string[] = [];
  return { write: (part) => parts.push(part), text: () => parts.join("") };
}

/** Flags stand after the command's words and before its own flags. */
function withFlags(args: readonly string[], flags: readonly string[]): readonly string[] {
  const first = args.findIndex((word) => word.startsWith("-"));
  if (first < 0) return [...args, ...flags];
  return [...args.slice(0, first), ...flags, ...args.slice(first)];
}

function expand(text: string, variables: ReadonlyMap<string, string>): string {
  return text.replace(/\$\{(\w+)\}/g, (_, name: string) => variables.get(name) ?? `\${${name}}`);
}

/** The first difference between output and pattern, or undefined. Keeps named parts in `variables`. */
function difference(output: string, patterns: readonly string[], variables: Map<string, string>): string | undefined {
  const lines = output.replace(/\n$/, "").split("\n");
  if (patterns.length === 0) return output === "" ? undefined : `unexpected output:\n${output}`;
  if (patterns.length === 1 && patterns[0] === "*") return undefined;
  for (const [index, pattern] of patterns.entries()) {
    const rest = pattern === "...";
    if (rest) return undefined;
    const line = lines[index];
    const match = line === undefined ? null : toRegExp(expand(pattern, variables)).exec(line);
    if (match === null)
      return `line ${index + 1}: wanted ${JSON.stringify(expand(pattern, variables))}, got ${JSON.stringify(line)} in\n${output}`;
    for (const [name, value] of Object.entries(match.groups ?? {})) variables.set(name, value);
  }
  return lines.length === patterns.length ? undefined : `more lines than wanted:\n${output}`;
}

/** `*` is anything; `<name>*` is anything that is kept under that name. */
function toRegExp(pattern: string): RegExp {
  const source = pattern
    .split(/(<\w+>\*|\*)/)
    .map((part) => {
      const name = /^<(\w+)>\*$/.exec(part)?.[1];
      if (name !== undefined) return `(?<${name}>.*?)`;
      return part === "*" ? ".*?" : part.replace(/[.+?^${}()|[\]\\]/g, "\\$&");
    })
    .join("");
  return new RegExp(`^${source}$`, "u");
}
