import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { eventually } from "../support/eventually.ts";

/** Names the file that the probe writes to. */
export const PROBE_FILE = "STEEPLE_BENCH_LOOP";

/** What the event loop did between two looks of a timer. */
export interface Turn {
  /** Unix milliseconds. */
  readonly ended: number;
  /** Of the main thread: what other programs take of the processor meanwhile does not count. */
  readonly cpuMs: number;
  readonly wallMs: number;
}

export interface Watched {
  /** But for the shortest. */
  readonly turns: readonly Turn[];
  /** Milliseconds of each pause for a collection of the whole heap, by the clock on the wall. */
  readonly collections: readonly number[];
}

/** Watches the event loop of a process that is started with `env`. */
export class LoopWatch {
  readonly env: Readonly<Record<string, string>>;
  readonly #file: string;
  #read = 0;

  constructor(folder: string) {
    this.#file = join(folder, "loop.jsonl");
    const probe = fileURLToPath(new URL("loop-probe.ts", import.meta.url));
    this.env = { [PROBE_FILE]: this.#file, NODE_OPTIONS: `--import ${probe}` };
  }

  /** What was seen since the start of the process, or since the last question. */
  async watched(pid: number): Promise<Watched> {
    process.kill(pid, "SIGUSR2");
    const line = await eventually("the process tells of its event loop", async () => {
      const text = await readFile(this.#file, "utf8").catch(() => "");
      return text.split("\n").filter(Boolean)[this.#read];
    });
    this.#read += 1;
    return JSON.parse(line) as Watched;
  }
}
