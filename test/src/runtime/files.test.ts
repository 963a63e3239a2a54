import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmod,
  chown,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { lockDirectory } from "../../../src/runtime/directory-lock.ts";
import {
  checkDirectory,
  ensureDirectory,
  ensurePrivateDirectory,
  writePrivateFile,
} from "../../../src/runtime/files.ts";
import { faultFrom, refusal } from "../../support/faults.ts";

const LOCK = JSON.stringify(new URL("../../../src/runtime/directory-lock.ts", import.meta.url).href);
const FILES = JSON.stringify(new URL("../../../src/runtime/files.ts", import.meta.url).href);
const isRoot = process.geteuid?.() === 0;

let folder = "";
beforeEach(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), "steeple-files-")));
});
afterEach(() => rm(folder, { recursive: true }));

async function modeOf(path: string): Promise<number> {
  return (await stat(path)).mode & 0o7777;
}

/** Runs lines of a module in a process of its own, where the umask may be changed. */
async function runModule(lines: string): Promise<void> {
  const child = spawn(process.execPath, ["--input-type=module", "-e", lines], { stdio: "inherit" });
  expect(await once(child, "exit")).toEqual([0, null]);
}

describe("private files", () => {
  test.each([0o000, 0o022, 0o077, 0o277, 0o777])(
    "T-F2 a key file has mode 0600 under umask 0%o, and its directory 0700",
    async (umask) => {
      const path = join(folder, "a", "b", "keys.json");
      await runModule(`
      import { ensurePrivateDirectory, writePrivateFile } from ${FILES};
      process.umask(${umask});
      await ensurePrivateDirectory(${JSON.stringify(join(folder, "a", "b"))});
      await writePrivateFile(${JSON.stringify(path)}, "secret");`);
      expect(await modeOf(path)).toBe(0o600);
      expect(await modeOf(join(folder, "a"))).toBe(0o700);
      expect(await modeOf(join(folder, "a", "b"))).toBe(0o700);
    },
  );

  test("T-F2 a file that was open to others is replaced by one that is not, and nothing else is left", async () => {
    const path = join(folder, "keys.json");
    await writeFile(path, "old", { mode: 0o644 });
    await chmod(path, 0o644);
    await writePrivateFile(path, Buffer.from("new"));
    expect(await readFile(path, "utf8")).toBe("new");
    expect(await modeOf(path)).toBe(0o600);
    expect(await readdir(folder)).toEqual(["keys.json"]);
  });

  test("a symbolic link is replaced, not followed", async () => {
    await writeFile(join(folder, "victim"), "untouched");
    await symlink("victim", join(folder, "keys.json"));
    await writePrivateFile(join(folder, "keys.json"), "new");
    expect(await readFile(join(folder, "victim"), "utf8")).toBe("untouched");
    expect(await readFile(join(folder, "keys.json"), "utf8")).toBe("new");
  });

  test("when the file can't be replaced, the old one stays and no draft of the new one", async () => {
    await mkdir(join(folder, "keys.json", "full"), { recursive: true });
    const fault = await faultFrom(writePrivateFile(join(folder, "keys.json"), "secret"));
    expect(fault).toMatchObject(refusal("unavailable", "file-error"));
    expect(fault.message).toContain("keys.json");
    expect(await readdir(folder)).toEqual(["keys.json"]);
  });

  test("readers never see half a file while it's replaced over and over", async () => {
    const path = join(folder, "state.json");
    const texts = ["a".repeat(100_000), "b".repeat(200_000)];
    await writePrivateFile(path, texts[0] ?? "");
    const writing = (async () => {
      for (let round = 0; round < 20; round += 1) await writePrivateFile(path, texts[round % 2] ?? "");
    })();
    for (let round = 0; round < 50; round += 1) expect(texts).toContain(await readFile(path, "utf8"));
    await writing;
  });
});

