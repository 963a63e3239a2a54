import { readFileSync } from "node:fs";

/** The package's version; its `package.json` stands beside `src`, and beside the `dist` that holds the compiled form. */
export function packageVersion(): string {
  const path = import.meta.url.endsWith(".ts") ? "../../package.json" : "../../../package.json";
  const { version }: { readonly version: string } = JSON.parse(readFileSync(new URL(path, import.meta.url), "utf8"));
  return version;
}
