import { Fault } from "./fault.ts";

/** Where something stands in a configuration. Lines and columns count from 1, columns in characters. */
export interface Place {
  /** A file's path, or a command line flag such as `-trustDomain`. */
  readonly source: string;
  /** Missing for a flag. */
  readonly line?: number;
  readonly column?: number;
}

/** A value read from HCL, YAML, JSON or a flag. Numbers keep their spelling. */
export type ConfigValue =
  | { readonly kind: "string" | "number" | "bool"; readonly at: Place; readonly text: string }
  | { readonly kind: "null"; readonly at: Place }
  | { readonly kind: "list"; readonly at: Place; readonly items: readonly ConfigValue[] }
  | ConfigObject;

/** Keys in the order of the file; a key may occur more than once. */
export interface ConfigObject {
  readonly kind: "object";
  readonly at: Place;
  readonly entries: readonly ConfigEntry[];
}

export interface ConfigEntry {
  readonly key: string;
  readonly at: Place;
  readonly value: ConfigValue;
}

/** A configuration is a page or two; what is larger or deeper is refused before it costs anything (T-F4). */
export const MAX_CONFIG_BYTES = 1024 * 1024;
export const MAX_CONFIG_DEPTH = 32;

/** `server.conf:12:3`, or the flag. */
export function placeText({ source, line, column }: Place): string {
  if (line === undefined) return source;
  return `${source}:${line}${column === undefined ? "" : `:${column}`}`;
}

/** What a reader of a configuration format throws. */
export function syntaxFault(at: Place, message: string): Fault {
  return new Fault("invalid", `${placeText(at)}: ${message}`, { code: "config-syntax" });
}
