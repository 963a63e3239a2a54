import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { PROJECT } from "./support/imports.ts";

interface Packed {
  readonly files: readonly { readonly path: string }[];
}

test("the package holds compiled JavaScript, the protos and the launcher, and no tests or sources", () => {
  const args = ["pack", "--dry-run", "--json", "--ignore-scripts"];
  const packed: readonly Packed[] = JSON.parse(
    execFileSync("npm", args, { cwd: PROJECT, stdio: ["ignore", "pipe", "ignore"] }).toString(),
  );
  const paths = packed[0]?.files.map(({ path }) => path) ?? [];
  for (const needed of [
    "dist/server/main.js",
    "dist/agent/main.js",
    "dist/src/dev/main.js",
    "dist/server/store/base-image.gz",
    "dist/server/store/embedded-worker.js",
    "dist/src/client/index.d.ts",
    "proto/spiffe/workloadapi.proto",
    "proto/spire/api/server/entry/v1/entry.proto",
    "src/runtime/launch.sh",
    "LICENSE",
    "README.md",
  ]) {
    expect(paths, needed).toContain(needed);
  }
  expect(paths.filter((path) => /(?<!\.d)\.ts$|^test\/|^dist\/test\/|\.test\.|node_modules|\.map$/.test(path))).toEqual(
    [],
  );
});

test("each program starts from its launcher, under the name it is called by", () => {
  const { bin, version } = JSON.parse(readFileSync(join(PROJECT, "package.json"), "utf8"));
  const folder = mkdtempSync(join(tmpdir(), "steeple-bin-"));
  expect(Object.keys(bin).sort()).toEqual(["steeple", "steeple-agent", "steeple-server"]);
  for (const [name, launcher] of Object.entries<string>(bin)) {
    // As npm links it.
    symlinkSync(join(PROJECT, launcher), join(folder, name));
    expect(execFileSync(join(folder, name), ["--version"]).toString().trim(), name).toBe(version);
  }
  rmSync(folder, { recursive: true });
});
