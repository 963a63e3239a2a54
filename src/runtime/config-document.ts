import { createRequire } from "node:module";
import type { ParsedNode } from "yaml";
import {
  type ConfigEntry,
  type ConfigObject,
  type ConfigValue,
  MAX_CONFIG_DEPTH,
  type Place,
  syntaxFault,
} from "./config-value.ts";
import { Fault, messageOf } from "./fault.ts";

/** Loaded for the first file that is not HCL: it takes as long as all of our own code. */
function yaml(): typeof import("yaml") {
  loaded ??= createRequire(import.meta.url)("yaml") as typeof import("yaml");
  return loaded;
}

let loaded: typeof import("yaml") | undefined;

/** Reads JSON. Throws `invalid` with the place. */
export function parseJson(text: string, source: string): ConfigObject {
  try {
    JSON.parse(text);
  } catch (error) {
    const message = messageOf(error);
    throw syntaxFault(jsonPlace(text, source, message), withoutExcerpt(message));
  }
  return parseYaml(text, source);
}

/** Reads one YAML 1.2 document of plain maps, lists and scalars; no anchors, no tags. Throws `invalid` with the place. */
export function parseYaml(text: string, source: string): ConfigObject {
  try {
    return new DocumentReader(text, source).read();
  } catch (error) {
    if (error instanceof Fault) throw error;
    // The parser works by recursion, so deep nesting ends it before the depth can be counted.
    throw syntaxFault({ source }, error instanceof RangeError ? "nested too deep" : messageOf(error));
  }
}

class DocumentReader {
  readonly #text: string;
  readonly #source: string;
  readonly #lines = new (yaml().LineCounter)();

  constructor(text: string, source: string) {
    this.#text = text;
    this.#source = source;
  }

  read(): ConfigObject {
    const document = yaml().parseDocument(this.#text, {
      lineCounter: this.#lines,
      prettyErrors: false,
      schema: "core",
    });
    const problem = document.errors[0] ?? document.warnings[0];
    if (problem !== undefined) throw syntaxFault(this.#place(problem.pos[0]), problem.message);
    const empty: ConfigObject = { kind: "object", at: { source: this.#source, line: 1, column: 1 }, entries: [] };
    if (document.contents === null) return empty;
    const root = this.#value(document.contents, 0);
    if (root.kind === "null") return empty;
    if (root.kind !== "object") throw syntaxFault(root.at, "expected keys and values at the top");
    return root;
  }

  #place(offset: number): Place {
    const { line, col } = this.#lines.linePos(offset);
    return { source: this.#source, line, column: col };
  }

  #value(node: ParsedNode, depth: number): ConfigValue {
    const { isAlias, isMap, isScalar, isSeq } = yaml();
    const at = this.#place(node.range[0]);
    if (depth > MAX_CONFIG_DEPTH) throw syntaxFault(at, `nested more than ${MAX_CONFIG_DEPTH} levels deep`);
    if (isAlias(node)) throw syntaxFault(at, "aliases are not supported");
    if (node.tag !== undefined && !node.tag.startsWith("tag:yaml.org,2002:"))
      throw syntaxFault(at, "tags are not supported");
    if (isSeq(node))
      return { kind: "list", at, items: node.items.map((item) => this.#value(item as ParsedNode, depth + 1)) };
    if (isScalar(node)) return scalar(node.value, node.source ?? String(node.value), at);
    if (!isMap(node)) throw syntaxFault(at, "expected a map, a list or a plain value");
    return { kind: "object", at, entries: node.items.map((pair) => this.#entry(pair, at, depth)) };
  }

  #entry(pair: { readonly key: unknown; readonly value?: unknown }, parent: Place, depth: number): ConfigEntry {
    const key = pair.key;
    if (!yaml().isScalar(key) || !key.range) throw syntaxFault(parent, "keys must be plain words");
    const at = this.#place(key.range[0]);
    const value = pair.value as ParsedNode | null | undefined;
    return {
      key: String(key.value),
      at,
      value: value === null || value === undefined ? { kind: "null", at } : this.#value(value, depth + 1),
    };
  }
}

function scalar(value: unknown, spelling: string, at: Place): ConfigValue {
  if (value === null) return { kind: "null", at };
  if (typeof value === "boolean") return { kind: "bool", at, text: String(value) };
  if (typeof value === "number" || typeof value === "bigint") return { kind: "number", at, text: spelling };
  return { kind: "string", at, text: String(value) };
}

/** Node's message may quote the text, and the text may hold a password. */
function withoutExcerpt(message: string): string {
  return message.replace(/, (?:\.\.\.)?".*$/s, "").replace(/ (?:in|after) JSON at position .*$/s, "");
}

/** Node's message ends in `(line 3 column 5)` when it knows. */
function jsonPlace(text: string, source: string, message: string): Place {
  const position = /\(line (\d+) column (\d+)\)/.exec(message);
  if (position !== null) return { source, line: Number(position[1]), column: Number(position[2]) };
  return { source, line: text.split("\n").length };
}
