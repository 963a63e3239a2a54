import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync } from "node:fs";
import { chmod } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { dialUnix } from "../../../src/rpc/dial.ts";
import { libc } from "../../../src/rpc/libc.ts";
import { type PinningCalls, pinPeer } from "../../../src/rpc/peer-credentials.ts";
import { HealthApi } from "../../../src/rpc/protos.ts";
import { serverStream } from "../../../src/rpc/service.ts";
import { eventually } from "../../support/eventually.ts";
import { refusal } from "../../support/faults.ts";
import { canRun } from "../../support/pid-storm.ts";
import { RawClient } from "../../support/raw-client.ts";
import { startRpc } from "../../support/rpc.ts";
import { isRoot, NOBODY, startWorkload, temporaryDirectory } from "../../support/workload.ts";

const scope = new AsyncDisposableStack();
const accepted: Socket[] = [];
let path: string;

beforeAll(async () => {
  path = join(scope.use(await temporaryDirectory()).path, "pin.sock");
  const server = createServer((socket) => accepted.push(socket.on("error", () => undefined)));
  server.listen({ path, writableAll: true });
  scope.defer(() => void server.close());
  await once(server, "listening");
});
afterAll(() => scope.disposeAsync());

/** A connection that has not been pinned yet. */
async function connection(orders: { readonly uid?: number } = {}) {
  accepted.length = 0;
  const workload = await startWorkload({ socket: path, ...orders });
  const socket = await eventually("the connection", () => accepted[0]);
  return { socket, workload };
}

/** A kernel that does not hand out the pidfd of a peer. */
const older: PinningCalls = {
  ...libc(),
  getsockopt: (fd, option, size) => (option === 77 ? 92 : libc().getsockopt(fd, option, size)),
};

const kernels = [
  { what: "SO_PEERPIDFD", system: libc() },
  { what: "pidfd_open alone, before Linux 6.5", system: older },
];

describe.each(kernels)("T-W1 a peer is pinned when it is accepted, by $what", ({ system }) => {
  test("by pid, effective and real ids, start time, program, and where it lies in memory", async () => {
    const { socket, workload } = await connection();
    await using _ended = workload;
    using peer = pinPeer(socket, system);
    const ids = {
      uid: process.geteuid?.(),
      gid: process.getegid?.(),
      realUid: process.getuid?.(),
      realGid: process.getgid?.(),
    };
    expect(peer).toMatchObject({ pid: workload.pid, ...ids });
    expect(peer.startTime).toMatch(/^[1-9]\d*$/);
    expect(peer.image).toMatch(/^[1-9]\d*:[1-9]\d*$/);
    expect(peer.isAlive()).toBe(true);
    expect(peer.pidfd).toBeGreaterThan(2);
    peer[Symbol.dispose]();
    expect(peer.pidfd).toBeUndefined();
    expect(peer.isAlive()).toBe(false);
  });

  test("one that has exited by then is refused, and no descriptor stays open", async () => {
    const { socket, workload } = await connection();
    await using _ended = workload;
    await workload.order({ do: "exit" });
    const before = readdirSync("/proc/self/fd").length;
    for (let tries = 0; tries < 50; tries += 1) expect(() => pinPeer(socket, system)).toThrow(/gone/);
    expect(readdirSync("/proc/self/fd").length).toBe(before);
  });

  test.skipIf(!isRoot)("one that is another user by then is refused", async () => {
    const { socket, workload } = await connection();
    await using _ended = workload;
    await workload.order({ do: "become", uid: NOBODY });
    expect(() => pinPeer(socket, system)).toThrow(expect.objectContaining(refusal("denied", "peer-changed")));
  });
});

test("T-W1 a PID that means another process after the pidfd was opened is refused", async () => {
  const { socket, workload } = await connection();
  await using _ended = workload;
  const other = await startWorkload({ socket: path });
  await using _other = other;
  // The peer exits, and its PID is given away, between the connection and the look at it.
  const reusing: PinningCalls = { ...older, pidfdOpen: () => libc().pidfdOpen(other.pid), hasExited: libc().hasExited };
  await other.order({ do: "exit" });
  expect(() => pinPeer(socket, reusing)).toThrow(/gone/);
});

/** A server in a pid namespace of its own. */
async function startUnseeing(socket: string, ...more: readonly string[]) {
  const script = new URL("../../support/rpc-server-process.ts", import.meta.url).pathname;
  const namespace = ["--pid", "--fork", "--kill-child", "--mount-proc"];
  const server = spawn("unshare", [...namespace, process.execPath, script, socket, ...more]);
  await once(server.stdout, "data");
  return server;
}

test.skipIf(!isRoot)("T-W1 a caller from a PID namespace that cannot be seen from here is refused", async () => {
  await using folder = await temporaryDirectory();
  const socket = join(folder.path, "api.sock");
  const server = await startUnseeing(socket);
  const client = connect(socket);
  let received = 0;
  client.on("error", () => undefined).on("data", ({ length }) => (received += length));
  client.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
  await new Promise((resolve) => client.once("close", resolve));
  expect(received).toBe(0);
  server.stdin.end();
  const [said] = (await once(server.stdout, "data")) as [Buffer];
  expect(said.toString()).toMatch(/not visible from here/);
  await once(server, "close");
});

test.skipIf(!isRoot)(
  "a socket that is for whoever may open it answers such a caller, as a sidecar is one",
  async () => {
    await using folder = await temporaryDirectory();
    const socket = join(folder.path, "api.sock");
    const server = await startUnseeing(socket, "unseen");
    using channel = dialUnix(socket);
    expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
    server.stdin.end();
    await once(server, "close");
  },
);

test("T-W1 a stream ends when the process that opened it does, though another one holds its connection", async () => {
  await using server = await startRpc({
    health: {
      Watch: serverStream(async function* (_request, call) {
        yield { status: "SERVING" };
        await new Promise((resolve) => call.signal.addEventListener("abort", resolve));
      }),
    },
  });
  await using folder = await temporaryDirectory();
  const relay = join(folder.path, "relay.sock");
  await using workload = await startWorkload({ socket: server.path, relay, handOver: true });
  await using client = new RawClient(relay);
  const call = client.call("/grpc.health.v1.Health/Watch");
  await eventually("the first message", () => call.messages.length > 0);
  expect(server.outcomes).toHaveLength(0);
  await workload.order({ do: "exit" });
  await eventually("the stream has ended", () => server.outcomes.length > 0);
});

const canUnshare = isRoot && (await canRun("unshare", "-Ur", "true"));

test.skipIf(!canUnshare)(
  "T-W1 a server in a user namespace takes nobody whose user has no number there for nobody",
  async () => {
    await using folder = await temporaryDirectory();
    await chmod(folder.path, 0o755);
    const script = fileURLToPath(new URL("../../support/rpc-server-process.ts", import.meta.url));
    const inside = join(folder.path, "inside.sock");
    const child = spawn("unshare", ["-Ur", process.execPath, script, inside]);
    const output = text(child.stdout);
    await eventually("the server listens", () => existsSync(inside));
    const client = `require("node:net").connect(process.argv[1]).on("error", () => 0).on("close", () => process.exit(0))`;
    const stranger = spawn(process.execPath, ["-e", client, inside], { uid: 12345, gid: 12345, cwd: "/" });
    expect(await once(stranger, "exit")).toEqual([0, null]);
    using own = dialUnix(inside);
    expect(await own.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
    child.stdin.end();
    expect(await output).toMatch(/Connection refused: the calling process's user or group has no number here/);
  },
);
