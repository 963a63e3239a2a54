import { execFile } from "node:child_process";
import { chmod } from "node:fs/promises";
import { release } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { isRoot, temporaryDirectory } from "./workload.ts";

/** What came of an attack by recycled PIDs. */
export interface StormResult {
  /** Attackers' connections that were asked for. */
  callers: number;
  /** Of those, the ones that were taken for the victim, by the real attestor and by one that looks up the PID. */
  wrong: number;
  wrongByNaive: number;
  /** Refused by the real attestor. */
  refused: number;
  /** The victim's own connections, and those of them that were refused. */
  genuine: number;
  genuineRefused: number;
}

const script = (name: string): string => new URL(name, import.meta.url).pathname;

/** Before Linux 6.14 `pid_max` is the machine's, not the namespace's, and is left alone. */
export async function canStorm(): Promise<boolean> {
  const [major = 0, minor = 0] = release().split(".").map(Number);
  if (!isRoot || major < 6 || (major === 6 && minor < 14)) return false;
  return canRun("perl", "-MSocket", "-e", "1");
}

/** Whether this ends well. */
export async function canRun(program: string, ...args: readonly string[]): Promise<boolean> {
  return promisify(execFile)(program, args).then(
    () => true,
    () => false,
  );
}

/** Attacks the attestor that many times in a PID namespace of its own. Only root may. */
export async function storm(tries: number): Promise<StormResult> {
  await using folder = await temporaryDirectory();
  await chmod(folder.path, 0o755);
  const socket = join(folder.path, "storm.sock");
  const server = [process.execPath, script("./pid-storm-process.ts"), socket];
  const attack = ["perl", script("./pid-storm.pl"), socket, String(tries), ...server];
  const args = ["--pid", "--fork", "--kill-child", "--mount-proc", ...attack];
  const { stdout } = await promisify(execFile)("unshare", args);
  return JSON.parse(stdout) as StormResult;
}

// By hand: `node test/support/pid-storm.ts 100000`
if (import.meta.main) console.log(await storm(Number(process.argv[2] ?? 1000)));
