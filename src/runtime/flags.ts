import { parseDuration } from "./duration.ts";
import { Fault } from "./fault.ts";
import { quote } from "./logfmt.ts";
import { didYouMean } from "./nearest.ts";

/** One flag of a command, as data: parsing, types of the values, help and completion come from it. */
export type FlagSpec = FlagShape & {
  /** What completion offers: these words, or what the program knows how to list under that name. */
  readonly complete?: readonly string[] | string;
};

type FlagShape =
  | { readonly type: "string"; readonly doc: string; readonly default?: string }
  | { readonly type: "int"; readonly doc: string; readonly default?: number }
  /** Milliseconds of a Go duration; the default is written as one. */
  | { readonly type: "duration"; readonly doc: string; readonly default?: string }
  /** Given without a value, or as `-name=true`. */
  | { readonly type: "bool"; readonly doc: string }
  /** May be repeated. */
  | { readonly type: "strings"; readonly doc: string }
  | { readonly type: "output"; readonly doc: string };

export type FlagSpecs = Readonly<Record<string, FlagSpec>>;

/** `pretty` and `json` are SPIRE's. */
export const OUTPUT_FORMATS = ["pretty", "json", "table", "wide", "yaml"] as const;

export type OutputFormat = (typeof OUTPUT_FORMATS)[number];

export const outputFlag = {
  type: "output",
  doc: "Desired output format (pretty, json, table, wide, yaml); default: pretty.",
  complete: OUTPUT_FORMATS,
} as const satisfies FlagSpec;

type Scalar<S, T> = S extends { readonly default: string | number } ? T : T | undefined;

type FlagValue<S extends FlagSpec> = S extends { readonly type: "bool" }
  ? boolean
  : S extends { readonly type: "strings" }
    ? readonly string[]
    : S extends { readonly type: "output" }
      ? OutputFormat
      : S extends { readonly type: "string" }
        ? Scalar<S, string>
        : Scalar<S, number>;

/** Values by flag name. A flag that was not given has its default, `false`, `[]`, `pretty` or undefined. */
export type FlagValues<F extends FlagSpecs> = { readonly [K in keyof F]: FlagValue<F[K]> };

export interface ParsedFlags {
  readonly values: Readonly<Record<string, unknown>>;
  /** What stands after the flags. */
  readonly rest: readonly string[];
  readonly help: boolean;
  readonly spelling: Spelling;
}

/**
 * How the flags of a line are written: all as SPIRE's manuals do (`-entryID`); some with two dashes, which SPIRE's
 * programs read too (`--id`); or some as only these programs read them (`--entry-id`).
 */
export type Spelling = "spire" | "either" | "own";

const TRUE_WORDS = new Set(["1", "t", "T", "TRUE", "true", "True"]);
const FALSE_WORDS = new Set(["0", "f", "F", "FALSE", "false", "False"]);

/**
 * Parses as Go's flag package does: `-name value`, `-name=value`, one dash or two, ends at `--` or the first argument
 * without a dash. `--kebab-case` finds `camelCase`. Throws `invalid` with Go's wording.
 */
export function parseFlags(specs: FlagSpecs, args: readonly string[]): ParsedFlags {
  const given = new Map<string, unknown>();
  let spelling: Spelling = "spire";
  let next = 0;
  while (next < args.length) {
    const word = args[next] ?? "";
    if (!word.startsWith("-") || word === "-") break;
    next += 1;
    if (word === "--") break;
    const { name, value } = splitFlag(word);
    const found = findFlag(specs, name);
    if (found === undefined) {
      if (name === "h" || name === "help") return { values: {}, rest: [], help: true, spelling };
      throw unknownFlag(specs, name);
    }
    const needsNext = value === undefined && found.spec.type !== "bool";
    if (needsNext && next >= args.length) throw usageFault(`flag needs an argument: -${name}`);
    const text = needsNext ? (args[next] ?? "") : value;
    if (needsNext) next += 1;
    const read = readValue({ name, spec: found.spec, text });
    if (found.spec.type === "output" && given.has(found.name)) refuseSecondFormat({ name, text, given, read });
    spelling = looser(spelling, spellingOf(word, found.name));
    given.set(found.name, found.spec.type === "strings" ? [...listOf(given.get(found.name)), read] : read);
  }
  return { values: withDefaults(specs, given), rest: args.slice(next), help: false, spelling };
}

