import { readFileSync, readlinkSync } from "node:fs";
import { once } from "./once.ts";

/** Stands for every user, and for every group, that has no number here. user_namespaces(7). */
const OVERFLOW_ID = 65534;

const ALL = /^\s*0\s+0\s+4294967295\s*$/;

/** Whether every user and group of the machine has a number of its own where we run: not in a user namespace. */
const seesAllIds = once(() =>
  ["uid_map", "gid_map"].every((name) => ALL.test(readFileSync(`/proc/self/${name}`, "utf8"))),
);

/** Whether this number may be anybody's. */
export function isAnybody(id: number): boolean {
  return id === OVERFLOW_ID && !seesAllIds();
}

/** Whether a process numbers its users as we do. False also when we may not see that. */
export function sharesUsers(pid: number): boolean {
  try {
    return readlinkSync(`/proc/${pid}/ns/user`) === readlinkSync("/proc/self/ns/user");
  } catch {
    return false;
  }
}
