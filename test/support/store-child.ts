import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { eventually } from "./eventually.ts";
import type { StoreTask } from "./store-process.ts";

/** A running `store-process.ts`. Killed with its scope. */
export class StoreChild implements AsyncDisposable {
  readonly reports: string[] = [];
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;
  #errors = "";

  constructor(task: StoreTask) {
    const script = fileURLToPath(new URL("store-process.ts", import.meta.url));
    const child = spawn(process.execPath, [script, JSON.stringify(task)], { stdio: ["pipe", "pipe", "pipe"] });
    createInterface({ input: child.stdout }).on("line", (line) => this.reports.push(line));
    child.stderr.on("data", (text) => {
      this.#errors += String(text);
    });
    this.#closed = once(child, "close");
    this.#child = child;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** The rest of each report that begins with the word. */
  all(word: string): readonly string[] {
    return this.reports.filter((line) => line.startsWith(`${word} `)).map((line) => line.slice(word.length + 1));
  }

  async until(what: string, test: () => boolean, withinMs = 40_000): Promise<void> {
    await eventually(
      `a store process reports ${what}`,
      () => {
        if (test()) return true;
        if (this.#child.exitCode === null && this.#child.signalCode === null) return false;
        throw new Error(`it ended: ${this.#errors}`);
      },
      withinMs,
    );
  }

  opened(): Promise<void> {
    return this.until("open", () => this.reports.includes("open"));
  }

  /** kill -9. Resolves when it is gone and everything that it reported is here. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}