/** Two dashes before a name in camelCase are a habit of SPIRE's users. */
function spellingOf(word: string, name: string): Spelling {
  if (splitFlag(word).name !== name) return "own";
  return word.startsWith("--") && !/[A-Z]/.test(name) ? "either" : "spire";
}

function looser(a: Spelling, b: Spelling): Spelling {
  return a === "own" || b === "own" ? "own" : a === "either" ? a : b;
}

function refuseSecondFormat(flag: {
  readonly name: string;
  readonly text: string | undefined;
  readonly given: ReadonlyMap<string, unknown>;
  readonly read: unknown;
}): void {
  const before = flag.given.get(flag.name);
  if (before === flag.read) return;
  const reason = `the output format has already been set to ${quote(String(before))}`;
  throw usageFault(`invalid value ${quote(flag.text ?? "")} for flag -${flag.name}: ${reason}`);
}

/** True when this argument asks for help by itself, before any flag is parsed. */
export function asksForHelp(word: string): boolean {
  return word === "-h" || word === "-help" || word === "--help";
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function splitFlag(word: string): { readonly name: string; readonly value: string | undefined } {
  const text = word.slice(word.startsWith("--") ? 2 : 1);
  if (text === "" || text.startsWith("-") || text.startsWith("=")) throw usageFault(`bad flag syntax: ${word}`);
  const equals = text.indexOf("=");
  if (equals < 0) return { name: text, value: undefined };
  return { name: text.slice(0, equals), value: text.slice(equals + 1) };
}

function findFlag(specs: FlagSpecs, name: string): { readonly name: string; readonly spec: FlagSpec } | undefined {
  const exact = Object.hasOwn(specs, name) ? name : Object.keys(specs).find((known) => kebab(known) === kebab(name));
  const spec = exact === undefined ? undefined : specs[exact];
  return exact === undefined || spec === undefined ? undefined : { name: exact, spec };
}

/** One form for `x509SVIDTTL` and `x509-svid-ttl`: a run of capitals may hold several words, so dashes don't count. */
function kebab(name: string): string {
  return name.replaceAll("-", "").toLowerCase();
}

interface FlagText {
  readonly name: string;
  readonly spec: FlagSpec;
  readonly text: string | undefined;
}

function readValue({ name, spec, text = "true" }: FlagText): unknown {
  const refuse = (reason: string): Fault => usageFault(`invalid value ${quote(text)} for flag -${name}: ${reason}`);
  switch (spec.type) {
    case "string":
    case "strings":
      return text;
    case "bool":
      if (TRUE_WORDS.has(text)) return true;
      if (FALSE_WORDS.has(text)) return false;
      throw usageFault(`invalid boolean value ${quote(text)} for -${name}: parse error`);
    case "int":
      if (!/^[-+]?(?:0[xX][0-9a-fA-F]+|\d+)$/.test(text)) throw refuse("parse error");
      if (!Number.isSafeInteger(Number(text))) throw refuse("value out of range");
      return Number(text);
    case "duration":
      return parseDuration(text) ?? raise(refuse(`time: invalid duration ${quote(text)}`));
    case "output":
      return outputFormat(text) ?? raise(refuse(`bad formatter flag: unknown format option: ${quote(text)}`));
  }
}

function outputFormat(text: string): OutputFormat | undefined {
  const word = text.toLowerCase();
  return word === "prettyprint" ? "pretty" : OUTPUT_FORMATS.find((format) => format === word);
}

function withDefaults(specs: FlagSpecs, given: ReadonlyMap<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(specs).map(([name, spec]) => [name, given.has(name) ? given.get(name) : defaultOf(spec)]),
  );
}

function defaultOf(spec: FlagSpec): unknown {
  if (spec.type === "bool") return false;
  if (spec.type === "strings") return [];
  if (spec.type === "output") return "pretty";
  if (spec.type === "duration") return spec.default === undefined ? undefined : parseDuration(spec.default);
  return spec.default;
}

function unknownFlag(specs: FlagSpecs, name: string): Fault {
  const nearest = didYouMean(name, Object.keys(specs));
  return usageFault(`flag provided but not defined: -${name}`, nearest?.replace('"', '"-'));
}

function usageFault(message: string, hint?: string): Fault {
  return new Fault("invalid", message, hint === undefined ? { code: "usage" } : { code: "usage", hint });
}

function raise(fault: Fault): never {
  throw fault;
}
