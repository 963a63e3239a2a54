import { readFileSync } from "node:fs";

export interface Vector {
  /** The heading above the line: requirement ids and what the group shows. */
  readonly group: string;
  readonly text: string;
}

/** The lines of a file in test/vectors: one JSON string each, under headings that begin with `#`. */
export function vectors(name: string): readonly Vector[] {
  const file = readFileSync(new URL(`../vectors/${name}`, import.meta.url), "utf8");
  const found: Vector[] = [];
  let group = "";
  for (const line of file.split("\n")) {
    if (line.startsWith("#")) group = line.slice(1).trim();
    else if (line !== "") found.push({ group, text: String(JSON.parse(line)) });
  }
  return found;
}
