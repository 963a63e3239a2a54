import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { systemClock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import { Feed } from "../runtime/feed.ts";

/** One line of a program's JSON log. */
export type LogLine = Readonly<Record<string, unknown>>;

export interface WantedLine {
  readonly message: string;
  readonly test?: ((line: LogLine) => boolean) | undefined;
}

const KEPT_LINES = 20;
const STOP_WITHIN_MS = 12_000;

/**
 * `steeple-server` or `steeple-agent` as a child that logs JSON. It ends with this process: by SIGTERM on disposal, and
 * through the closed IPC channel when this process is killed.
 */
export class Program implements AsyncDisposable {
  readonly name: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | NodeJS.Signals>;
  readonly #lines = new Feed<readonly LogLine[]>([]);
  readonly #tail: string[] = [];
  #disposed = false;

  constructor(name: "server" | "agent", args: readonly string[]) {
    this.name = name;
    const main = fileURLToPath(new URL(`../../${name}/main${ownExtension()}`, import.meta.url));
    this.#child = spawn(process.execPath, [main, ...args], {
      stdio: ["ignore", "pipe", "pipe", "ipc"],
      env: { ...process.env, ...compileCache() },
    });
    this.#ended = once(this.#child, "exit").then(([code, signal]) => (signal ?? code) as number | NodeJS.Signals);
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      if (stream !== null) createInterface({ input: stream }).on("line", (line) => this.#receive(line));
    }
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Resolves with the first log line that is wanted; throws `unavailable` with the log's end when the program ends first. */
  async logged({ message, test = () => true }: WantedLine, signal: AbortSignal): Promise<LogLine> {
    const matching = (line: LogLine): boolean => line["msg"] === message && test(line);
    const stop = new AbortController();
    const found = this.#lines.until((all) => all.some(matching), AbortSignal.any([signal, stop.signal]));
    try {
      const lines = await Promise.race([found, this.ended()]);
      return lines.find(matching) ?? {};
    } finally {
      found.catch(() => undefined);
      stop.abort();
    }
  }

  /** Rejects when the program ends although nobody asked it to; never resolves. */
  async ended(): Promise<never> {
    const status = await this.#ended;
    if (this.#disposed) return new Promise(() => undefined);
    throw new Fault("unavailable", `the ${this.name} ended with status ${status}:\n${this.#tail.join("\n")}`, {
      code: "dev-program-ended",
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    this.#child.kill("SIGTERM");
    const stopped = new AbortController();
    const forced = systemClock.sleep(STOP_WITHIN_MS, stopped.signal).then(
      () => this.#child.kill("SIGKILL"),
      () => false,
    );
    await this.#ended.finally(() => stopped.abort());
    await forced;
  }

  #receive(text: string): void {
    this.#tail.push(text);
    if (this.#tail.length > KEPT_LINES) this.#tail.shift();
    try {
      const line: unknown = JSON.parse(text);
      if (typeof line === "object" && line !== null)
        this.#lines.set([...this.#lines.value, line as LogLine].slice(-200));
    } catch {
      // Not a log line: it stays in the tail.
    }
  }
}

/** Compiled code from the last start, in a folder that only the package's owner can write to. */
function compileCache(): Readonly<Record<string, string>> {
  const modules = fileURLToPath(new URL("../../../node_modules", import.meta.url));
  try {
    accessSync(modules, constants.W_OK);
    return { NODE_COMPILE_CACHE: join(modules, ".cache/steeple/compile") };
  } catch {
    return {};
  }
}

function ownExtension(): string {
  return import.meta.url.endsWith(".ts") ? ".ts" : ".js";
}
