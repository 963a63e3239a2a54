import { type Command, type CommandNode, command, group, type Program } from "../runtime/cli.ts";
import type { FlagSpec } from "../runtime/flags.ts";
import type { Io } from "../runtime/terminal.ts";
import { completionScript, SHELLS, type Shell } from "./completion-scripts.ts";

/** A word that may stand where the cursor is, and what it is. */
export interface Candidate {
  readonly value: string;
  readonly description?: string;
}

/** Where and how to ask for what exists right now. It answers quickly or not at all, and never throws. */
export type AskLive = (
  kind: string,
  flags: ReadonlyMap<string, string>,
  env: Io["env"],
) => Promise<readonly Candidate[]>;

/** The candidate that stands for "names of files", which the shell knows better. */
const FILES: Candidate = { value: ":file" };

const HIDDEN_PREFIX = "__";

/** `completion bash|zsh|fish`, and the hidden command that their scripts call with the words up to the cursor. */
export function completionCommands(program: () => Program, live: AskLive): Readonly<Record<string, CommandNode>> {
  const ofShell = (shell: Shell): CommandNode =>
    command({
      summary: `Prints the completion script for ${shell}`,
      flags: {},
      examples: [SHELLS[shell].install],
      run: async ({ io }) => void io.stdout.write(completionScript(shell, program().name)),
    });
  return {
    completion: group("Prints a script that lets a shell complete commands, flags and values", {
      bash: ofShell("bash"),
      fish: ofShell("fish"),
      zsh: ofShell("zsh"),
    }),
    [`${HIDDEN_PREFIX}complete`]: command({
      summary: "Lists what may stand at the end of the line",
      flags: {},
      operands: "-- WORD…",
      examples: [`${HIDDEN_PREFIX}complete -- entry show -spiffeID ""`],
      async run({ args, io }) {
        const candidates = await complete(program(), args, (kind, flags) => live(kind, flags, io.env));
        const lines = candidates.map(({ value, description = "" }) => `${value}\t${description}\n`);
        io.stdout.write(lines.join(""));
      },
    }),
  };
}

type Live = (kind: string, flags: ReadonlyMap<string, string>) => Promise<readonly Candidate[]>;

/** The last word is the one to complete; it may be empty. */
async function complete(program: Program, words: readonly string[], live: Live): Promise<readonly Candidate[]> {
  const last = words.at(-1) ?? "";
  const place = walk(program, words.slice(0, -1));
  const found = await candidates(place, last, live);
  return found === FILES_ONLY ? found : found.filter(({ value }) => value.startsWith(last));
}

const FILES_ONLY: readonly Candidate[] = [FILES];

interface Place {
  readonly node: CommandNode;
  /** What stands behind the command's words, before the last word. */
  readonly rest: readonly string[];
}

function walk(program: Program, words: readonly string[]): Place {
  let node: CommandNode = { summary: program.summary, commands: program.commands };
  for (const [index, word] of words.entries()) {
    const child = node.commands !== undefined && Object.hasOwn(node.commands, word) ? node.commands[word] : undefined;
    if (child === undefined) return { node, rest: words.slice(index) };
    node = child;
  }
  return { node, rest: [] };
}

async function candidates({ node, rest }: Place, last: string, live: Live): Promise<readonly Candidate[]> {
  const children =
    rest.length > 0
      ? []
      : Object.entries(node.commands ?? {})
          .filter(([name]) => !name.startsWith(HIDDEN_PREFIX))
          .map(([name, { summary }]) => ({ value: name, description: summary }));
  if (node.command === undefined) return children;
  const { given, open } = readFlags(node.command, rest);
  if (open !== undefined) return valuesOf(open, given, live);
  const equals = last.indexOf("=");
  if (last.startsWith("-") && equals > 0) return afterEquals({ command: node.command, last, equals, given, live });
  return last === "" && children.length > 0 ? children : [...children, ...flagNames(node.command, last)];
}

interface Flags {
  /** As they were given, by their names. */
  readonly given: ReadonlyMap<string, string>;
  /** The flag whose value stands next. */
  readonly open: FlagSpec | undefined;
}

function readFlags({ flags }: Command, words: readonly string[]): Flags {
  const given = new Map<string, string>();
  let open: { readonly name: string; readonly spec: FlagSpec } | undefined;
  for (const word of words) {
    if (open !== undefined) {
      given.set(open.name, word);
      open = undefined;
      continue;
    }
    const [, text = "", equals, value = ""] = /^--?([^=]+)(=)?(.*)$/s.exec(word) ?? [];
    const found = findFlag(flags, text);
    if (found === undefined) continue;
    if (equals !== undefined) given.set(found.name, value);
    else if (found.spec.type !== "bool") open = found;
  }
  return { given, open: open?.spec };
}

function findFlag(
  flags: Command["flags"],
  text: string,
): { readonly name: string; readonly spec: FlagSpec } | undefined {
  const folded = text.replaceAll("-", "").toLowerCase();
  const entry = text === "" ? undefined : Object.entries(flags).find(([name]) => name.toLowerCase() === folded);
  return entry === undefined ? undefined : { name: entry[0], spec: entry[1] };
}

interface EqualsPlace {
  readonly command: Command;
  readonly last: string;
  readonly equals: number;
  readonly given: ReadonlyMap<string, string>;
  readonly live: Live;
}

async function afterEquals({ command, last, equals, given, live }: EqualsPlace): Promise<readonly Candidate[]> {
  const flag = findFlag(command.flags, last.slice(0, equals).replace(/^--?/, ""));
  if (flag === undefined) return [];
  const found = await valuesOf(flag.spec, given, live);
  if (found === FILES_ONLY) return found;
  return found.map((one) => ({ ...one, value: `${last.slice(0, equals + 1)}${one.value}` }));
}

async function valuesOf(spec: FlagSpec, given: ReadonlyMap<string, string>, live: Live): Promise<readonly Candidate[]> {
  const { complete: source } = spec;
  if (source === "file") return FILES_ONLY;
  if (typeof source === "string") return live(source, given);
  return (source ?? []).map((value) => ({ value }));
}

/** After two dashes in the form that goes with them. */
function flagNames({ flags }: Command, last: string): readonly Candidate[] {
  const name = last.startsWith("--") ? (each: string) => `--${kebab(each)}` : (each: string) => `-${each}`;
  return Object.entries(flags).map(([each, { doc }]) => ({ value: name(each), description: doc }));
}

/** `x509SVIDTTL` is `x509-svid-ttl`: words that the SPIFFE world writes in capitals stay words. */
function kebab(name: string): string {
  return name
    .replace(/(SVID|TTL|URL|API|SDS|JTI|ID)(?=[A-Z]|$)/g, (word) => `-${word.toLowerCase()}`)
    .replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
    .replace(/^-/, "");
}
