import { readFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "./package-root.ts";

/** The package's version. */
export function packageVersion(): string {
  const { version }: { readonly version: string } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8"));
  return version;
}
