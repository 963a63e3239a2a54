import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gunzip, gzip } from "node:zlib";
import { createDatabase } from "./embedded-engine.ts";

/** An empty database, packed: unpacking it takes a second, making one anew several. */
interface Header {
  /** Release of the engine that made it; another one makes its own. */
  readonly engine: string;
  readonly directories: readonly string[];
  /** In the order in which their contents follow. */
  readonly files: readonly { readonly path: string; readonly size: number }[];
}

const NEWLINE = 10;

/** Compiled modules have it beside them, sources in the cache of the checkout. */
const IMAGE = new URL(
  import.meta.url.endsWith(".js") ? "base-image.gz" : "../../node_modules/.cache/steeple/base-image.gz",
  import.meta.url,
);

/** Unpacks the base image into the directory. False when there is none for this release of the engine. */
export async function unpackBaseImage(directory: string): Promise<boolean> {
  return existsSync(IMAGE) && unpack(await readFile(IMAGE), directory);
}

async function unpack(image: Buffer, directory: string): Promise<boolean> {
  const content = await promisify(gunzip)(image);
  const end = content.indexOf(NEWLINE);
  const header = JSON.parse(content.toString("utf8", 0, end)) as Header;
  if (header.engine !== (await engineRelease())) return false;
  for (const path of header.directories) await mkdir(join(directory, path), { mode: 0o700 });
  let offset = end + 1;
  for (const { path, size } of header.files) {
    await writeFile(join(directory, path), content.subarray(offset, offset + size), { mode: 0o600, flag: "wx" });
    offset += size;
  }
  return true;
}

async function pack(directory: string): Promise<Buffer> {
  const found = await readdir(directory, { recursive: true, withFileTypes: true });
  const pathOf = (entry: (typeof found)[number]): string => join(entry.parentPath, entry.name);
  const relative = (path: string): string => path.slice(directory.length + 1);
  const files = await Promise.all(
    found
      .filter((entry) => entry.isFile())
      .map(async (entry) => ({ path: pathOf(entry), bytes: await readFile(pathOf(entry)) })),
  );
  const header: Header = {
    engine: await engineRelease(),
    directories: found.filter((entry) => entry.isDirectory()).map((entry) => relative(pathOf(entry))),
    files: files.map(({ path, bytes }) => ({ path: relative(path), size: bytes.length })),
  };
  const head = Buffer.from(`${JSON.stringify(header)}\n`);
  return promisify(gzip)(Buffer.concat([head, ...files.map(({ bytes }) => bytes)]), { level: 9 });
}

async function engineRelease(): Promise<string> {
  const engine = createRequire(import.meta.url).resolve("@electric-sql/pglite");
  const manifest = await readFile(join(dirname(engine), "../package.json"), "utf8");
  const { version } = JSON.parse(manifest) as { readonly version: string };
  return version;
}

/** Makes a fresh database and writes its image, by default where this module looks for it. */
export async function writeBaseImage(path: string = fileURLToPath(IMAGE)): Promise<void> {
  const work = await mkdtemp(join(tmpdir(), "steeple-base-"));
  try {
    const database = join(work, "pgdata");
    await mkdir(database, { mode: 0o700 });
    await createDatabase(database);
    const draft = `${path}.${process.pid}`;
    await mkdir(dirname(path), { recursive: true });
    await writeFile(draft, await pack(database));
    await rename(draft, path);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** `node server/store/base-image.ts [file]` */
if (process.argv[1] === fileURLToPath(import.meta.url)) await writeBaseImage(process.argv[2]);
