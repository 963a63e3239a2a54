import { fdatasyncSync, fsyncSync } from "node:fs";
import { PGlite } from "@electric-sql/pglite";
import { NodeFS } from "@electric-sql/pglite/nodefs";

/** The part of the engine's file system that the hook below touches. */
interface NodeStream {
  readonly nfd: number;
  readonly node: { readonly mode: number };
}
interface FileSystemModule {
  readonly FS: { isDir(mode: number): boolean };
  readonly NODEFS: { readonly stream_ops: { fsync?: (stream: NodeStream) => number } };
}

/** The engine's own file system answers fsync without doing it; this one writes to the disk before it answers. */
class DurableFileSystem extends NodeFS {
  override async init(...[engine, options]: Parameters<NodeFS["init"]>): ReturnType<NodeFS["init"]> {
    const { emscriptenOpts } = await super.init(engine, options);
    const makeDurable = (module: unknown): void => {
      const { FS, NODEFS } = module as FileSystemModule;
      NODEFS.stream_ops.fsync = ({ nfd, node }) => {
        if (FS.isDir(node.mode)) fsyncSync(nfd);
        else fdatasyncSync(nfd);
        return 0;
      };
    };
    return { emscriptenOpts: { ...emscriptenOpts, preRun: [...(emscriptenOpts.preRun ?? []), makeDurable] } };
  }
}

const SETTINGS = {
  fsync: "on",
  /** The only method that reaches the hook. */
  wal_sync_method: "fsync",
  /** The directory of the server is in memory, so the database's own cache can be small. */
  shared_buffers: "16MB",
  timezone: "UTC",
  default_transaction_isolation: "read committed",
};

/** Opens the database in `directory`, and makes it when the directory is empty. */
export async function openEngine(directory: string): Promise<PGlite> {
  const durable = PGlite.defaultStartParams.filter((parameter) => parameter !== "-F");
  const settings = Object.entries(SETTINGS).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
  return PGlite.create({
    fs: new DurableFileSystem(directory),
    startParams: [...durable, ...settings],
    initDbStartParams: ["--wal-segsize=1"],
  });
}

/** Makes a database in the empty directory and closes it. */
export async function createDatabase(directory: string): Promise<void> {
  const engine = await openEngine(directory);
  await engine.close();
}
