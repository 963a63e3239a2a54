import { Fault } from "../../src/runtime/fault.ts";

const ANY = "*";
const ID = "<id>";
const OPEN: Readonly<Record<string, string>> = { [ANY]: "[^/]*", [ID]: "(?<id>[^/]+)" };

/**
 * One expression for patterns such as `/docker/<id>` or `/my.slice/*` + `/<id>/*`: `<id>` is a whole path component, the
 * container's id, and `*` any one. Its only group is the id. Throws `invalid` when a pattern names no id or two, or when
 * two patterns can fit one path.
 */
export function cgroupMatcher(patterns: readonly string[]): RegExp {
  const split = patterns.map((pattern) => pattern.split("/"));
  for (const [at, parts] of split.entries()) {
    const pattern = JSON.stringify(patterns[at]);
    if (parts.filter((part) => part === ID).length !== 1)
      throw invalid(`pattern ${pattern} must contain the container id token "${ID}" exactly once`);
    if (split.slice(0, at).some((other) => overlap(other, parts)))
      throw invalid(`patterns must not be ambiguous: ${pattern} fits what another one fits`);
  }
  return new RegExp(`^(?:${split.map(expressionOf).join("|")})$`);
}

function overlap(one: readonly string[], other: readonly string[]): boolean {
  if (one.length !== other.length) return false;
  return one.every((part, at) => part === other[at] || isOpen(part) || isOpen(other[at] ?? ""));
}

function isOpen(part: string): boolean {
  return part === ANY || part === ID;
}

/** Alternatives have a group of the same name, of which one at most takes part. */
function expressionOf(parts: readonly string[]): string {
  return parts.map((part) => OPEN[part] ?? part.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("/");
}

function invalid(message: string): Fault {
  return new Fault("invalid", message, { code: "config-invalid" });
}
