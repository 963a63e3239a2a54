/** Strings, and the signs between values, of text that is known to be JSON. */
const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],]/g;

/**
 * `JSON.parse`, but a member that occurs twice in one object is an error instead of the last one winning, however its
 * name is escaped. Throws `SyntaxError`. RFC 7515, section 5.2.
 */
export function parseUniqueJson(text: string): unknown {
  const value: unknown = JSON.parse(text);
  refuseRepeats(text);
  return value;
}

function refuseRepeats(text: string): void {
  /** One element for each open object or array: the names seen so far, or undefined in an array. */
  const open: (Set<unknown> | undefined)[] = [];
  let previous = "";
  for (const [token] of text.matchAll(TOKENS)) {
    if (token === "{") open.push(new Set());
    else if (token === "[") open.push(undefined);
    else if (token === "}" || token === "]") open.pop();
    else if (token !== "," && (previous === "{" || previous === ",")) addName(open.at(-1), token);
    previous = token;
  }
}

function addName(names: Set<unknown> | undefined, token: string): void {
  if (names === undefined) return;
  const name: unknown = JSON.parse(token);
  if (names.has(name)) throw new SyntaxError(`member ${token} occurs more than once`);
  names.add(name);
}
