/** An element without its attributes. `text` is empty where there are children. */
export interface XmlElement {
  readonly name: string;
  readonly text: string;
  readonly children: readonly XmlElement[];
}

interface Open {
  readonly name: string;
  text: string;
  readonly children: XmlElement[];
}

const MAX_DEPTH = 32;
const TOKEN =
  /<\?xml[^?]*\?>|<!--(?:[^-]|-[^-])*-->|<(\/?)([A-Za-z_][\w.-]*)((?:\s+[\w:.-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*(\/?)>|[^<]+/y;
const NAMED: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

/**
 * Reads the XML that AWS's query APIs answer with: elements and text, without a document type, so there are no entities
 * but those of XML itself. Throws `SyntaxError`.
 */
export function parseXml(text: string): XmlElement {
  const root: Open = { name: "", text: "", children: [] };
  const open = [root];
  for (let at = 0; at < text.length; at = TOKEN.lastIndex) {
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    if (match === null) throw new SyntaxError("malformed XML");
    take(match, open);
  }
  const [element, ...more] = root.children;
  if (open.length !== 1 || element === undefined || more.length > 0 || root.text.trim() !== "")
    throw new SyntaxError("XML without its one element");
  return element;
}

function take([token, closing, name, , empty]: RegExpExecArray, open: Open[]): void {
  const top = open.at(-1);
  if (top === undefined) throw new SyntaxError("malformed XML");
  if (name === undefined) {
    if (!token.startsWith("<")) top.text += token;
    return;
  }
  if (closing === "/") {
    if (top.name !== name || open.length === 1) throw new SyntaxError("an XML element is closed that is not open");
    open.pop();
    open.at(-1)?.children.push({ ...top, text: top.children.length > 0 ? "" : unescaped(top.text) });
  } else if (empty === "/") top.children.push({ name, text: "", children: [] });
  else if (open.push({ name, text: "", children: [] }) > MAX_DEPTH) throw new SyntaxError("XML is nested too deeply");
}

function unescaped(text: string): string {
  return text.replaceAll(/&([^;&]{0,10});?/g, (whole, name: string) => {
    const code = /^#(?:(\d+)|x([0-9A-Fa-f]+))$/.exec(name);
    const point =
      code === null ? undefined : Number.parseInt(code[1] ?? code[2] ?? "", code[1] === undefined ? 16 : 10);
    if (whole.endsWith(";") && point !== undefined && point <= 0x10ffff) return String.fromCodePoint(point);
    const character = whole.endsWith(";") && Object.hasOwn(NAMED, name) ? NAMED[name] : undefined;
    if (character === undefined) throw new SyntaxError("unknown XML entity");
    return character;
  });
}

/** The children of this name below the path. */
export function all(element: XmlElement | undefined, ...path: readonly string[]): readonly XmlElement[] {
  const [name, ...rest] = path;
  if (element === undefined || name === undefined) return element === undefined ? [] : [element];
  return element.children.filter((child) => child.name === name).flatMap((child) => all(child, ...rest));
}

/** Text of the one element at the path; undefined where there is none. */
export function textAt(element: XmlElement | undefined, ...path: readonly string[]): string | undefined {
  const found = all(element, ...path);
  return found.length === 1 ? found[0]?.text : undefined;
}
