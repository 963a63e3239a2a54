import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { AccountNames } from "../../../agent/workload/accounts.ts";
import { UnixAttestor, type UnixAttestorOptions } from "../../../agent/workload/unix.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { isRoot, PinningSocket, startWorkload, temporaryDirectory } from "../../support/workload.ts";

const PLAIN = { discoverWorkloadPath: false, workloadSizeLimit: 0 };
const program = realpathSync(process.execPath);

function attestor(options: Partial<UnixAttestorOptions>): UnixAttestor {
  return new UnixAttestor({ ...PLAIN, clock: systemClock, signal: new AbortController().signal, ...options });
}

async function selectorsOf(
  orders: Partial<Parameters<typeof startWorkload>[0]>,
  options: Partial<UnixAttestorOptions> = {},
): Promise<readonly string[]> {
  await using socket = await PinningSocket.open();
  await using _workload = await startWorkload({ socket: socket.path, ...orders });
  const selectors = await attestor(options).attest(await socket.next());
  return selectors.map(({ type, value }) => `${type}:${value}`);
}

async function withAccounts<T>(use: (accounts: AccountNames) => Promise<T>): Promise<T> {
  await using folder = await temporaryDirectory();
  const passwd = join(folder.path, "passwd");
  const group = join(folder.path, "group");
  writeFileSync(passwd, "web:x:1234:2345::/:/bin/sh\n");
  writeFileSync(group, "staff:x:2345:\naudio:x:3456:web\n");
  return await use(new AccountNames({ passwd, group }));
}

describe("unix selectors", () => {
  test.skipIf(!isRoot)("are ids and the names that exist, without the program unless asked for", async () => {
    const selectors = await withAccounts((accounts) =>
      selectorsOf({ uid: 1234, gid: 2345, groups: [3456, 4567] }, { accounts }),
    );
    expect(selectors).toEqual([
      "unix:uid:1234",
      "unix:user:web",
      "unix:gid:2345",
      "unix:group:staff",
      "unix:supplementary_gid:3456",
      "unix:supplementary_group:audio",
      "unix:supplementary_gid:4567",
    ]);
  });

  test("what takes no look at the program is said at once, and nothing in its place where it does", async () => {
    await using socket = await PinningSocket.open();
    await using _workload = await startWorkload({ socket: socket.path });
    const peer = await socket.next();
    expect(attestor({}).attestNow(peer)).toEqual(await attestor({}).attest(peer));
    expect(attestor({ discoverWorkloadPath: true }).attestNow(peer)).toBeUndefined();
    expect(() => attestor({}).attestNow({ ...peer, uid: peer.uid + 1 })).toThrow("does not match original caller");
  });

  test("path and sha256 are added with discover_workload_path", async () => {
    const selectors = await selectorsOf({}, { discoverWorkloadPath: true });
    const digest = createHash("sha256").update(readFileSync(program)).digest("hex");
    expect(selectors.slice(-2)).toEqual([`unix:path:${program}`, `unix:sha256:${digest}`]);
  });

  test("a size limit below zero leaves the digest out", async () => {
    const selectors = await selectorsOf({}, { discoverWorkloadPath: true, workloadSizeLimit: -1 });
    expect(selectors.at(-1)).toBe(`unix:path:${program}`);
  });

  test("T-W6 a program over the size limit fails the attestor instead of going without its digest", async () => {
    const selectors = selectorsOf({}, { discoverWorkloadPath: true, workloadSizeLimit: 1024 });
    await expect(selectors).rejects.toMatchObject({
      code: "digest-size",
      message: /exceeds size limit \(\d+ > 1024\)/,
    });
  });

  test("T-W6 a program replaced while it runs is the one that runs, not the one of its name", async () => {
    await using folder = await temporaryDirectory();
    const copy = join(folder.path, "node");
    copyFileSync(program, copy);
    chmodSync(copy, 0o755);
    await using socket = await PinningSocket.open();
    await using _workload = await startWorkload({ socket: socket.path }, copy);
    rmSync(copy);
    writeFileSync(copy, "#!/bin/sh\n");
    const selectors = await attestor({ discoverWorkloadPath: true }).attest(await socket.next());
    const values = selectors.map(({ value }) => value);
    expect(values).toContain(`path:${copy} (deleted)`);
    expect(values).toContain(`sha256:${createHash("sha256").update(readFileSync(program)).digest("hex")}`);
  });

  test("the root of /proc can stand elsewhere, and nothing is made up when it is empty", async () => {
    await using folder = await temporaryDirectory();
    await expect(selectorsOf({}, { procRoot: folder.path })).rejects.toMatchObject({ code: "caller-changed" });
  });
});
