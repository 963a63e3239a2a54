import { Fault } from "./fault.ts";
import { asksForHelp, type FlagSpec, type FlagSpecs, type FlagValues, parseFlags, type Spelling } from "./flags.ts";
import { didYouMean } from "./nearest.ts";
import { errorText, nextStep } from "./process.ts";
import { alignColumns, type Io } from "./terminal.ts";

/** What a command gets. */
export interface CommandCall<F extends FlagSpecs> {
  readonly flags: FlagValues<F>;
  /** Only for a command that names its `operands`. */
  readonly args: readonly string[];
  readonly spelling: Spelling;
  readonly io: Io;
  readonly signal: AbortSignal;
}

export interface CommandSpec<F extends FlagSpecs> {
  /** One line, as it stands in the list of commands. */
  readonly summary: string;
  /** More, for the command's own help. */
  readonly description?: string;
  readonly flags: F;
  /** Names of what may follow the flags, such as `[-- COMMAND…]`. Default: nothing may. */
  readonly operands?: string;
  /** Whole command lines, without the program's name. */
  readonly examples: readonly [string, ...string[]];
  /** The exit status; nothing is 0. What it throws is printed, and is status 1. */
  run(call: CommandCall<F>): Promise<number | undefined | void>;
}

/** A command whose flag types are checked and forgotten. */
export interface Command {
  readonly summary: string;
  readonly description: string | undefined;
  readonly flags: FlagSpecs;
  readonly operands: string | undefined;
  readonly examples: readonly string[];
  invoke(
    values: Readonly<Record<string, unknown>>,
    rest: Omit<CommandCall<FlagSpecs>, "flags">,
  ): Promise<number | undefined | void>;
}

/** A place in the tree: a command, a group of commands, or both (`api fetch` and `api fetch jwt`). */
export interface CommandNode {
  readonly summary: string;
  readonly command?: Command;
  readonly commands?: CommandTree;
}

/** Names that begin with two underscores are for programs, and not listed. */
export type CommandTree = Readonly<Record<string, CommandNode>>;

export interface Program {
  /** As the user types it. */
  readonly name: string;
  readonly version: string;
  readonly summary: string;
  readonly commands: CommandTree;
  /** What to do about an error that brings no hint, by its code. */
  fixOf?(code: string): string | undefined;
}

/** A leaf of the tree, with the types of its flags inferred. */
export function command<const F extends FlagSpecs>(spec: CommandSpec<F>): CommandNode & { readonly command: Command } {
  const { summary, description, flags, operands, examples } = spec;
  // `parseFlags` builds the values from the same specs, which is what the type says.
  const invoke: Command["invoke"] = (values, rest) => spec.run({ ...rest, flags: values as FlagValues<F> });
  return { summary, command: { summary, description, flags, operands, examples, invoke } };
}

export function group(summary: string, commands: CommandTree): CommandNode {
  return { summary, commands };
}

export interface CommandLine {
  /** Without node and the script. */
  readonly args: readonly string[];
  readonly io: Io;
  readonly signal: AbortSignal;
}

const FAILURE = 1;
/** What SPIRE returns when no command was named or the name is unknown. */
const NO_SUCH_COMMAND = 127;

/** Runs one command line and returns the exit status. Errors are printed, never thrown; being stopped is status 0. */
export async function runCommandLine(program: Program, line: CommandLine): Promise<number> {
  const { args, io } = line;
  const first = args[0];
  if (first === "version" || (first !== undefined && /^(-v|--?version)$/.test(first))) {
    io.stdout.write(`${program.version}\n`);
    return 0;
  }
  const place = find(program, args);
  if (place.rest[0] !== undefined && asksForHelp(place.rest[0])) {
    io.stdout.write(helpText(program, place));
    return 0;
  }
  if (place.node.command !== undefined) return runCommand(program, { place, command: place.node.command, line });
  return refuseGroup(program, place, io);
}

interface Place {
  readonly node: CommandNode;
  readonly path: readonly string[];
  readonly rest: readonly string[];
}

function find(program: Program, args: readonly string[]): Place {
  let node: CommandNode = { summary: program.summary, commands: program.commands };
  let depth = 0;
  for (;;) {
    const name = args[depth];
    const children = node.commands;
    const child =
      name !== undefined && children !== undefined && Object.hasOwn(children, name) ? children[name] : undefined;
    if (child === undefined) return { node, path: args.slice(0, depth), rest: args.slice(depth) };
    node = child;
    depth += 1;
  }
}

interface CommandRun {
  readonly place: Place;
  readonly command: Command;
  readonly line: CommandLine;
}

