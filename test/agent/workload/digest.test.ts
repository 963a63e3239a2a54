import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { appendFile, type FileHandle, open, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { Digests } from "../../../agent/workload/digest.ts";
import { type Clock, systemClock } from "../../../src/runtime/clock.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const O_PATH = 0o10000000;
const MINUTE = 60_000;
/** A clock for which every file has long been settled. */
const later: Clock = { ...systemClock, now: () => new Date(systemClock.now().getTime() + MINUTE) };

function digests(options: { sizeLimit?: number; maxMs?: number; clock?: Clock; signal?: AbortSignal } = {}): Digests {
  return new Digests({ sizeLimit: 0, clock: later, signal: new AbortController().signal, ...options });
}

async function withFile<T>(content: string | number, use: (file: FileHandle, path: string) => Promise<T>): Promise<T> {
  await using folder = await temporaryDirectory();
  const path = join(folder.path, "program");
  await writeFile(path, typeof content === "string" ? content : "");
  if (typeof content === "number") await truncate(path, content);
  await using file = await open(path, O_PATH);
  return await use(file, path);
}

describe("the digest of a program", () => {
  test("is the SHA-256 of its bytes", async () => {
    const digest = await withFile("#!/bin/sh\n", (file) => digests().sha256(file));
    expect(digest).toBe(createHash("sha256").update("#!/bin/sh\n").digest("hex"));
  });

  test("follows the file when its contents change", async () => {
    const known = digests();
    const [first, second] = await withFile("one", async (file, path) => {
      const before = await known.sha256(file);
      await appendFile(path, "two");
      return [before, await known.sha256(file)];
    });
    expect(second).toBe(createHash("sha256").update("onetwo").digest("hex"));
    expect(second).not.toBe(first);
  });

  test("is read once however many ask, at the same time or later", async () => {
    let reads = 0;
    const counting: Clock = {
      ...later,
      monotonic: () => {
        reads += 1;
        return 0;
      },
    };
    const known = digests({ clock: counting });
    await withFile(1, async (file) => {
      await Promise.all(Array.from({ length: 20 }, () => known.sha256(file)));
      const first = reads;
      await known.sha256(file);
      expect(first).toBe(3);
      expect(reads).toBe(first);
    });
  });

  test("is not kept for a file that has only just changed", async () => {
    let reads = 0;
    const counting: Clock = {
      ...systemClock,
      monotonic: () => {
        reads += 1;
        return 0;
      },
    };
    const known = digests({ clock: counting });
    await withFile("fresh", async (file) => {
      await known.sha256(file);
      const first = reads;
      await known.sha256(file);
      expect(reads).toBe(2 * first);
    });
  });
});

describe("T-W6 what cannot be hashed within bounds is refused", () => {
  test.each([
    { what: "one byte over the limit", size: 1025, sizeLimit: 1024 },
    { what: "50 GB without a limit of its own", size: 50 * 2 ** 30, sizeLimit: 0 },
  ])("a file of $what", async ({ size, sizeLimit }) => {
    const refused = withFile(size, (file) => digests({ sizeLimit }).sha256(file));
    await expect(refused).rejects.toMatchObject({ kind: "denied", code: "digest-size" });
  });

  test("a file of exactly the limit is hashed", async () => {
    expect(await withFile(1024, (file) => digests({ sizeLimit: 1024 }).sha256(file))).toMatch(/^[0-9a-f]{64}$/);
  });

  test("a FIFO, without waiting for a writer", async () => {
    await using folder = await temporaryDirectory();
    const path = join(folder.path, "fifo");
    execFileSync("mkfifo", [path]);
    await using file = await open(path, O_PATH);
    await expect(digests().sha256(file)).rejects.toMatchObject({ kind: "denied", code: "digest-not-a-file" });
  });

  test.each(["/dev/zero", "/proc"])("%s, which is no regular file", async (path) => {
    await using file = await open(path, O_PATH);
    await expect(digests().sha256(file)).rejects.toMatchObject({ code: "digest-not-a-file" });
  });

  test.each(["/proc/self/status", "/proc/cpuinfo"])("%s, whose size is not that of what it gives", async (path) => {
    await using file = await open(path, O_PATH);
    await expect(digests().sha256(file)).rejects.toMatchObject({ kind: "unavailable", code: "digest-changed" });
  });

  test("a file that grows while it is read", async () => {
    await withFile(8 * 2 ** 20, async (file, path) => {
      let grown = false;
      const growing: Clock = {
        ...later,
        monotonic: () => {
          if (!grown) execFileSync("sh", ["-c", `printf x >> '${path}'`]);
          grown = true;
          return 0;
        },
      };
      const digest = digests({ clock: growing }).sha256(file);
      await expect(digest).rejects.toMatchObject({ kind: "unavailable", code: "digest-changed" });
    });
  });

  test("a file that takes too long", async () => {
    let now = 0;
    const slow: Clock = { ...later, monotonic: () => (now += 400) };
    const digest = withFile(8 * 2 ** 20, (file) => digests({ clock: slow, maxMs: 1_000 }).sha256(file));
    await expect(digest).rejects.toMatchObject({ kind: "timeout", code: "digest-time" });
  });

  test("many files at once: two are read at a time", async () => {
    await using folder = await temporaryDirectory();
    const readers = (): number =>
      readdirSync("/proc/self/fd").filter((fd) => {
        try {
          const isOurs = readlinkSync(`/proc/self/fd/${fd}`).startsWith(folder.path);
          return isOurs && !/^flags:\s+0?1\d{7}$/m.test(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"));
        } catch {
          return false;
        }
      }).length;
    let most = 0;
    const watching: Clock = {
      ...later,
      monotonic: () => {
        most = Math.max(most, readers());
        return 0;
      },
    };
    const known = digests({ clock: watching });
    await using files = new AsyncDisposableStack();
    const opened = Array.from({ length: 8 }, async (_, at) => {
      const path = join(folder.path, String(at));
      await writeFile(path, String(at));
      await truncate(path, 2 ** 20);
      return files.use(await open(path, O_PATH));
    });
    const hashed = await Promise.all((await Promise.all(opened)).map((file) => known.sha256(file)));
    expect(new Set(hashed).size).toBe(8);
    expect(most).toBe(2);
  });

  test("T-W6 programs that take long to read hold up nobody but callers of their own group", async () => {
    await using held = new AsyncDisposableStack();
    const { path: folder } = held.use(await temporaryDirectory());
    const stop = new AbortController();
    const known = digests({ signal: stop.signal });
    const opened = async (name: string, size: number) => {
      await writeFile(join(folder, name), "#!");
      await truncate(join(folder, name), size);
      return held.use(await open(join(folder, name), O_PATH));
    };
    const large = await Promise.all(["a", "b", "c"].map((name) => opened(name, 8 * 1024 ** 3)));
    const hogs = large.map((file) => known.sha256(file, "noisy"));
    const small = await opened("small", 16);
    const behind = known.sha256(small, "noisy");
    const ended = Promise.allSettled([...hogs, behind]);
    expect(await Promise.race([known.sha256(small, "quiet").then(() => "quiet"), ended])).toBe("quiet");
    stop.abort();
    expect((await ended).map(({ status }) => status)).toEqual(Array(4).fill("rejected"));
  });

  test("a file being read when the agent stops", async () => {
    const stopped = AbortSignal.abort();
    await expect(withFile(1, (file) => digests({ signal: stopped }).sha256(file))).rejects.toThrow(/abort/i);
  });
});
