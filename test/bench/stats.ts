import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

/** By nearest rank: one of the values. NaN of none. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
}

/** Milliseconds that the work took. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

export interface Calls {
  readonly count: number;
  readonly seconds: number;
  /** Milliseconds of each. */
  readonly ms: readonly number[];
  /** That the watched process used meanwhile, in microseconds for each call; undefined without one. */
  readonly cpuUs: number | undefined;
}

/** So many calls, `inFlight` at a time, while the CPU of the process `pid` is watched. */
export async function calls(
  {
    count,
    inFlight = 1,
    pid,
  }: { readonly count: number; readonly inFlight?: number; readonly pid?: number | undefined },
  work: (index: number, worker: number) => Promise<unknown>,
): Promise<Calls> {
  const ms: number[] = [];
  const before = pid === undefined ? 0 : cpuMs(pid);
  const started = performance.now();
  let next = 0;
  const run = async (worker: number): Promise<void> => {
    for (let index = next++; index < count; index = next++) ms.push(await timed(() => work(index, worker)));
  };
  await Promise.all(Array.from({ length: inFlight }, (_, worker) => run(worker)));
  const seconds = (performance.now() - started) / 1000;
  return { count, seconds, ms, cpuUs: pid === undefined ? undefined : ((cpuMs(pid) - before) * 1000) / count };
}

const TICKS_PER_SECOND = Number(execFileSync("getconf", ["CLK_TCK"]).toString());

/** CPU that the process has used, in milliseconds. */
export function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return ((Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND) * 1000;
}

/** Resident memory of the process, in MB. */
export function rssMb(pid: number): number {
  const line = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
  return Number(line?.[1]) / 1024;
}

/**
 * Calls of `work` per second of CPU of this process, all threads, over about `forMs`: what `openssl speed` counts too,
 * and what holds on a busy machine.
 */
export async function perCpuSecond(
  work: () => Promise<unknown> | unknown,
  { inFlight = 1, forMs = 1000 }: { readonly inFlight?: number; readonly forMs?: number } = {},
): Promise<number> {
  for (let warm = 0; warm < 20; warm++) await work();
  const [started, before] = [performance.now(), process.cpuUsage()];
  let count = 0;
  const run = async (): Promise<void> => {
    while (performance.now() - started < forMs) {
      await work();
      count += 1;
    }
  };
  await Promise.all(Array.from({ length: inFlight }, run));
  const { user, system } = process.cpuUsage(before);
  return (count * 1_000_000) / (user + system);
}
