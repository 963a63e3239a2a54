import { chownSync, existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { isRoot } from "./workload.ts";

/** Mount points of the hierarchies in which a process can be moved about without setting them up first; cpuset and memory need more. */
function hierarchies(): readonly string[] {
  const mounts = readFileSync("/proc/self/mounts", "utf8").split("\n");
  return mounts.flatMap((line) => {
    const [, mount = "", type, options = ""] = line.split(" ");
    const isSimple = ["pids", "freezer", "name=systemd"].some((name) => options.split(",").includes(name));
    return type === "cgroup2" || (type === "cgroup" && isSimple) ? [mount] : [];
  });
}

/** Whether control groups can be made here. */
export const hasCgroups = isRoot && hierarchies().length > 0 && canMake();

function canMake(): boolean {
  const probe = join(hierarchies()[0] ?? "", `steeple-probe-${process.pid}`);
  try {
    mkdirSync(probe);
    rmdirSync(probe);
    return true;
  } catch {
    return false;
  }
}

/**
 * Real control groups for processes of a test; they go when it ends. Of several paths each hierarchy gets one, and those
 * that are left get the last.
 */
export class Cgroup implements Disposable {
  readonly #groups: readonly { readonly mount: string; readonly folder: string }[];
  readonly #made: string[] = [];

  constructor(...paths: readonly string[]) {
    const mounts = hierarchies();
    if (paths.length > mounts.length) throw new Error(`there are ${mounts.length} hierarchies only`);
    this.#groups = mounts.map((mount, at) => ({ mount, folder: join(mount, paths[at] ?? paths.at(-1) ?? "") }));
    for (const { mount, folder } of this.#groups) this.#make(folder, mount);
  }

  /** Moves a process in. */
  add(pid: number): void {
    for (const { folder } of this.#groups) writeFileSync(join(folder, "cgroup.procs"), String(pid));
  }

  /** Gives the groups that were made to a user, as a service manager does by delegation. */
  give(uid: number): void {
    for (const folder of this.#made) chownSync(folder, uid, -1);
  }

  [Symbol.dispose](): void {
    for (const { mount, folder } of this.#groups) this.#evacuate(folder, mount);
    for (const folder of this.#made.reverse()) {
      try {
        rmdirSync(folder);
      } catch (error) {
        // Shared with another test's group, or a process that is just about to be gone.
        if (!["EBUSY", "ENOTEMPTY", "ENOENT"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
      }
    }
  }

  #make(folder: string, mount: string): void {
    if (folder === mount || existsSync(folder)) return;
    this.#make(dirname(folder), mount);
    mkdirSync(folder, { recursive: true });
    this.#made.push(folder);
  }

  #evacuate(folder: string, mount: string): void {
    for (const pid of readFileSync(join(folder, "cgroup.procs"), "utf8").split("\n").filter(Boolean)) {
      try {
        writeFileSync(join(mount, "cgroup.procs"), pid);
      } catch {
        // It has exited.
      }
    }
  }
}
