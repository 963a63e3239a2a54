import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { PROJECT } from "./imports.ts";

/** Set by what wants the programs as they are installed, and built them. */
const INSTALLED = "STEEPLE_TEST_INSTALLED";

/** From here on this process starts programs as they are installed. */
export function useInstalled(): void {
  execFileSync(process.execPath, [join(PROJECT, "src/dev/prepare.mjs"), "build"], { stdio: ["ignore", 2, 2] });
  process.env[INSTALLED] = "1";
}

/** What Node is started with for a program: its sources, or as it is installed. */
export function programArgs(name: "agent" | "server"): readonly string[] {
  if (process.env[INSTALLED] === undefined) return [join(PROJECT, `${name}/main.ts`)];
  return [join(PROJECT, `dist/${name}/main.js`)];
}
