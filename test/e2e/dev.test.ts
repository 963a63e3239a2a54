import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { eventually } from "../support/eventually.ts";
import { PROJECT } from "../support/server-process.ts";

class Dev implements AsyncDisposable {
  readonly child: ChildProcess;
  output = "";
  readonly #closed: Promise<unknown>;

  constructor(args: readonly string[]) {
    this.child = spawn(process.execPath, [join(PROJECT, "src/dev/main.ts"), "dev", ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream?.setEncoding("utf8").on("data", (text: string) => {
        this.output += text;
      });
    }
    this.#closed = once(this.child, "close");
  }

  async shown(pattern: RegExp): Promise<string> {
    const match = await eventually(`${pattern} is shown`, () => pattern.exec(this.output) ?? this.#ended(), 60_000);
    return match[1] ?? "";
  }

  async closed(): Promise<number | null> {
    await this.#closed;
    return this.child.exitCode;
  }

  async pids(): Promise<readonly number[]> {
    const line = await this.shown(/Processes\s+(.*)/);
    return [...line.matchAll(/\d+/g)].map(([pid]) => Number(pid));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill("SIGTERM");
    await this.#closed;
  }

  #ended(): undefined {
    if (this.child.exitCode !== null) throw new Error(`ended with status ${this.child.exitCode}:\n${this.output}`);
  }
}

const alive = (pid: number): boolean => existsSync(`/proc/${pid}/exe`);

test("dev mode shows an identity and its rotation on an open stream, and --once ends with status 0", {
  timeout: 120_000,
}, async () => {
  await using dev = new Dev(["--once", "--ttl", "10s"]);
  const pids = await dev.pids();
  expect(await dev.closed(), dev.output).toBe(0);
  expect(dev.output).toMatch(/export SPIFFE_ENDPOINT_SOCKET=unix:\/\/\/\S+\/agent\.sock\n/);
  expect(dev.output).toMatch(/SPIFFE ID {3}spiffe:\/\/dev\.local\/user\/\S+\n/);
  expect(dev.output).toMatch(/Valid {7}\S+ to \S+ \(\d+ s left\), serial \d+\n/);
  expect(dev.output).toMatch(/Rotated {5}\S+ to \S+ \(\d+ s left\), serial \d+\n/);
  expect(pids).toHaveLength(2);
  expect(pids.filter(alive)).toEqual([]);
  const folder = /Data\s+(\S+) \(removed/.exec(dev.output)?.[1] ?? "";
  expect(folder).not.toBe("");
  expect(existsSync(folder)).toBe(false);
});

test.each(["SIGINT", "SIGTERM"] as const)(
  "%s stops everything and leaves nothing running",
  { timeout: 120_000 },
  async (signal) => {
    await using dev = new Dev([]);
    const pids = await dev.pids();
    expect(pids.filter(alive)).toHaveLength(2);
    dev.child.kill(signal);
    expect(await dev.closed(), dev.output).toBe(0);
    expect(pids.filter(alive)).toEqual([]);
  },
);

test("killed with SIGKILL, it takes the server and the agent with it", { timeout: 120_000 }, async () => {
  await using dev = new Dev([]);
  const pids = await dev.pids();
  dev.child.kill("SIGKILL");
  await eventually("both programs have ended", () => !pids.some(alive), 30_000);
});

test("a kept folder starts again with the same agent, and a second run on it is refused by name", {
  timeout: 180_000,
}, async () => {
  const folder = await mkdtemp(join(tmpdir(), "steeple-dev-"));
  await using cleanup = new AsyncDisposableStack();
  cleanup.defer(() => rm(folder, { recursive: true, force: true }));
  {
    await using first = new Dev(["--data-dir", folder]);
    await first.shown(/SPIFFE ID/);
    const [serverPid] = await first.pids();
    await using second = new Dev(["--data-dir", folder]);
    expect(await second.closed()).toBe(1);
    expect(second.output).toContain(`in use by process ${serverPid}`);
    expect(second.output).toContain("Hint: ");
  }
  await using again = new Dev(["--data-dir", folder]);
  await again.shown(/SPIFFE ID {3}(spiffe:\S+)/);
});
