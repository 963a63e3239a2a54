import {
  type ConfigEntry,
  type ConfigObject,
  type ConfigValue,
  MAX_CONFIG_DEPTH,
  type Place,
  syntaxFault,
} from "./config-value.ts";
import { HclScanner, type HclToken } from "./hcl-scanner.ts";

/**
 * Reads the part of HCL 1 that SPIRE's files use: blocks with labels, objects, lists, strings, heredocs, numbers and
 * booleans. A block's labels become nested objects. Throws `invalid` with the place.
 */
export function parseHcl(text: string, source: string): ConfigObject {
  const parser = new HclParser(new HclScanner(text, source));
  return parser.file({ source, line: 1, column: 1 });
}

interface Key {
  readonly name: string;
  readonly at: Place;
  /** Without quotes. */
  readonly isWord: boolean;
}

class HclParser {
  readonly #scanner: HclScanner;
  #token: HclToken;

  constructor(scanner: HclScanner) {
    this.#scanner = scanner;
    this.#token = scanner.next();
  }

  file(at: Place): ConfigObject {
    const entries = this.#entries("end", 0);
    return { kind: "object", at, entries };
  }

  #advance(): HclToken {
    const token = this.#token;
    this.#token = this.#scanner.next();
    return token;
  }

  #entries(until: "end" | "}", depth: number): readonly ConfigEntry[] {
    const entries: ConfigEntry[] = [];
    while (this.#token.type !== until) {
      entries.push(this.#entry(depth));
      if (this.#token.type === ",") this.#advance();
    }
    return entries;
  }

  #entry(depth: number): ConfigEntry {
    const keys = this.#keys();
    const name = keys[0]?.isWord === true ? ` "${keys[0].name}"` : "";
    if (this.#token.type === "=") {
      if (keys.length > 1)
        throw syntaxFault(this.#token.at, `a key${name} with a label is a block: write "{" instead of "="`);
      this.#advance();
      return wrap(keys, this.#value(depth + 1));
    }
    if (this.#token.type === "{") return wrap(keys, this.#object(depth + keys.length));
    throw syntaxFault(this.#token.at, `expected "=" or "{" after key${name}, found ${describe(this.#token)}`);
  }

  #keys(): readonly Key[] {
    const keys: Key[] = [];
    while (this.#token.type === "identifier" || this.#token.type === "string") {
      if (keys.length >= MAX_CONFIG_DEPTH) throw tooDeep(this.#token.at);
      const { type, text, at } = this.#advance();
      keys.push({ name: text, at, isWord: type === "identifier" });
    }
    if (keys.length === 0) throw syntaxFault(this.#token.at, `expected a key, found ${describe(this.#token)}`);
    return keys;
  }

  #value(depth: number): ConfigValue {
    const { type, text, at } = this.#token;
    if (depth > MAX_CONFIG_DEPTH) throw tooDeep(at);
    if (type === "string" || type === "heredoc" || type === "number" || type === "bool") {
      this.#advance();
      return { kind: type === "heredoc" ? "string" : type, at, text };
    }
    if (type === "{") return this.#object(depth);
    if (type === "[") return this.#list(depth);
    const hint = type === "identifier" ? "; strings need quotes" : "";
    throw syntaxFault(at, `expected a value, found ${describe(this.#token)}${hint}`);
  }

  #object(depth: number): ConfigObject {
    const { at } = this.#advance();
    if (depth > MAX_CONFIG_DEPTH) throw tooDeep(at);
    const entries = this.#entries("}", depth);
    this.#advance();
    return { kind: "object", at, entries };
  }

  #list(depth: number): ConfigValue {
    const { at } = this.#advance();
    const items: ConfigValue[] = [];
    while (this.#token.type !== "]") {
      items.push(this.#value(depth + 1));
      this.#endOfItem();
    }
    this.#advance();
    return { kind: "list", at, items };
  }

  #endOfItem(): void {
    if (this.#token.type === ",") this.#advance();
    else if (this.#token.type !== "]")
      throw syntaxFault(this.#token.at, `expected "," or "]", found ${describe(this.#token)}`);
  }
}

/** `A "b" { … }` is `A { b { … } }`. */
function wrap([first, ...rest]: readonly Key[], value: ConfigValue): ConfigEntry {
  if (first === undefined) throw new Error("an entry has a key");
  if (rest.length === 0) return { key: first.name, at: first.at, value };
  return { key: first.name, at: first.at, value: { kind: "object", at: first.at, entries: [wrap(rest, value)] } };
}

function tooDeep(at: Place): Error {
  return syntaxFault(at, `nested more than ${MAX_CONFIG_DEPTH} levels deep`);
}

/** Never what a string holds: it may be a password whose "=" was forgotten. */
function describe({ type, text }: HclToken): string {
  if (type === "end") return "the end of the file";
  if (type === "string" || type === "heredoc") return `a ${type}`;
  return type === "identifier" || type === "number" || type === "bool" ? JSON.stringify(text) : `"${type}"`;
}
