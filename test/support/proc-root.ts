import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { PeerProcess } from "../../src/rpc/peer-credentials.ts";

/** A proc file system laid out on disk, as `HOST_PROC` allows: control groups of processes by pid. */
export class ProcRoot implements AsyncDisposable {
  readonly path: string;
  #next = 1000;

  private constructor(path: string) {
    this.path = path;
  }

  static async open(): Promise<ProcRoot> {
    return new ProcRoot(await mkdtemp(join(tmpdir(), "steeple-proc-")));
  }

  /** A caller in these control groups, one line each. */
  async caller(...cgroup: readonly string[]): Promise<PeerProcess> {
    const pid = this.#next++;
    await this.place(pid, ...cgroup);
    const ids = { uid: 0, gid: 0, realUid: 0, realGid: 0 };
    const program = { startTime: "1", image: "0:0", executable: undefined };
    return { pid, ...ids, ...program, pidfd: undefined, isAlive: () => true };
  }

  /** Puts a process into these control groups. */
  async place(pid: number, ...cgroup: readonly string[]): Promise<void> {
    await mkdir(join(this.path, String(pid)), { recursive: true });
    await writeFile(join(this.path, String(pid), "cgroup"), `${cgroup.join("\n")}\n`);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return rm(this.path, { recursive: true, force: true });
  }
}
