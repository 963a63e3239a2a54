import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

/** Milliseconds as text with three digits that count. */
export function ms(value: number): string {
  return `${value.toPrecision(3)} ms`;
}

function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

export function spread(values: readonly number[]): string {
  return `p50 ${ms(percentile(values, 0.5))}, p99 ${ms(percentile(values, 0.99))}, max ${ms(Math.max(...values))} (n=${values.length})`;
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

/** Calls of `work` per second, one after the other, over about `forMs`. */
export async function perSecond(work: () => Promise<unknown> | unknown, forMs = 1000): Promise<number> {
  for (let warm = 0; warm < 20; warm++) await work();
  const started = performance.now();
  let count = 0;
  while (performance.now() - started < forMs) {
    await work();
    count += 1;
  }
  return (count * 1000) / (performance.now() - started);
}

/** Calls per second with that many in flight. */
export async function perSecondInFlight(work: () => Promise<unknown>, inFlight: number, forMs = 1000): Promise<number> {
  const started = performance.now();
  let count = 0;
  await Promise.all(
    Array.from({ length: inFlight }, async () => {
      while (performance.now() - started < forMs) {
        await work();
        count += 1;
      }
    }),
  );
  return (count * 1000) / (performance.now() - started);
}
