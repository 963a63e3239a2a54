import { realpathSync, statSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { openExecutable, readCallerStatus, seesPrograms, verifyCaller } from "../../../agent/workload/process.ts";
import { type PeerProcess, parseIds, statusNumbers } from "../../../src/rpc/peer-credentials.ts";
import { eventually } from "../../support/eventually.ts";
import { isRoot, NOBODY, PinningSocket, startWorkload, type Workload } from "../../support/workload.ts";

const CHANGED = { kind: "unauthenticated", code: "caller-changed" };

/** A connected workload and how the agent's side sees it. */
async function connected(
  orders: Partial<Parameters<typeof startWorkload>[0]> = {},
): Promise<{ readonly workload: Workload; readonly peer: PeerProcess } & AsyncDisposable> {
  await using scope = new AsyncDisposableStack();
  const socket = scope.use(await PinningSocket.open());
  const workload = scope.use(await startWorkload({ socket: socket.path, ...orders }));
  const peer = await socket.next();
  const held = scope.move();
  return { workload, peer, [Symbol.asyncDispose]: () => held.disposeAsync() };
}

describe("T-W1 the caller is still the process that connected", () => {
  test("a process that only connected is", async () => {
    await using caller = await connected();
    expect(caller.peer.pid).toBe(caller.workload.pid);
    await expect(verifyCaller(caller.peer)).resolves.toBeUndefined();
  });

  test("one that has exited is not", async () => {
    await using caller = await connected();
    await caller.workload.order({ do: "exit" });
    await expect(verifyCaller(caller.peer)).rejects.toMatchObject(CHANGED);
  });

  test("one that runs another program since is not, though its pid and start time stay", async () => {
    await using caller = await connected();
    await caller.workload.order({ do: "exec", program: "/bin/sleep", args: ["60"] });
    expect(caller.peer.isAlive()).toBe(true);
    await eventually("the other program runs", async () => {
      await expect(verifyCaller(caller.peer)).rejects.toMatchObject({ ...CHANGED, message: /runs another program/ });
      return true;
    });
    await expect(openExecutable(caller.peer)).rejects.toMatchObject(CHANGED);
  });

  test.skipIf(!isRoot)("one that became another user is not", async () => {
    await using caller = await connected();
    await caller.workload.order({ do: "become", uid: NOBODY });
    await expect(verifyCaller(caller.peer)).rejects.toMatchObject({ ...CHANGED, message: /uid 65534 does not match/ });
  });

  test("one whose PID is not visible here is not", async () => {
    await using caller = await connected();
    await expect(verifyCaller({ ...caller.peer, pid: 0 })).rejects.toMatchObject({
      ...CHANGED,
      message: /not visible/,
    });
  });

  test("one whose connection has closed is not", async () => {
    const caller = await connected();
    await caller[Symbol.asyncDispose]();
    await expect(verifyCaller(caller.peer)).rejects.toMatchObject(CHANGED);
  });

  test("a reused PID is not: the id now means another process, even one like it in every way", async () => {
    await using caller = await connected();
    await using other = await connected();
    await caller.workload.order({ do: "exit" });
    const reused: PeerProcess = { ...caller.peer, pid: other.peer.pid };
    await expect(verifyCaller(reused)).rejects.toMatchObject({ ...CHANGED, message: /means another process now/ });
    const { startTime, image } = other.peer;
    const alike: PeerProcess = { ...reused, startTime, image };
    await expect(verifyCaller(alike)).rejects.toMatchObject({ ...CHANGED, message: /exited/ });
  });

  test("one that runs the same program file again is not", async () => {
    await using caller = await connected();
    const args = ["-e", "setTimeout(() => {}, 60_000)"];
    await caller.workload.order({ do: "exec", program: process.execPath, args });
    await eventually("the program runs again", async () => {
      await expect(verifyCaller(caller.peer)).rejects.toMatchObject({ ...CHANGED, message: /runs another program/ });
      return true;
    });
    const { dev, ino } = statSync(`/proc/${caller.peer.pid}/exe`, { bigint: true });
    expect(caller.peer.executable).toEqual({ device: dev, inode: ino });
  });

  test.skipIf(!isRoot)("one whose real user is another one now is not", async () => {
    await using caller = await connected();
    const changed: PeerProcess = { ...caller.peer, realUid: NOBODY };
    await expect(verifyCaller(changed)).rejects.toMatchObject({ ...CHANGED, message: /real uid 0 does not match/ });
  });
});

describe("facts about a caller", () => {
  test.skipIf(!isRoot)("are its effective ids and supplementary groups", async () => {
    await using caller = await connected({ uid: 1234, gid: 2345, groups: [3456, 4567] });
    const status = await readCallerStatus(caller.peer);
    expect(status).toEqual({ uid: 1234, gid: 2345, supplementaryGids: [3456, 4567] });
    expect(caller.peer).toMatchObject({ uid: 1234, gid: 2345 });
  });

  test("the program is named as the kernel names it", async () => {
    await using caller = await connected();
    await using executable = await openExecutable(caller.peer);
    expect(executable.path).toBe(realpathSync(process.execPath));
  });

  test("a status text gives the first two of four ids, and the groups", () => {
    const text = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n";
    expect(parseIds(text)).toEqual({ realUid: 1, uid: 2, realGid: 5, gid: 6 });
    expect(statusNumbers(text, "Groups")).toEqual([9, 10]);
  });

  test.each([
    { what: "all of root's rights", caps: "000001ffffffffff", sees: true },
    { what: "that right alone", caps: "0000000000080000", sees: true },
    { what: "all but that right", caps: "000001fffff7ffff", sees: false },
    { what: "no rights", caps: "0000000000000000", sees: false },
  ])("the programs of other users are seen with $what: $sees", ({ caps, sees }) => {
    expect(seesPrograms(`CapPrm:\t000001ffffffffff\nCapEff:\t${caps}\nCapBnd:\t000001ffffffffff\n`)).toBe(sees);
    expect(seesPrograms("Name:\tx\n")).toBe(false);
  });

  test.each([
    { what: "no uid line", text: "Gid:\t1\t1\t1\t1\nGroups:\t\n" },
    { what: "no groups line", text: "Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\n" },
    { what: "an empty uid line", text: "Uid:\t\nGid:\t1\t1\t1\t1\nGroups:\t\n" },
    { what: "a uid line only inside the name", text: "Name:\tx\\nUid:\t0\t0\t0\t0\nGid:\t1\t1\t1\t1\nGroups:\t\n" },
  ])("a status text with $what is refused", ({ text }) => {
    expect(() => [parseIds(text), statusNumbers(text, "Groups")]).toThrow(/process status has no/);
  });
});
