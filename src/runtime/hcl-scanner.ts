import { type Place, syntaxFault } from "./config-value.ts";

export interface HclToken {
  readonly type: "identifier" | "string" | "heredoc" | "number" | "bool" | "{" | "}" | "[" | "]" | "," | "=" | "end";
  /** A string's content, anything else as it's spelt. */
  readonly text: string;
  readonly at: Place;
}

const LETTER = /[\p{L}_]/u;
const IDENTIFIER = /[\p{L}\p{Nd}_.-]*/uy;
const NUMBER = /-?(?:0[xX][0-9a-fA-F]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)/y;
const SPACE = /[ \t\r\n]*/y;
const HEREDOC_START = /<<-?([\p{L}\p{Nd}_]+)\r?\n/uy;
const ESCAPE = /\\(?:[abfnrtv\\"]|[0-7]{3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})/y;
const PUNCTUATION = new Set(["{", "}", "[", "]", ",", "="] as const);
const SHORT_ESCAPES: Readonly<Record<string, string>> = {
  a: "\u0007",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
  "\\": "\\",
  '"': '"',
};

/** Cuts HCL 1 into tokens, in one pass. Throws `invalid` with the place of what it can't read. */
export class HclScanner {
  readonly #text: string;
  readonly #source: string;
  #position = 0;
  /** The last place given out, from which the next one is counted. */
  #known = { position: 0, line: 1, lineStart: 0 };

  constructor(text: string, source: string) {
    this.#text = text;
    this.#source = source;
  }

  next(): HclToken {
    this.#skipBlanks();
    const start = this.#position;
    const at = this.#placeOf(start);
    const character = String.fromCodePoint(this.#text.codePointAt(start) ?? 0);
    if (start >= this.#text.length) return { type: "end", text: "", at };
    if (LETTER.test(character)) return this.#word(at);
    if (character === '"') return { type: "string", text: this.#string(at), at };
    if (character === "<") return { type: "heredoc", text: this.#heredoc(at), at };
    const number = this.#match(NUMBER);
    if (number !== undefined) return this.#number(number, at);
    if (!isPunctuation(character)) throw syntaxFault(at, `illegal character ${JSON.stringify(character)}`);
    this.#position += 1;
    return { type: character, text: character, at };
  }

  /** Moves behind the match, which starts at the current position. */
  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#position;
    const found = pattern.exec(this.#text)?.[0];
    if (found !== undefined) this.#position += found.length;
    return found;
  }

  #skipBlanks(): void {
    for (;;) {
      this.#match(SPACE);
      const start = this.#position;
      if (this.#text[start] === "#" || this.#text.startsWith("//", start)) this.#skipTo("\n", 0);
      else if (this.#text.startsWith("/*", start)) this.#skipComment(start);
      else return;
    }
  }

  #skipTo(end: string, from: number): void {
    const found = this.#text.indexOf(end, this.#position + from);
    this.#position = found < 0 ? this.#text.length : found + end.length;
  }

  #skipComment(start: number): void {
    this.#skipTo("*/", 2);
    if (!this.#text.endsWith("*/", this.#position) || this.#position < start + 4) {
      throw syntaxFault(this.#placeOf(start), "comment not terminated");
    }
  }

  #word(at: Place): HclToken {
    const text = this.#match(IDENTIFIER) ?? "";
    return { type: text === "true" || text === "false" ? "bool" : "identifier", text, at };
  }

  #number(text: string, at: Place): HclToken {
    if (/^-?0\d+$/.test(text) && /[89]/.test(text)) throw syntaxFault(at, "illegal octal number");
    return { type: "number", text, at };
  }

  #string(at: Place): string {
    let content = "";
    this.#position += 1;
    for (;;) {
      const character = this.#text[this.#position];
      if (character === undefined || character === "\n") throw syntaxFault(at, "string not terminated");
      if (character === '"') break;
      if (character === "\\") content += this.#escape();
      else if (this.#text.startsWith("${", this.#position)) content += this.#interpolation(at);
      else {
        content += character;
        this.#position += 1;
      }
    }
    this.#position += 1;
    return content;
  }

  #escape(): string {
    const at = this.#placeOf(this.#position);
    const found = this.#match(ESCAPE)?.slice(1);
    if (found === undefined) throw syntaxFault(at, "illegal escape in string");
    const short = SHORT_ESCAPES[found];
    if (short !== undefined) return short;
    const octal = /^[0-7]/.test(found);
    const code = Number.parseInt(octal ? found : found.slice(1), octal ? 8 : 16);
    const isByte = octal || found.startsWith("x");
    if (isByte ? code > 0x7f : code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
      throw syntaxFault(at, "escape does not stand for a character");
    }
    return String.fromCodePoint(code);
  }

  /** `${…}` is kept as it is, quotes and line ends inside included. */
  #interpolation(at: Place): string {
    const start = this.#position;
    let braces = 0;
    do {
      const character = this.#text[this.#position];
      if (character === undefined) throw syntaxFault(at, "string not terminated");
      if (character === "{") braces += 1;
      if (character === "}") braces -= 1;
      this.#position += 1;
    } while (braces > 0 || this.#text[this.#position - 1] === "$");
    return this.#text.slice(start, this.#position);
  }

  #heredoc(at: Place): string {
    const opening = this.#match(HEREDOC_START);
    if (opening === undefined) throw syntaxFault(at, "expected a heredoc such as <<EOF at the end of its line");
    const anchor = opening.replace(/^<<-?/, "").trimEnd();
    const lines: string[] = [];
    for (;;) {
      if (this.#position >= this.#text.length) throw syntaxFault(at, `heredoc not terminated: no line "${anchor}"`);
      const start = this.#position;
      this.#skipTo("\n", 0);
      const line = this.#text.slice(start, this.#position).replace(/\r?\n$/, "");
      if (line.trim() === anchor)
        return heredocText(lines, line.slice(0, line.indexOf(anchor)), opening.startsWith("<<-"));
      lines.push(line);
    }
  }

  #placeOf(position: number): Place {
    let { line, lineStart } = this.#known;
    for (
      let i = this.#text.indexOf("\n", this.#known.position);
      i >= 0 && i < position;
      i = this.#text.indexOf("\n", i + 1)
    ) {
      line += 1;
      lineStart = i + 1;
    }
    this.#known = { position, line, lineStart };
    return { source: this.#source, line, column: position - lineStart + 1 };
  }
}

/** With `<<-`, the indentation of the closing line is taken off every line, if all have it. */
function heredocText(lines: readonly string[], indent: string, unindent: boolean): string {
  const text = lines.map((line) => `${line}\n`).join("");
  if (!unindent) return text + indent;
  return lines.every((line) => line.startsWith(indent))
    ? lines.map((line) => `${line.slice(indent.length)}\n`).join("")
    : text;
}

function isPunctuation(character: string): character is "{" | "}" | "[" | "]" | "," | "=" {
  return (PUNCTUATION as ReadonlySet<string>).has(character);
}
