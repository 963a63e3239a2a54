import { type Key, type Keys, objectsOf, type Spot, type Values } from "./config.ts";
import type { ConfigValue } from "./config-value.ts";
import { parseDuration } from "./duration.ts";
import { Fault } from "./fault.ts";

interface About {
  readonly doc: string;
  /** What the reference shows as default, when it isn't the value itself. */
  readonly shown?: string;
  readonly own?: boolean;
}

interface AboutWithDefault<T> extends About {
  readonly default: T;
}

/** A key of one kind of value: optional, or with a default. */
export interface Builder<T> {
  (about: AboutWithDefault<T>): Key<T>;
  (about: About): Key<T | undefined>;
}

/** Reads a value, or throws `invalid` with what is wrong. The empty string is as good as nothing, as in SPIRE. */
function builder<T>(type: string, parse: (value: ConfigValue) => T): Builder<T> {
  return (about: About & { readonly default?: T }): Key<T> => ({
    type,
    doc: about.doc,
    status: "works",
    ...(about.own === true ? { own: true } : {}),
    ...shownDefault(about),
    read: (value, spot) => {
      const fallback = about.default as T;
      if (value === undefined || (value.kind === "string" && value.text === "")) return fallback;
      return attempt(spot, () => parse(value), fallback);
    },
  });
}

function shownDefault(about: About & { readonly default?: unknown }): { readonly shownDefault?: string } {
  if (about.shown !== undefined) return { shownDefault: about.shown };
  return about.default === undefined ? {} : { shownDefault: String(about.default) };
}

function attempt<T>(spot: Spot, work: () => T, fallback: T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    spot.reader.fault(spot.at, `${spot.path}: ${error.message}`);
    return fallback;
  }
}

export const text = builder("string", textOf);

export const flag = builder("bool", (value) => {
  if (value.kind !== "bool") throw wrong("expected true or false, without quotes");
  return value.text === "true";
});

export const texts = builder<readonly string[]>("list of strings", listOf);

/** A list whose items are parsed as with `parsed`. */
export function list<T>(type: string, parse: (item: string) => T, complaint?: string): Builder<readonly T[]> {
  return builder<readonly T[]>(`list of ${type}`, (value) =>
    listOf(value).map((item) => complain(parse, item, complaint)),
  );
}

function complain<T>(parse: (spelling: string) => T, spelling: string, complaint: string | undefined): T {
  try {
    return parse(spelling);
  } catch (error) {
    if (complaint === undefined || !(error instanceof Fault)) throw error;
    throw wrong(`${complaint} ${JSON.stringify(spelling)}: ${error.message}`);
  }
}

export function integer(min: number, max: number): Builder<number> {
  return builder("int", (value) => {
    const number = integerOf(value);
    if (number < min || number > max) throw wrong(`${number} is not between ${min} and ${max}`);
    return number;
  });
}

export const port = integer(1, 65_535);

/** Milliseconds. Defaults are shown as Go writes durations. */
export function duration(minMs: number, minText: string): Builder<number> {
  return builder("duration", (value) => {
    const spelling = textOf(value);
    const ms = parseDuration(spelling);
    if (ms === undefined) throw wrong(`invalid duration ${JSON.stringify(spelling)}; write it like 24h or 1h30m`);
    if (ms < minMs) throw wrong(`must be at least ${minText}`);
    return ms;
  });
}

export function oneOf<const C extends readonly string[]>(choices: C): Builder<C[number]> {
  return builder(choices.join(" or "), (value) => {
    const spelling = textOf(value);
    const found = choices.find((choice) => choice === spelling.toLowerCase());
    if (found === undefined) throw wrong(`${JSON.stringify(spelling)} is not one of ${choices.join(", ")}`);
    return found;
  });
}

/** A string with rules of its own; `parse` throws `invalid`, and `complaint` goes before what it says. */
export function parsed<T>(type: string, parse: (spelling: string) => T, complaint?: string): Builder<T> {
  return builder(type, (value) => complain(parse, textOf(value), complaint));
}

