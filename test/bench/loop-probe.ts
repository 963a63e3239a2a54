import { appendFileSync } from "node:fs";
import { constants, PerformanceObserver } from "node:perf_hooks";
import { isMainThread } from "node:worker_threads";
import { PROBE_FILE, type Turn, type Watched } from "./loop.ts";

/** Shorter turns are nobody's trouble. */
const WORTH_MS = 5;

/** Loaded before a program (`--import`): whenever it gets SIGUSR2, it writes what it saw since the last time. */
const file = process.env[PROBE_FILE];
if (isMainThread && file !== undefined) watch(file);

function watch(path: string): void {
  let [at, cpu] = [performance.now(), cpuMs()];
  let turns: Turn[] = [];
  let collections: number[] = [];
  setInterval(() => {
    const [atNow, cpuNow] = [performance.now(), cpuMs()];
    if (cpuNow - cpu > WORTH_MS) turns.push({ ended: Date.now(), cpuMs: cpuNow - cpu, wallMs: atNow - at });
    [at, cpu] = [atNow, cpuNow];
  }, 1).unref();
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      const { duration, detail } = entry as PerformanceEntry & { readonly detail?: { readonly kind?: number } };
      if (detail?.kind === constants.NODE_PERFORMANCE_GC_MAJOR) collections.push(duration);
    }
  }).observe({ entryTypes: ["gc"] });
  process.on("SIGUSR2", () => {
    appendFileSync(path, `${JSON.stringify({ turns, collections } satisfies Watched)}\n`);
    turns = [];
    collections = [];
  });
}

/** Of this thread alone. */
function cpuMs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) / 1000;
}
