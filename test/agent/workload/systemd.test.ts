import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { decodeMessage, encodeMessage, messageLength } from "../../../agent/workload/dbus-wire.ts";
import { SystemdAttestor } from "../../../agent/workload/systemd.ts";
import type { PeerProcess } from "../../../src/rpc/peer-credentials.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Cgroup, hasCgroups } from "../../support/cgroup.ts";
import { faultOf } from "../../support/faults.ts";
import { type MessageBus, startBus, startSystemd } from "../../support/systemd.ts";
import { PinningSocket, startWorkload, type Workload } from "../../support/workload.ts";

const UNIT = "steeple-test@1.service";
const FRAGMENT = "/etc/systemd/system/steeple-test@.service";
const stop = new AbortController();
const scope = new AsyncDisposableStack();
let bus: MessageBus;
let socket: PinningSocket;
let inUnit: { readonly peer: PeerProcess; readonly workload: Workload };
let outside: { readonly peer: PeerProcess };

async function caller(path?: string) {
  const workload = scope.use(await startWorkload({ socket: socket.path }));
  if (path !== undefined) scope.use(new Cgroup(path)).add(workload.pid);
  return { workload, peer: await socket.next() };
}

const canRun =
  hasCgroups && (await promisify(execFile)("dbus-daemon", ["--version"]).catch(() => undefined)) !== undefined;

beforeAll(async () => {
  if (!canRun) return;
  const started = await startBus();
  if (started === undefined) throw new Error("no dbus-daemon");
  bus = scope.use(started);
  socket = scope.use(await PinningSocket.open());
  inUnit = await caller(`system.slice/${UNIT}`);
  outside = await caller();
});
afterAll(async () => {
  stop.abort();
  await scope.disposeAsync();
});

async function valuesOf(attesting: SystemdAttestor, peer: PeerProcess): Promise<readonly string[]> {
  return (await attesting.attest(peer, stop.signal)).map(({ type, value }) => `${type}:${value}`);
}

function attestor(): SystemdAttestor {
  return new SystemdAttestor({ clock: systemClock, signal: stop.signal, address: bus.address });
}

const orders = (knowsPidfds: boolean) => ({ busPath: bus.path, fragments: { [UNIT]: FRAGMENT }, knowsPidfds });

describe.skipIf(!canRun)("systemd selectors", () => {
  test.each([
    { what: "by pidfd", knowsPidfds: true },
    { what: "by pid, where the manager knows no pidfds", knowsPidfds: false },
  ])("id and fragment path, $what", async ({ knowsPidfds }) => {
    await using _manager = await startSystemd(orders(knowsPidfds));
    const attesting = attestor();
    const expected = [`systemd:id:${UNIT}`, `systemd:fragment_path:${FRAGMENT}`];
    const found = await Promise.all(Array.from({ length: 20 }, () => valuesOf(attesting, inUnit.peer)));
    for (const values of found) expect(values).toEqual(expected);
    await expect(attesting.attest(outside.peer, stop.signal)).rejects.toMatchObject({
      kind: "unavailable",
      message: `failed to get unit by pid ${outside.peer.pid}: PID ${outside.peer.pid} does not belong to any loaded unit.`,
    });
  });

  test("a unit without a file has the empty path", async () => {
    await using _manager = await startSystemd({ ...orders(true), fragments: {} });
    expect(await valuesOf(attestor(), inUnit.peer)).toEqual([`systemd:id:${UNIT}`, "systemd:fragment_path:"]);
  });

  test("T-W1 by pidfd a PID says nothing: the process that the descriptor holds counts", async () => {
    await using _manager = await startSystemd(orders(true));
    const forged = { ...inUnit.peer, pid: outside.peer.pid };
    expect(await valuesOf(attestor(), forged)).toContain(`systemd:id:${UNIT}`);
  });

  test("a manager or a bus that is away is a reason, and comes back", async () => {
    const attesting = attestor();
    const refused = { kind: "unavailable", message: /failed to get unit by pid/ };
    await expect(attesting.attest(inUnit.peer, stop.signal)).rejects.toMatchObject(refused);
    await using _manager = await startSystemd(orders(true));
    expect(await valuesOf(attesting, inUnit.peer)).toContain(`systemd:id:${UNIT}`);
    const nowhere = new SystemdAttestor({
      clock: systemClock,
      signal: stop.signal,
      address: "unix:path=/nonexistent/bus",
    });
    await expect(nowhere.attest(inUnit.peer, stop.signal)).rejects.toMatchObject({
      message: /failed to open dbus connection/,
    });
  });

  test("a lost connection is opened again", async () => {
    await using own = await startBus();
    if (own === undefined) throw new Error("no dbus-daemon");
    await using _manager = await startSystemd({ ...orders(true), busPath: own.path });
    const attesting = new SystemdAttestor({ clock: systemClock, signal: stop.signal, address: own.address });
    expect(await valuesOf(attesting, inUnit.peer)).toHaveLength(2);
    await own.stop();
    await expect(attesting.attest(inUnit.peer, stop.signal)).rejects.toMatchObject({ kind: "unavailable" });
  });

  test("the double is manager enough for busctl", async () => {
    await using _manager = await startSystemd(orders(true));
    const target = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
    const args = [`--address=${bus.address}`, "call", ...target, "GetUnitByPID", "u", String(inUnit.peer.pid)];
    const version = await promisify(execFile)("busctl", ["--version"]).catch(() => undefined);
    if (version === undefined) return;
    const { stdout } = await promisify(execFile)("busctl", args);
    expect(stdout.trim()).toBe('o "/org/freedesktop/systemd1/unit/steeple_2dtest_401_2eservice"');
  });
});

describe("D-Bus messages", () => {
  const message = {
    type: 1,
    serial: 7,
    path: "/a/b",
    member: "Get",
    destination: "x.y",
    signature: "su",
    body: ["é", 9],
  };

  test("are read as they were written", () => {
    const bytes = encodeMessage(message);
    expect(messageLength(bytes)).toBe(bytes.length);
    expect(decodeMessage(bytes)).toMatchObject(message);
  });

  test.each([
    { what: "no byte order", change: (bytes: Buffer) => bytes.writeUInt8(0, 0) },
    { what: "a length beyond all bounds", change: (bytes: Buffer) => bytes.writeUInt32LE(0x7fff_ffff, 4) },
  ])("with $what are refused before they are read", ({ change }) => {
    const bytes = encodeMessage(message);
    change(bytes);
    expect(faultOf(() => messageLength(bytes))).toMatchObject({ kind: "unavailable", code: "dbus-malformed" });
  });

  test("of every cut length are refused", () => {
    const bytes = encodeMessage(message);
    for (let length = 16; length < bytes.length; length += 1)
      expect(faultOf(() => decodeMessage(bytes.subarray(0, length)))).toMatchObject({ code: "dbus-malformed" });
  });
});