async function runCommand(program: Program, { place, command, line }: CommandRun): Promise<number> {
  const { io, signal } = line;
  try {
    const parsed = parseFlags(command.flags, place.rest);
    if (parsed.help) {
      io.stdout.write(helpText(program, place));
      return 0;
    }
    if (command.operands === undefined) io.stderr.write(ignoring(place, parsed.rest));
    return (await command.invoke(parsed.values, { args: parsed.rest, spelling: parsed.spelling, io, signal })) ?? 0;
  } catch (error) {
    const fault = advised(program, Fault.from(error));
    if (fault.kind === "cancelled" && signal.aborted) return 0;
    if (fault.code === "usage") io.stderr.write(usageError(place, command, fault));
    else io.stderr.write(errorText(fault));
    return FAILURE;
  }
}

function advised(program: Program, fault: Fault): Fault {
  const hint = fault.hint ?? program.fixOf?.(fault.code);
  return hint === undefined || hint === fault.hint
    ? fault
    : new Fault(fault.kind, fault.message, { code: fault.code, hint });
}

/**
 * SPIRE ignores what follows its flags, and scripts end in words such as the "true" of a boolean flag: a warning then.
 * Throws `invalid` where the words would mean something else to whoever wrote them: flags among them, "false", the
 * slip of a subcommand's name.
 */
function ignoring(place: Place, words: readonly string[]): string {
  const [word] = words;
  if (word === undefined) return "";
  const near = didYouMean(word, names(place.node.commands));
  if (near === undefined && word !== "false" && !words.some((one) => one.startsWith("-")))
    return `Warning: ignored, as it belongs to no flag: ${words.map((one) => JSON.stringify(one)).join(" ")}\n`;
  const boolean = /^(true|false)$/.test(word) ? `write -flag=${word}` : undefined;
  const hint = near ?? boolean ?? "put flags first, and quote values that hold spaces";
  throw new Fault("invalid", `unexpected argument ${JSON.stringify(word)}`, { code: "usage", hint });
}

function usageError({ path }: Place, command: Command, fault: Fault): string {
  return `${fault.message}\n${nextStep(fault)}Usage of ${path.join(" ")}:\n${flagLines(command.flags)}`;
}

function refuseGroup(program: Program, place: Place, io: Io): number {
  const word = place.rest[0];
  if (word?.startsWith("-") === true) {
    io.stderr.write(
      "Invalid flags before the subcommand. If these flags are for\nthe subcommand, please put them after the subcommand.\n\n",
    );
    io.stderr.write(helpText(program, place));
    return FAILURE;
  }
  if (word !== undefined) {
    const name = [...place.path, word].join(" ");
    const nearest = didYouMean(word, names(place.node.commands));
    const hint = nearest ?? `run "${[program.name, ...place.path].join(" ")} --help" for the list`;
    io.stderr.write(errorText(new Fault("invalid", `unknown command "${name}"`, { code: "usage", hint })));
  }
  io.stderr.write(helpText(program, place));
  return place.path.length === 0 ? NO_SUCH_COMMAND : FAILURE;
}

function helpText(program: Program, { node, path }: Place): string {
  const name = [program.name, ...path].join(" ");
  const { command, commands } = node;
  const parts = [`${command?.description ?? node.summary}\n`];
  if (command !== undefined) {
    const flags = Object.keys(command.flags).length === 0 ? "" : " [flags]";
    parts.push(`Usage: ${name}${flags}${command.operands === undefined ? "" : ` ${command.operands}`}\n`);
    if (flags !== "") parts.push(`Flags:\n${flagLines(command.flags)}`);
    const examples = command.examples.map((example) => `  ${program.name} ${example}\n`).join("");
    parts.push(`${command.examples.length > 1 ? "Examples" : "Example"}:\n${examples}`);
  } else {
    parts.push(`Usage: ${name}${path.length === 0 ? " [--version] [--help]" : ""} <command> [<args>]\n`);
  }
  if (commands !== undefined) {
    const rows = listed(commands).map(([child, { summary }]) => [`   ${child}`, summary]);
    parts.push(`Available commands are:\n${alignColumns(rows)}`);
    parts.push(`Run "${name} <command> --help" for the flags of a command and an example.\n`);
  }
  return parts.join("\n");
}

function listed(commands: CommandTree = {}): readonly [string, CommandNode][] {
  return Object.entries(commands).filter(([name]) => !name.startsWith("__"));
}

function names(commands: CommandTree | undefined): readonly string[] {
  return listed(commands).map(([name]) => name);
}

/** As Go's flag package prints them. */
function flagLines(specs: FlagSpecs): string {
  return Object.keys(specs)
    .sort()
    .map((name) => {
      const spec = specs[name];
      return spec === undefined ? "" : `  -${name}${typeWord(spec)}\n    \t${spec.doc}${defaultText(spec)}\n`;
    })
    .join("");
}

function typeWord(spec: FlagSpec): string {
  if (spec.type === "bool") return "";
  return spec.type === "strings" || spec.type === "output" ? " value" : ` ${spec.type}`;
}

function defaultText(spec: FlagSpec): string {
  if (!("default" in spec) || spec.default === undefined || spec.default === "") return "";
  return ` (default ${spec.type === "string" ? JSON.stringify(spec.default) : spec.default})`;
}
