import { stringify } from "yaml";

/** A JSON value as YAML. Lines are never folded, so that a certificate stays one line. */
export function yamlText(value: unknown): string {
  return stringify(value, { lineWidth: 0 });
}
