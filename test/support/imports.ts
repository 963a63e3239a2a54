import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize, relative } from "node:path";
import { fileURLToPath } from "node:url";

export const PROJECT = fileURLToPath(new URL("../..", import.meta.url));

export interface Arrow {
  readonly from: string;
  readonly to: string;
}

const IMPORT =
  /^\s*(?:import|export)\b[^'";]*?from\s+["']([^"']+)["']|\bimport\(\s*["']([^"']+)["']\s*\)|^\s*import\s+["']([^"']+)["']/gm;

/** Every relative import of every TypeScript file under the given folders, as paths from the project's top. */
export function readArrows(folders: readonly string[]): readonly Arrow[] {
  return folders
    .flatMap((folder) => sourceFiles(folder))
    .flatMap((from) => arrowsOf(from, readFileSync(join(PROJECT, from), "utf8")));
}

/** The relative imports that `text` makes when it stands at `from`. */
export function arrowsOf(from: string, text: string): readonly Arrow[] {
  return [...text.matchAll(IMPORT)]
    .map((match) => match[1] ?? match[2] ?? match[3] ?? "")
    .filter((target) => target.startsWith("."))
    .map((target) => ({ from, to: normalize(join(dirname(from), target)) }));
}

/** The packages that `text` imports, without the `node:` built-ins. */
export function packagesOf(text: string): readonly string[] {
  return [...text.matchAll(IMPORT)]
    .map((match) => match[1] ?? match[2] ?? match[3] ?? "")
    .filter((target) => !target.startsWith(".") && !target.startsWith("node:"));
}

export function sourceFiles(folder: string): readonly string[] {
  return readdirSync(join(PROJECT, folder), { recursive: true, withFileTypes: true })
    .filter((item) => item.isFile() && item.name.endsWith(".ts"))
    .map((item) => relative(PROJECT, join(item.parentPath, item.name)))
    .filter((path) => !path.startsWith("src/rpc/gen/"))
    .sort();
}
