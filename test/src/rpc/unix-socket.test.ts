import { spawn } from "node:child_process";
import { once } from "node:events";
import { lstatSync, readdirSync } from "node:fs";
import {
  chmod,
  chown,
  lchown,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { listenAt } from "../../../src/rpc/unix-socket.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { isFault } from "../../../src/runtime/fault.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { RecordingLog } from "../../support/recording-log.ts";

const isRoot = process.getuid?.() === 0;

test.each([
  { what: "public, usual umask", mode: 0o777, umask: 0o022 },
  { what: "admin, usual umask", mode: 0o770, umask: 0o022 },
  { what: "admin, no umask", mode: 0o770, umask: 0o000 },
  { what: "public, strict umask", mode: 0o777, umask: 0o077 },
])("T-W10 $what: the socket appears with its mode and no other", async ({ mode, umask }) => {
  await using folder = await directory();
  await using watcher = await watchModes(folder.path);
  const before = process.umask(umask);
  await using server = await listening(join(folder.path, "api.sock"), mode);
  expect(process.umask(before)).toBe(umask);
  const seen = await watcher.seen();
  expect(seen.filter(({ name }) => name === "api.sock").map((one) => one.mode)).toEqual([mode]);
  for (const { mode: other } of seen.filter(({ name }) => name !== "api.sock")) expect([0o700, mode]).toContain(other);
  expect(server.path).toBe(join(folder.path, "api.sock"));
});

test("T-W10 whatever the umask, nobody else can connect before the mode is set", async () => {
  await using folder = await directory();
  const server = createServer();
  const atFirst: number[] = [];
  server.on("listening", () => {
    for (const name of readdirSync(folder.path)) {
      const stat = lstatSync(join(folder.path, name));
      if (stat.isSocket()) atFirst.push(stat.mode & 0o777);
    }
  });
  const before = process.umask(0);
  const remove = await listenAt(
    server,
    { path: join(folder.path, "api.sock"), mode: 0o770 },
    { clock: systemClock, log: new RecordingLog() },
  );
  process.umask(before);
  expect(atFirst).toEqual([0o700]);
  remove();
  server.close();
});

test("T-W10 a socket that nobody listens on is replaced, and works", async () => {
  await using folder = await directory();
  const path = join(folder.path, "api.sock");
  await leaveStaleSocket(path);
  const stale = await lstat(path);
  await using server = await listening(path);
  expect((await lstat(server.path)).ino).not.toBe(stale.ino);
  await expectAccepting(path);
});

test("T-W10 a socket in use is left alone, and the refusal names the process that holds it", async () => {
  await using folder = await directory();
  const path = join(folder.path, "api.sock");
  await using holder = await listening(path);
  const fault = await faultFrom(listening(path));
  expect(fault).toMatchObject(refusal("precondition", "socket-in-use"));
  expect(fault.message).toBe(`the socket "${holder.path}" is in use by process ${process.pid}`);
  await expectAccepting(path);
});

test("T-W10 of several that take over one stale socket at once exactly one gets it", async () => {
  for (let round = 0; round < 10; round++) {
    await using folder = await directory();
    const path = join(folder.path, "api.sock");
    await leaveStaleSocket(path);
    const results = await Promise.allSettled(Array.from({ length: 4 }, () => listening(path)));
    const winners = results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
    const losers = results.flatMap((result) => (result.status === "rejected" ? [result.reason as unknown] : []));
    expect(winners).toHaveLength(1);
    expect(losers.every((reason) => isFault(reason, "precondition") && reason.code === "socket-in-use")).toBe(true);
    await expectAccepting(path);
    for (const winner of winners) await winner[Symbol.asyncDispose]();
  }
});

test("T-W10 what is in the way and no socket stays as it is", async () => {
  await using folder = await directory();
  const file = join(folder.path, "file");
  await writeFile(file, "precious");
  const link = join(folder.path, "link");
  await symlink(file, link);
  for (const path of [file, link]) {
    expect(await faultFrom(listening(path))).toMatchObject(refusal("precondition", "socket-path-taken"));
  }
  expect(await readFile(file, "utf8")).toBe("precious");
  expect((await lstat(link)).isSymbolicLink()).toBe(true);
});

test("T-W10 a link to a live socket is not followed", async () => {
  await using folder = await directory();
  await using holder = await listening(join(folder.path, "other.sock"));
  const link = join(folder.path, "api.sock");
  await symlink(holder.path, link);
  expect(await faultFrom(listening(link))).toMatchObject(refusal("precondition", "socket-path-taken"));
  await expectAccepting(holder.path);
});

test.skipIf(!isRoot)("T-W10 a folder or link on the way that another user owns is refused", async () => {
  await using folder = await directory();
  const foreign = join(folder.path, "foreign");
  await mkdir(foreign);
  await chown(foreign, 12345, 12345);
  const real = join(folder.path, "real");
  await mkdir(real);
  const link = join(folder.path, "link");
  await symlink(real, link);
  await lchown(link, 12345, 12345);
  for (const path of [join(foreign, "api.sock"), join(foreign, "deeper", "api.sock"), join(link, "api.sock")]) {
    const fault = await faultFrom(listening(path));
    expect(fault).toMatchObject(refusal("precondition", "socket-directory-owner"));
    expect(fault.message).toMatch(/belongs to uid 12345$/);
  }
  await using fine = await listening(join(real, "api.sock"));
  await expectAccepting(fine.path);
});

test.skipIf(!isRoot)("T-W10 a link into what another user can move away is refused", async () => {
  await using folder = await directory();
  const foreign = join(folder.path, "foreign");
  await mkdir(join(foreign, "ours"), { recursive: true });
  await chown(foreign, 12345, 12345);
  const link = join(folder.path, "link");
  await symlink(join(foreign, "ours"), link);
  const fault = await faultFrom(listening(join(link, "api.sock")));
  expect(fault).toMatchObject(refusal("precondition", "socket-directory-owner"));
});

test.each([
  { mode: 0o777, warnings: ["Anybody on this machine can put another socket in the place of this one"] },
  { mode: 0o1777, warnings: [] },
])("T-W10 a folder of mode $mode, in which everybody could replace the socket or not", async ({ mode, warnings }) => {
  await using folder = await directory();
  const open = join(folder.path, "open");
  await mkdir(open);
  await chmod(open, mode);
  const log = new RecordingLog();
  await using server = await listening(join(open, "api.sock"), undefined, log);
  await expectAccepting(server.path);
  expect(log.lines.map(({ message }) => message)).toEqual(warnings);
});

test("T-W10 closing removes the socket, but never that of a successor", async () => {
  await using folder = await directory();
  const path = join(folder.path, "api.sock");
  const first = await listening(path);
  await first[Symbol.asyncDispose]();
  expect(await sockets(folder.path)).toEqual([]);
  const second = await listening(path);
  await rm(path);
  await using third = await listening(path);
  await second[Symbol.asyncDispose]();
  expect(await sockets(folder.path)).toEqual(["api.sock"]);
  await expectAccepting(third.path);
});

test("WEP-14 a path of 107 bytes works and one of 108 is refused for its length", async () => {
  await using folder = await directory();
  const longest = join(folder.path, "s".repeat(107 - folder.path.length - 1));
  await using server = await listening(longest);
  await expectAccepting(server.path);
  expect(await faultFrom(listening(`${longest}x`))).toMatchObject(refusal("invalid", "socket-path-too-long"));
});

test("missing folders are made, and what the system refuses is explained", async () => {
  await using folder = await directory();
  const before = process.umask(0o077);
  await using server = await listening(join(folder.path, "a", "b", "api.sock"));
  process.umask(before);
  await expectAccepting(server.path);
  expect((await lstat(join(folder.path, "a"))).mode & 0o777).toBe(0o755);
  await writeFile(join(folder.path, "file"), "");
  const fault = await faultFrom(listening(join(folder.path, "file", "api.sock")));
  expect(fault).toMatchObject(refusal("precondition", "listen-failed"));
  expect(fault.message).toMatch(/^could not listen on "unix:.*": E(EXIST|NOTDIR)/);
});

async function directory(): Promise<{ readonly path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), "sock-"));
  await chmod(path, 0o755);
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

