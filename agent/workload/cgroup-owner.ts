import { lstatSync, readFileSync, type Stats } from "node:fs";
import { join } from "node:path";
import { once } from "../../src/rpc/once.ts";
import { isAnybody } from "../../src/rpc/user-namespace.ts";

/** A control group file system as it is mounted here. */
interface Hierarchy {
  /** Controllers of version 1, or its name; empty for version 2. */
  readonly controllers: ReadonlySet<string>;
  readonly mountPoint: string;
}

const ROOT = 0;

/**
 * The user, if any but root, who may make groups on the way to the last part of the path: whoever owns a folder names
 * what is below it. `controllers` is the second field of the line in /proc/<pid>/cgroup, `path` the third. Undefined also
 * where the folders cannot be seen. cgroups(7), "Cgroups delegation".
 */
export function delegateOf(controllers: string, path: string): number | undefined {
  if (path.startsWith("/..")) return undefined;
  const mount = hierarchies().find((each) => controllers.split(",").every((name) => each.controllers.has(name)));
  if (mount === undefined) return undefined;
  const parts = path.split("/").slice(1, -1);
  for (const depth of parts.keys()) {
    const owner = ownerOf(join(mount.mountPoint, ...parts.slice(0, depth + 1)));
    if (owner !== ROOT) return owner;
  }
  return undefined;
}

/** Root as well for somebody who is unknown in our user namespace: root is, outside of it. */
function ownerOf(folder: string): number | undefined {
  const uid = look(folder)?.uid;
  return uid !== undefined && isAnybody(uid) ? ROOT : uid;
}

function look(folder: string): Stats | undefined {
  try {
    return lstatSync(folder, { throwIfNoEntry: false });
  } catch {
    return undefined;
  }
}

/** Whole hierarchies only: what is below a folder of one stands elsewhere. */
const hierarchies = once((): readonly Hierarchy[] => {
  const lines = readFileSync("/proc/self/mountinfo", "utf8").split("\n");
  return lines.flatMap((line) => {
    const fields = line.split(" ");
    const [type, , options = ""] = fields.slice(fields.indexOf("-", 6) + 1);
    const [root, mountPoint = ""] = fields.slice(3);
    if (root !== "/" || (type !== "cgroup" && type !== "cgroup2")) return [];
    return [{ mountPoint, controllers: new Set(type === "cgroup2" ? [""] : options.split(",")) }];
  });
});
