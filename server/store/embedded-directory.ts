import { existsSync } from "node:fs";
import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { unpackBaseImage } from "./base-image.ts";
import { createDatabase } from "./embedded-engine.ts";

/** Files written to the disk at a time. */
const SYNCS_AT_ONCE = 16;

/**
 * Makes the database when there is none. It is made beside its place and moved there when it is whole and on the disk,
 * so that a crash leaves either no database or a good one.
 */
export async function initialise(directory: string): Promise<void> {
  if (existsSync(join(directory, "PG_VERSION"))) return;
  const draft = `${directory}.new`;
  await rm(draft, { recursive: true, force: true });
  await mkdir(draft, { mode: 0o700 });
  if (!(await unpackBaseImage(draft))) await createDatabase(draft);
  await syncTree(draft);
  await rename(draft, directory);
  await sync(dirname(directory));
}

/** Major release of the engine that wrote the directory, for the message when it cannot be opened. */
export async function writtenBy(directory: string): Promise<string> {
  return (await readFile(join(directory, "PG_VERSION"), "utf8").catch(() => "of an unknown release")).trim();
}

async function syncTree(directory: string): Promise<void> {
  const found = await readdir(directory, { recursive: true, withFileTypes: true });
  const paths = [...found.map((entry) => join(entry.parentPath, entry.name)), directory];
  const next = paths.values();
  await Promise.all(
    Array.from({ length: SYNCS_AT_ONCE }, async () => {
      for (const path of next) await sync(path);
    }),
  );
}

async function sync(path: string): Promise<void> {
  const file = await open(path, "r");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
