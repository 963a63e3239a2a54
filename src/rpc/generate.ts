import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const protoRoot = join(here, "..", "..", "proto");
const generator = fileURLToPath(new URL("../bin/proto-loader-gen-types.js", import.meta.resolve("@grpc/proto-loader")));

/** The flags say what `protos.ts` asks of the loader. */
const flags = ["--keepCase", "--longs=String", "--enums=String", "--defaults", "--oneofs"];

/** Writes the types of all of /proto to `gen`, whole or not at all. */
function generate(): void {
  const protos = readdirSync(protoRoot, { recursive: true, encoding: "utf8" }).filter((path) =>
    path.endsWith(".proto"),
  );
  const fresh = mkdtempSync(join(here, "gen-"));
  try {
    const places = ["--grpcLib=@grpc/grpc-js", "--importFileExtension=.ts", "-I", protoRoot, "-O", fresh];
    execFileSync(process.execPath, [generator, ...flags, ...places, ...protos.sort()], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    dropRoots(fresh, protos);
    replace(join(here, "gen"), fresh);
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

/** The generator also writes one file per proto, named without its folder; several share a name and none is used. */
function dropRoots(folder: string, protos: readonly string[]): void {
  for (const proto of protos)
    rmSync(join(folder, `${proto.slice(proto.lastIndexOf("/") + 1, -".proto".length)}.ts`), { force: true });
}

function replace(folder: string, fresh: string): void {
  const stale = `${fresh}-stale`;
  try {
    renameSync(folder, stale);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  renameSync(fresh, folder);
  rmSync(stale, { recursive: true, force: true });
}

generate();