/** A block of keys; when it's absent, they all have their defaults. */
export function block<K extends Keys>(doc: string, keys: K): Key<Values<K>> {
  const read = (value: ConfigValue | undefined, { reader, path, at }: Spot): Values<K> => {
    const objects = value === undefined ? [] : objectsOf(value);
    if (objects === undefined) reader.fault(at, `${path}: expected a block such as ${path} { … }`);
    return reader.readKeys(keys, objects ?? [], { path, at });
  };
  return { type: "block", doc, status: "works", keys, read };
}

/** Blocks by a name that the operator chooses, such as `clusters = { "one" = { … } }`. */
export function named<K extends Keys>(doc: string, item: Key<Values<K>>): Key<ReadonlyMap<string, Values<K>>> {
  const read = (value: ConfigValue | undefined, { reader, path, at }: Spot): ReadonlyMap<string, Values<K>> => {
    const objects = value === undefined ? [] : objectsOf(value);
    if (objects === undefined) reader.fault(at, `${path}: expected named blocks such as ${path} = { "name" = { … } }`);
    const found = new Map<string, Values<K>>();
    for (const entry of (objects ?? []).flatMap(({ entries }) => entries)) {
      const spot = { reader, path: `${path}.${entry.key}`, at: entry.at };
      reader.mark(spot.path, entry.at);
      if (found.has(entry.key)) reader.fault(entry.at, `${spot.path} is declared more than once`);
      found.set(entry.key, item.read(entry.value, spot));
    }
    return found;
  };
  return { type: "named blocks", doc, status: "works", keys: { "<name>": item }, read };
}

/** A key of SPIRE's that tunes something Steeple doesn't have: accepted, with a warning. */
export function ignored(doc: string): Key<void> {
  const read = (value: ConfigValue | undefined, { reader, path, at }: Spot): void => {
    if (value !== undefined) reader.warn(at, `${path} has no effect in this version of Steeple`);
  };
  return { type: "", doc, status: "accepted, no effect", read };
}

/** A key of SPIRE's that changes behaviour and isn't built: refused, unless its value changes nothing. */
export function unsupported(doc: string, harmless: readonly string[] = []): Key<void> {
  const read = (value: ConfigValue | undefined, { reader, path, at }: Spot): void => {
    if (value === undefined || changesNothing(value, harmless)) return;
    reader.fault(at, `${path} is not supported by this version of Steeple`);
  };
  return { type: "", doc, status: "not supported", read };
}

/** False, zero, empty, or nothing but those. */
function changesNothing(value: ConfigValue, harmless: readonly string[]): boolean {
  if (value.kind === "object") return value.entries.every((entry) => changesNothing(entry.value, harmless));
  if (value.kind === "list") return value.items.every((item) => changesNothing(item, harmless));
  return value.kind === "null" || ["", "false", "0", ...harmless].includes(value.text);
}

function textOf(value: ConfigValue): string {
  if (value.kind === "string" || value.kind === "number") return value.text;
  throw wrong("expected a string in quotes");
}

function listOf(value: ConfigValue): readonly string[] {
  if (value.kind !== "list") throw wrong("expected a list of strings in brackets");
  return value.items.map(textOf);
}

function integerOf(value: ConfigValue): number {
  const spelling = textOf(value);
  const octal = /^([-+]?)0([0-7]+)$/.exec(spelling);
  const number = octal === null ? Number(spelling) : Number.parseInt(`${octal[1]}${octal[2]}`, 8);
  if (/^[-+]?(\d+|0[xX][0-9a-fA-F]+)$/.test(spelling) && Number.isSafeInteger(number)) return number;
  throw wrong(`expected a whole number, found ${JSON.stringify(spelling)}`);
}

function wrong(message: string): Fault {
  return new Fault("invalid", message, { code: "config-invalid" });
}
