import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder of the package's manifest, whether this runs as a source, compiled, or as part of a bundle. */
export const packageRoot = holderOf("package.json", dirname(fileURLToPath(import.meta.url)));

function holderOf(name: string, folder: string): string {
  if (existsSync(join(folder, name)) || dirname(folder) === folder) return folder;
  return holderOf(name, dirname(folder));
}
