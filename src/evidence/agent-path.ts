import { createHash } from "node:crypto";
import { Fault } from "../runtime/fault.ts";
import { agentId, type SpiffeId, type TrustDomain } from "../spiffe/id.ts";

/** What a template can name: texts, lists of them, and fields below fields. */
export type TemplateValue = string | number | readonly string[] | { readonly [field: string]: TemplateValue };

export interface TemplateData {
  readonly fields: { readonly [field: string]: TemplateValue };
  /** Fields whose value may hold slashes and so become several segments. */
  readonly paths?: readonly string[];
}

/** An `agent_path_template`: what comes after `/spire/agent` in an agent's ID. */
export interface AgentPathTemplate {
  readonly text: string;
  /** Throws `denied` when the data give no valid ID: values are never normalised or shortened (T-S1). */
  render(trustDomain: TrustDomain, data: TemplateData): SpiffeId;
}

/**
 * Reads the part of Go's text/template that names fields and calls functions: `{{ .A.B }}`, `{{ lower .A | trunc 8 }}`,
 * literals, parentheses, `{{-` and `-}}`. Throws `invalid` for anything else.
 */
export function parseAgentPathTemplate(text: string): AgentPathTemplate {
  const parts = partsOf(text);
  return {
    text,
    render(trustDomain, data) {
      try {
        const path = parts.map((part) => (typeof part === "string" ? part : evaluate(part, data))).join("");
        return agentId(trustDomain, path.replace(/^\//, ""));
      } catch (error) {
        const { message, cause } = Fault.from(error);
        throw new Fault("denied", `failed to make spiffe id: ${message}`, {
          code: "agent-path",
          hint: "change agent_path_template, or the value that it uses",
          cause,
        });
      }
    },
  };
}

type Part = string | Node;

function partsOf(text: string): readonly Part[] {
  const parts: Part[] = [];
  let rest = text;
  for (;;) {
    const start = rest.indexOf("{{");
    if (start < 0) {
      parts.push(rest);
      return parts;
    }
    const end = rest.indexOf("}}", start);
    if (end < 0) throw bad("unclosed action");
    let body = rest.slice(start + 2, end);
    let before = rest.slice(0, start);
    rest = rest.slice(end + 2);
    if (/^-\s/.test(body)) [before, body] = [before.trimEnd(), body.slice(1)];
    if (/\s-$/.test(body)) [rest, body] = [rest.trimStart(), body.slice(0, -1)];
    parts.push(before);
    if (!/^\s*\/\*.*\*\/\s*$/s.test(body)) parts.push(new Parser(tokensOf(body)).action());
  }
}

type Node =
  | { readonly kind: "literal"; readonly value: string | number }
  | { readonly kind: "field"; readonly names: readonly string[] }
  | { readonly kind: "call"; readonly name: string; readonly args: readonly Node[] };

const TOKEN =
  /\s*(?:(\.[A-Za-z_][\w]*(?:\.[A-Za-z_][\w]*)*)|("(?:[^"\\]|\\.)*"|`[^`]*`)|(-?\d+)|([A-Za-z]\w*)|([()|]))/y;

interface Token {
  readonly kind: "field" | "string" | "number" | "word" | "mark";
  readonly text: string;
}

function tokensOf(body: string): readonly Token[] {
  const tokens: Token[] = [];
  const end = body.trimEnd().length;
  for (let at = 0; at < end; at = TOKEN.lastIndex) {
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(body);
    if (match === null) throw bad(`unexpected ${JSON.stringify(body.slice(at).trim().slice(0, 20))}`);
    const kinds = ["field", "string", "number", "word", "mark"] as const;
    const index = kinds.findIndex((_, i) => match[i + 1] !== undefined);
    tokens.push({ kind: kinds[index] ?? "mark", text: match[index + 1] ?? "" });
  }
  return tokens;
}

class Parser {
  readonly #tokens: readonly Token[];
  #at = 0;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  action(): Node {
    const node = this.#pipeline();
    if (this.#at < this.#tokens.length) throw bad(`unexpected "${this.#tokens[this.#at]?.text}"`);
    return node;
  }

  #pipeline(): Node {
    let node = this.#command([]);
    while (this.#take("|")) node = this.#command([node]);
    return node;
  }

  /** What comes through the pipe is the last argument. */
  #command(piped: readonly Node[]): Node {
    const first = this.#tokens[this.#at];
    if (first?.kind !== "word") {
      const operand = this.#operand();
      if (operand === undefined) throw bad("missing value");
      if (piped.length > 0) throw bad("only a function can follow a |");
      return operand;
    }
    this.#at += 1;
    if (!Object.hasOwn(FUNCTIONS, first.text)) throw unknownFunction(first.text);
    const args: Node[] = [];
    for (let next = this.#operand(); next !== undefined; next = this.#operand()) args.push(next);
    return checkedCall(first.text, [...args, ...piped]);
  }

  #operand(): Node | undefined {
    const token = this.#tokens[this.#at];
    if (token === undefined || token.text === "|" || token.text === ")") return undefined;
    this.#at += 1;
    if (token.kind === "field") return { kind: "field", names: token.text.slice(1).split(".") };
    if (token.kind === "string") return { kind: "literal", value: unquote(token.text) };
    if (token.kind === "number") return { kind: "literal", value: Number(token.text) };
    if (token.kind === "word") {
      if (!Object.hasOwn(FUNCTIONS, token.text)) throw unknownFunction(token.text);
      return checkedCall(token.text, []);
    }
    const inner = this.#pipeline();
    if (!this.#take(")")) throw bad("unclosed parenthesis");
    return inner;
  }

  #take(mark: string): boolean {
    const found = this.#tokens[this.#at]?.text === mark && this.#tokens[this.#at]?.kind === "mark";
    if (found) this.#at += 1;
    return found;
  }
}

function unquote(text: string): string {
  if (text.startsWith("`")) return text.slice(1, -1);
  try {
    return JSON.parse(text) as string;
  } catch {
    throw bad(`malformed string ${text}`);
  }
}

/** Sprig's argument order: what is worked on comes last. */
const FUNCTIONS: Readonly<Record<string, { readonly arity: number; run(...args: TemplateValue[]): TemplateValue }>> = {
  trim: { arity: 1, run: (s) => text(s).trim() },
  lower: { arity: 1, run: (s) => text(s).toLowerCase() },
  upper: { arity: 1, run: (s) => text(s).toUpperCase() },
  nospace: { arity: 1, run: (s) => text(s).replaceAll(/\s/g, "") },
  toString: { arity: 1, run: (s: TemplateValue) => text(s) },
  trimPrefix: { arity: 2, run: (p, s) => (text(s).startsWith(text(p)) ? text(s).slice(text(p).length) : text(s)) },
  trimSuffix: { arity: 2, run: (p, s) => (text(s).endsWith(text(p)) ? withoutEnd(text(s), text(p).length) : text(s)) },
  replace: { arity: 3, run: (from, to, s) => text(s).replaceAll(text(from), () => text(to)) },
  trunc: { arity: 2, run: (n, s) => (integer(n) < 0 ? text(s).slice(integer(n)) : text(s).slice(0, integer(n))) },
  substr: { arity: 3, run: (from, to, s) => text(s).slice(Math.max(0, integer(from)), endOf(integer(to))) },
  sha1sum: { arity: 1, run: (s) => createHash("sha1").update(text(s)).digest("hex") },
  sha256sum: { arity: 1, run: (s) => createHash("sha256").update(text(s)).digest("hex") },
  default: {
    arity: 2,
    run: (fallback: TemplateValue, s: TemplateValue) =>
      s === "" || (Array.isArray(s) && s.length === 0) ? fallback : s,
  },
  join: { arity: 2, run: (separator, items) => list(items).join(text(separator)) },
  splitList: { arity: 2, run: (separator, s) => text(s).split(text(separator)) },
  first: { arity: 1, run: (items) => picked(list(items)[0]) },
  last: { arity: 1, run: (items) => picked(list(items).at(-1)) },
  index: { arity: 2, run: (from, key) => indexed(from, key) },
  base: { arity: 1, run: (s) => text(s).split("/").at(-1) ?? "" },
};

function unknownFunction(name: string): Fault {
  return bad(`function "${name}" is not supported; there are ${Object.keys(FUNCTIONS).join(", ")}`);
}

function checkedCall(name: string, args: readonly Node[]): Node {
  const { arity } = FUNCTIONS[name] ?? { arity: 0 };
  if (args.length !== arity) throw bad(`function "${name}" takes ${arity} arguments, not ${args.length}`);
  return { kind: "call", name, args };
}

/** A text that came from outside the template stays one segment, unless its field is a path. */
function evaluate(node: Node, data: TemplateData): string {
  const result = text(valueIn(node, data.fields));
  const trusted = rootsOf(node).every((name) => data.paths?.includes(name) ?? false);
  if (!trusted && result.includes("/")) throw bad(`the value of "${rootsOf(node)[0]}" contains a slash`);
  return result;
}

function rootsOf(node: Node): readonly string[] {
  if (node.kind === "field") return [node.names[0] ?? ""];
  return node.kind === "call" ? node.args.flatMap(rootsOf) : [];
}

function valueIn(node: Node, fields: TemplateData["fields"]): TemplateValue {
  switch (node.kind) {
    case "literal":
      return node.value;
    case "field":
      return node.names.reduce<TemplateValue>((value, name) => indexed(value, name), fields);
    case "call":
      return (FUNCTIONS[node.name] ?? unreachable()).run(...node.args.map((arg) => valueIn(arg, fields)));
  }
}

function indexed(value: TemplateValue, key: TemplateValue): TemplateValue {
  if (Array.isArray(value)) return picked((value as readonly string[])[integer(key)]);
  if (typeof value === "object" && Object.hasOwn(value, text(key)))
    return picked((value as Record<string, TemplateValue>)[text(key)]);
  throw bad(`there is no "${text(key)}"`);
}

function picked(value: TemplateValue | undefined): TemplateValue {
  if (value === undefined) throw bad("a list has too few items");
  return value;
}

function text(value: TemplateValue): string {
  if (typeof value === "string") return value;
  if (typeof value === "number") return String(value);
  throw bad("a list or a group of fields stands where a text is needed");
}

function integer(value: TemplateValue): number {
  if (typeof value === "number") return value;
  throw bad("a text stands where a number is needed");
}

function list(value: TemplateValue): readonly string[] {
  if (Array.isArray(value)) return value as readonly string[];
  throw bad("a text stands where a list is needed");
}

function withoutEnd(value: string, count: number): string {
  return value.slice(0, value.length - count);
}

/** Sprig: a negative end is the end of the text. */
function endOf(end: number): number | undefined {
  return end < 0 ? undefined : end;
}

function unreachable(): never {
  throw new Fault("internal", "a template function is missing");
}

function bad(message: string): Fault {
  return new Fault("invalid", message, { code: "agent-path-template", hint: "see agent_path_template" });
}