async function listening(
  path: string,
  mode = 0o777,
  log = new RecordingLog(),
): Promise<{ readonly path: string } & AsyncDisposable> {
  const server = createServer((socket) => socket.on("error", () => {}).end("hello"));
  const remove = await listenAt(server, { path, mode }, { clock: systemClock, log });
  return {
    path,
    async [Symbol.asyncDispose]() {
      remove();
      await new Promise((done) => server.close(done));
    },
  };
}

async function expectAccepting(path: string): Promise<void> {
  const socket = connect(path);
  const [greeting] = (await once(socket, "data")) as [Buffer];
  expect(greeting.toString()).toBe("hello");
  socket.destroy();
}

/** As a killed process leaves it. */
async function leaveStaleSocket(path: string): Promise<void> {
  const script =
    "require('node:net').createServer().listen(process.argv[1], () => process.kill(process.pid, 'SIGKILL'))";
  await once(spawn(process.execPath, ["-e", script, path]), "exit");
  expect((await lstat(path)).isSocket()).toBe(true);
}

async function sockets(folder: string): Promise<readonly string[]> {
  return (await readdir(folder)).filter((name) => !name.endsWith(".lock"));
}

interface SeenMode {
  readonly name: string;
  readonly mode: number;
}

/** Another process that looks at the folder without pause and notes each name and mode of a socket it comes across. */
async function watchModes(folder: string): Promise<{ seen(): Promise<readonly SeenMode[]> } & AsyncDisposable> {
  const child = spawn(process.execPath, ["-e", LOOK_WITHOUT_PAUSE, folder], { stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(child, "exit");
  await once(child.stdout, "data");
  return {
    async seen() {
      const chunks: Buffer[] = [];
      child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
      child.stdin.end();
      await exited;
      return JSON.parse(Buffer.concat(chunks).toString()) as readonly SeenMode[];
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await exited;
    },
  };
}

const LOOK_WITHOUT_PAUSE = `
const { lstatSync, readdirSync } = require("node:fs");
const seen = new Map();
let done = false;
process.stdin.resume().on("end", () => { done = true; });
process.stdout.write("ready");
const look = () => {
  for (let i = 0; i < 200; i++) for (const name of readdirSync(process.argv[1])) {
    try {
      const stat = lstatSync(process.argv[1] + "/" + name);
      if (stat.isSocket()) seen.set(name + stat.mode, { name, mode: stat.mode & 0o777 });
    } catch {}
  }
  if (done) process.stdout.write(JSON.stringify([...seen.values()]));
  else setImmediate(look);
};
look();`;