describe("directories", () => {
  test("T-W10 a socket's directory gets the mode asked for, and one that exists keeps its own", async () => {
    await ensureDirectory(join(folder, "run", "public"), 0o755);
    expect(await modeOf(join(folder, "run", "public"))).toBe(0o755);
    await chmod(join(folder, "run", "public"), 0o750);
    await ensureDirectory(join(folder, "run", "public"), 0o755);
    expect(await modeOf(join(folder, "run", "public"))).toBe(0o750);
  });

  test("T-W10 a directory that everyone may write to is refused, with what to do", async () => {
    await mkdir(join(folder, "open"));
    await chmod(join(folder, "open"), 0o777);
    const fault = await faultFrom(checkDirectory(join(folder, "open")));
    expect(fault).toMatchObject(refusal("precondition", "directory-unsafe"));
    expect(fault.hint).toContain(`chmod o-w ${join(folder, "open")}`);
  });

  test("T-W10 so is one that lies below it", async () => {
    await mkdir(join(folder, "open", "private"), { recursive: true });
    await chmod(join(folder, "open"), 0o777);
    const fault = await faultFrom(ensurePrivateDirectory(join(folder, "open", "private")));
    expect(fault).toMatchObject(refusal("precondition", "directory-unsafe"));
    expect(fault.message).toContain(join(folder, "open"));
  });

  test("T-W10 a symbolic link into it does not hide it", async () => {
    await mkdir(join(folder, "open", "private"), { recursive: true });
    await chmod(join(folder, "open"), 0o777);
    await symlink(join(folder, "open", "private"), join(folder, "link"));
    expect(await faultFrom(checkDirectory(join(folder, "link")))).toMatchObject(
      refusal("precondition", "directory-unsafe"),
    );
  });

  test("T-W10 a sticky directory such as /tmp is fine for what is ours", async () => {
    await mkdir(join(folder, "tmp", "ours"), { recursive: true });
    await chmod(join(folder, "tmp"), 0o1777);
    await expect(checkDirectory(join(folder, "tmp", "ours"))).resolves.toBeUndefined();
  });

  test.runIf(isRoot)("T-W10 what another user put into a sticky directory is refused", async () => {
    await mkdir(join(folder, "tmp", "theirs"), { recursive: true });
    await chmod(join(folder, "tmp"), 0o1777);
    await chown(join(folder, "tmp", "theirs"), 4321, 4321);
    const theirs = await faultFrom(checkDirectory(join(folder, "tmp", "theirs")));
    expect(theirs).toMatchObject(refusal("precondition", "directory-unsafe"));
    expect(theirs.message).toContain("4321");
  });

  test.runIf(isRoot)("T-W10 a link that another user left in a sticky directory is refused", async () => {
    await chmod(folder, 0o755);
    await mkdir(join(folder, "tmp"));
    await mkdir(join(folder, "ours"));
    await chmod(join(folder, "tmp"), 0o1777);
    await runModule(`
      import { symlinkSync } from "node:fs";
      process.setegid(4321);
      process.seteuid(4321);
      symlinkSync(${JSON.stringify(join(folder, "ours"))}, ${JSON.stringify(join(folder, "tmp", "link"))});`);
    const fault = await faultFrom(checkDirectory(join(folder, "tmp", "link")));
    expect(fault).toMatchObject(refusal("precondition", "directory-unsafe"));
  });

  test("T-W10 a file in the way is refused", async () => {
    await writeFile(join(folder, "file"), "");
    expect((await faultFrom(ensurePrivateDirectory(join(folder, "file")))).message).toContain(join(folder, "file"));
    expect((await faultFrom(ensurePrivateDirectory(join(folder, "file", "below")))).message).toContain("ENOTDIR");
  });
});

describe("the lock of a data directory", () => {
  test("a second process is refused, and told who holds it", async () => {
    await using _held = await lockDirectory(folder);
    const script = `
      import { lockDirectory } from ${LOCK};
      await lockDirectory(${JSON.stringify(folder)}).then(() => process.exit(2), (fault) => console.log(fault.code, fault.message));`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    let text = "";
    child.stdout.on("data", (chunk: Buffer) => {
      text += chunk.toString();
    });
    await once(child, "close");
    expect(text).toBe(`directory-locked directory ${folder} is in use by process ${process.pid}\n`);
  });

  test("it's free again after release", async () => {
    const held = await lockDirectory(folder);
    expect(await faultFrom(lockDirectory(folder))).toMatchObject(refusal("precondition", "directory-locked"));
    await held[Symbol.asyncDispose]();
    await using again = await lockDirectory(folder);
    expect(again).toBeDefined();
  });

  test("it's free again after kill -9, with no stale file in the way", async () => {
    const script = `
      import { lockDirectory } from ${LOCK};
      const held = await lockDirectory(${JSON.stringify(folder)});
      console.log("held");
      setInterval(() => held, 1000);`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(child.stdout, "data");
    expect((await faultFrom(lockDirectory(folder))).message).toContain(`process ${child.pid}`);
    child.kill("SIGKILL");
    await once(child, "exit");
    await using again = await lockDirectory(folder);
    expect(again).toBeDefined();
  });

  test("of 8 processes that start at once, exactly one gets it", async () => {
    const script = `
      import { lockDirectory } from ${LOCK};
      const got = await lockDirectory(${JSON.stringify(folder)}).then(() => "yes", () => "no");
      console.log(got);
      process.stdin.resume();`;
    const children = Array.from({ length: 8 }, () => spawn(process.execPath, ["--input-type=module", "-e", script]));
    const answers = await Promise.all(
      children.map(async (child) => String((await once(child.stdout, "data"))[0]).trim()),
    );
    for (const child of children) child.kill("SIGKILL");
    expect(answers.filter((answer) => answer === "yes")).toHaveLength(1);
  });

  test("a directory that isn't there is an error of its own", async () => {
    expect(await faultFrom(lockDirectory(join(folder, "none")))).toMatchObject(refusal("unavailable", "file-error"));
  });
});
