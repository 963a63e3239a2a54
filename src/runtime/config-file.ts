import { closeSync, fstatSync, openSync, readFileSync } from "node:fs";
import { extname, resolve } from "node:path";
import { parseJson, parseYaml } from "./config-document.ts";
import { type ConfigObject, MAX_CONFIG_BYTES, syntaxFault } from "./config-value.ts";
import { expandEnv } from "./expand-env.ts";
import { Fault, messageOf } from "./fault.ts";
import { parseHcl } from "./hcl.ts";

export interface ConfigFile {
  readonly root: ConfigObject;
  /** Variables that `expandEnv` looked for and that are not set. */
  readonly unsetVariables: readonly string[];
}

export interface ConfigFileOptions {
  /** Replaces `$NAME` and `${NAME}` in the text first, from these variables. */
  readonly variables?: Readonly<Record<string, string | undefined>>;
}

/**
 * Reads a configuration file: YAML for `.yaml` and `.yml`, JSON for `.json` and for what starts with a brace, HCL 1
 * otherwise. Throws `not_found`, `unavailable` or `invalid`.
 */
export function readConfigFile(path: string, { variables }: ConfigFileOptions = {}): ConfigFile {
  const text = decode(readCapped(path), path);
  if (variables === undefined) return { root: parse(text, path), unsetVariables: [] };
  const { text: expanded, unset } = expandEnv(text, variables);
  if (expanded.length > MAX_CONFIG_BYTES) throw tooLarge(path);
  return { root: parse(expanded, path), unsetVariables: unset };
}

function parse(text: string, path: string): ConfigObject {
  const ending = extname(path).toLowerCase();
  if (ending === ".yaml" || ending === ".yml") return parseYaml(text, path);
  return ending === ".json" || text.trimStart().startsWith("{") ? parseJson(text, path) : parseHcl(text, path);
}

function readCapped(path: string): Uint8Array {
  try {
    const fd = openSync(path, "r");
    try {
      if (fstatSync(fd).size > MAX_CONFIG_BYTES) throw tooLarge(path);
      return readFileSync(fd);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw fileFault(path, error);
  }
}

function fileFault(path: string, error: unknown): Fault {
  if (error instanceof Fault) return error;
  if ((error as NodeJS.ErrnoException).code === "ENOENT") {
    const message = `could not find config file ${resolve(path)}: please use the -config flag`;
    return new Fault("not_found", message, { code: "config-not-found" });
  }
  const message = `unable to read configuration at ${JSON.stringify(path)}: ${messageOf(error)}`;
  return new Fault("unavailable", message, { code: "config-unreadable", cause: error });
}

function tooLarge(path: string): Fault {
  return syntaxFault({ source: path }, `larger than ${MAX_CONFIG_BYTES} bytes`);
}

function decode(bytes: Uint8Array, path: string): string {
  if (bytes.length > MAX_CONFIG_BYTES) throw tooLarge(path);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw syntaxFault({ source: path }, "not UTF-8 text");
  }
}
