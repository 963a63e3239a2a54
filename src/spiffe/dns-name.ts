import { domainToASCII, domainToUnicode } from "node:url";
import { Fault } from "../runtime/fault.ts";

const MAX_NAME = 253;
const LABEL = /^[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$/;

/**
 * Returns its argument when each text is a host name that can stand in a certificate: ASCII letters, digits, hyphens
 * and underscores, and at most one wildcard, as the whole first label. Throws `invalid`. SPIRE lets more characters
 * pass, such as spaces, slashes and NUL, which no host name has and which readers of certificates trip over.
 */
export function checkDnsNames(names: readonly string[]): readonly string[] {
  for (const name of names) {
    const reason = fault(name);
    if (reason !== undefined)
      throw new Fault("invalid", reason, { code: "dns-name", hint: "for example web.example.org, or *.example.org" });
  }
  return names;
}

function fault(name: string): string | undefined {
  if (!isAscii(name)) return "name must be ascii";
  const stars = name.split("*").length - 1;
  if (stars > 1) return "too many wildcards";
  if (stars === 1 && !name.startsWith("*.")) return "wildcard must be first label";
  const rest = stars === 1 ? name.slice(2) : name;
  if (rest.trim() === "") return "empty or only whitespace";
  if (rest.endsWith(".")) return "domain ends with dot";
  const wrong = rest.split(".").find((label) => !isLabel(label));
  if (wrong !== undefined) return invalidLabel(wrong);
  return rest.length > MAX_NAME ? invalidLabel(rest) : undefined;
}

function invalidLabel(label: string): string {
  return `idna error\nidna: invalid label ${JSON.stringify(label)}`;
}

function isAscii(text: string): boolean {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) >= 0x80) return false;
  return true;
}

/** A hyphen in third and fourth place is kept for encoded labels, which have to decode. */
function isLabel(label: string): boolean {
  if (!LABEL.test(label)) return false;
  if (label.slice(2, 4) !== "--") return true;
  const decoded = domainToUnicode(label);
  return label.startsWith("xn--") && decoded !== label && domainToASCII(decoded) === label;
}

/** For names that a caller asks for at once. Throws `invalid` when a wildcard covers another name of the list. */
export function checkWildcardOverlap(names: readonly string[]): void {
  const all = new Set(names);
  for (const name of all) {
    if (name.startsWith("*")) continue;
    const dot = name.indexOf(".");
    if (dot >= 0 && all.has(`*${name.slice(dot)}`)) {
      throw new Fault(
        "invalid",
        `name "${name}" overlaps with an existing wildcard name in the list: wildcard overlap`,
        { code: "dns-name-overlap" },
      );
    }
  }
}
