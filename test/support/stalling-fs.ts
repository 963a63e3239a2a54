import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rmdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isRoot } from "./workload.ts";

const PYTHON = "python3";

/** Whether such file systems can be mounted here. */
export const hasFuse = isRoot && existsSync("/dev/fuse") && spawnSync(PYTHON, ["--version"]).status === 0;

/** A file system of one program, in user space, that can be made not to answer. */
export class StallingFileSystem implements AsyncDisposable {
  readonly program: string;
  readonly #folder: string;
  readonly #child: ChildProcess;

  private constructor(folder: string, child: ChildProcess) {
    this.#folder = folder;
    this.#child = child;
    this.program = join(folder, "program");
  }

  static async open(program: string): Promise<StallingFileSystem> {
    const folder = await mkdtemp(join(tmpdir(), "steeple-fuse-"));
    const script = new URL("./stalling-fs.py", import.meta.url).pathname;
    const child = spawn(PYTHON, [script, folder, program], { stdio: ["pipe", "pipe", "inherit"] });
    const files = new StallingFileSystem(folder, child);
    await files.#says("mounted");
    return files;
  }

  /** From now on nobody is told anything of its files, for half a minute: then they are gone. */
  async stall(): Promise<void> {
    this.#child.stdin?.write("stall\n");
    await this.#says("stalled");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#child, "exit");
    this.#child.stdin?.end("\n");
    if (this.#child.exitCode === null) await ended;
    await rmdir(this.#folder);
  }

  async #says(word: string): Promise<void> {
    const [data] = (await Promise.race([
      once(this.#child.stdout as NodeJS.EventEmitter, "data"),
      once(this.#child, "exit").then(() => [`it ended instead of being ${word}`]),
    ])) as [Buffer | string];
    if (data.toString().trim() !== word) throw new Error(data.toString());
  }
}
