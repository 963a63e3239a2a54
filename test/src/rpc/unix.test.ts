import { execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { connect as http2Connect } from "node:http2";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { connect as tlsConnect } from "node:tls";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { dialUnix } from "../../../src/rpc/dial.ts";
import { HealthApi, WorkloadApi } from "../../../src/rpc/protos.ts";
import { serverStream, service, unary } from "../../../src/rpc/service.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { eventually } from "../../support/eventually.ts";
import { rawGrpcCall } from "../../support/http2-call.ts";
import { openDescriptors, startRpc, type TestRpcServer } from "../../support/rpc.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const run = promisify(execFile);
const isRoot = process.getuid?.() === 0;

test("WEP-03 a gRPC call made by hand over plain HTTP/2 gets its stream of messages", async () => {
  await using server = await startRpc({ services: [workloadApi()] });
  const { headers, trailers, messages } = await rawGrpcCall(server.path, "/SpiffeWorkloadAPI/FetchX509SVID");
  expect(headers).toMatchObject({ ":status": 200, "content-type": "application/grpc+proto" });
  expect(messages.map((message) => message.toString("latin1"))).toEqual([
    "\x0a\x0a\x0a\x08spiffe:1",
    "\x0a\x0a\x0a\x08spiffe:2",
  ]);
  expect(trailers["grpc-status"]).toBe("0");
});

test("WEP-10 no TLS is needed, and a TLS client gets an error while others are served", async () => {
  await using server = await startRpc();
  const tls = tlsConnect({ socket: connect(server.path), rejectUnauthorized: false, ALPNProtocols: ["h2"] });
  const [error] = (await once(tls, "error")) as [NodeJS.ErrnoException];
  expect(error.code).toMatch(/ECONNRESET|ERR_SSL/);
  await expectServing(server);
  expect(server.calls.map(({ caller }) => caller.transport)).toEqual(["unix"]);
});

test.each([
  {
    what: "an HTTP/1.1 request that a web client was led to send",
    bytes:
      "POST /SpiffeWorkloadAPI/FetchX509SVID HTTP/1.1\r\nHost: a\r\nworkload.spiffe.io: true\r\ncontent-type: application/grpc\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0",
  },
  {
    what: "an HTTP/1.1 upgrade to h2c",
    bytes:
      "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
  },
  { what: "random bytes", bytes: "\x8f\x01\xfe\x00garbage\xff\xff" },
  { what: "an oversized first frame", bytes: `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x04\x00\x00\x00\x00\x00` },
])("T-W5 T-X9 $what is cut off and reaches no handler", async ({ bytes }) => {
  await using server = await startRpc();
  const socket = connect(server.path);
  socket.write(Buffer.from(bytes, "latin1"));
  socket.on("error", () => {});
  const received = await readAll(socket);
  expect(received.toString("latin1")).not.toMatch(/^HTTP\/1\.1 [12]/);
  expect(server.calls).toEqual([]);
  await expectServing(server);
});

test("T-X9 clients that stall, vanish at once, reset streams or send junk leave the server serving", async () => {
  await using server = await startRpc();
  const stalled = await Promise.all(Array.from({ length: 50 }, () => connected(server.path)));
  for (let i = 0; i < 200; i++)
    connect(server.path)
      .on("error", () => {})
      .destroy();
  await resetStreams(server.path, 300);
  const junk = Buffer.from(Array.from({ length: 5000 }, (_, i) => (i * 7919) % 251));
  for (let at = 0; at < junk.length; at += 100)
    (await connected(server.path)).on("error", () => {}).end(junk.subarray(at));
  await expectServing(server);
  for (const socket of stalled) socket.destroy();
});

test.skipIf(!isRoot)("T-W1 the caller is the process and user at the other end, not ours", async () => {
  await using server = await startRpc();
  await run("chmod", ["o+x", server.path.slice(0, -"/api.sock".length)]);
  const { stdout } = await run(process.execPath, ["-e", CALL_AND_PRINT_PID, server.path], { uid: 65534, gid: 65534 });
  const [call] = server.calls;
  expect({ pid: call?.caller.process?.pid, uid: call?.caller.process?.uid, gid: call?.caller.process?.gid }).toEqual({
    pid: Number(stdout),
    uid: 65534,
    gid: 65534,
  });
});

test("T-W1 a connection whose process is gone when it is accepted is refused, whoever holds it now", async () => {
  await using server = await startRpc();
  // Runs to its end before the server gets to accept; the shell keeps the socket open.
  const heir = Number(execFileSync(process.execPath, ["-e", CONNECT_AND_HAND_ON, server.path]).toString());
  try {
    await eventually("a refusal", () => server.log.lines.find(({ message }) => message === "Connection refused"));
    expect(server.log.lines.map(({ fields }) => fields["error"])).toMatchObject([
      { kind: "denied", code: "peer-gone" },
    ]);
    expect(() => process.kill(heir, 0)).not.toThrow();
  } finally {
    process.kill(heir, "SIGKILL");
  }
});

test("T-W1 a caller that has exited is refused while its parent has not yet buried it", async () => {
  await using server = await startRpc();
  await using folder = await temporaryDirectory();
  const note = join(folder.path, "pid");
  // The shell becomes a program that buries nobody.
  const parent = spawn("sh", [
    "-c",
    '"$0" -e "$1" "$2" "$3" & exec sleep 60',
    process.execPath,
    CONNECT_NOTE_AND_EXIT,
    server.path,
    note,
  ]);
  try {
    waitForZombie(note);
    await eventually("a refusal", () => server.log.lines.find(({ message }) => message === "Connection refused"));
    expect(server.log.lines.map(({ fields }) => fields["error"])).toMatchObject([
      { kind: "denied", code: "peer-gone" },
    ]);
  } finally {
    parent.kill("SIGKILL");
  }
});

test("T-W1 the process is alive while it is connected and dead for good once it is not", async () => {
  await using server = await startRpc();
  using channel = dialUnix(server.path);
  await channel.client(HealthApi).Check({});
  const peer = server.calls[0]?.caller.process;
  expect(peer?.isAlive()).toBe(true);
  expect(peer?.startTime).toMatch(/^\d+$/);
  expect(peer?.executable?.inode).toBeGreaterThan(0n);
  channel[Symbol.dispose]();
  await eventually("the end of the connection", () => peer?.isAlive() === false);
});

test("T-W2 connections that fail in any way leave no descriptor behind", async () => {
  const refusing = async (): Promise<undefined> => {
    throw new Fault("denied", "no identity issued");
  };
  await using server = await startRpc({ admit: refusing, maxConnectionsPerUser: 40 });
  await failEachWay(server.path);
  const before = await openDescriptors();
  for (let round = 0; round < 20; round++) await failEachWay(server.path);
  await eventually("all descriptors closed", async () => (await openDescriptors()) <= before);
  expect(server.outcomes.every(({ code }) => code === "PermissionDenied")).toBe(true);
  expect(server.outcomes.length).toBeGreaterThan(20);
});

test("T-X9 one user cannot take up all connections, and gets them back when closing some", async () => {
  await using server = await startRpc({ maxConnectionsPerUser: 3 });
  const held = await Promise.all(Array.from({ length: 3 }, () => connected(server.path)));
  const fourth = connect(server.path).on("error", () => {});
  expect((await readAll(fourth)).length).toBe(0);
  expect(server.log.lines.map(({ fields }) => fields["error"])).toMatchObject([{ kind: "exhausted" }]);
  held[0]?.destroy();
  await eventually("a free place", () => expectServing(server).then(() => true));
  for (const socket of held) socket.destroy();
});

test("T-W10 connections of one control group are counted by themselves", async () => {
  await using server = await startRpc({ maxConnectionsPerCgroup: 2 });
  const held = await Promise.all(Array.from({ length: 2 }, () => connected(server.path)));
  const third = connect(server.path).on("error", () => {});
  expect((await readAll(third)).length).toBe(0);
  expect(server.log.lines.map(({ fields }) => fields["error"])).toMatchObject([
    { kind: "exhausted", message: `the control group of process ${process.pid} has too many connections` },
  ]);
  held[0]?.destroy();
  await eventually("a free place", () => expectServing(server).then(() => true));
  for (const socket of held) socket.destroy();
});

test.each([
  { who: "user", limit: { maxCallsPerUser: 5 }, message: /^uid \d+ has too many calls open$/ },
  { who: "control group", limit: { maxCallsPerCgroup: 5 }, message: /^the control group of process \d+ has too many/ },
])(
  "T-X9 one $who has so many calls open, over however many connections, and more once some have ended",
  async (row) => {
    await using server = await startRpc({ ...row.limit, health: { Watch: serverStream(untilLeft) } });
    const channels = [dialUnix(server.path), dialUnix(server.path)];
    const leave = new AbortController();
    const calls = Array.from({ length: 6 }, async (_, at) => {
      for await (const { status } of (channels[at % 2] ?? dialUnix(""))
        .client(HealthApi)
        .Watch({}, { signal: leave.signal }))
        expect(status).toBe("SERVING");
    });
    const [refused, ...others] = [Promise.race(calls), ...calls];
    await expect(refused).rejects.toMatchObject({ kind: "exhausted", code: "too-many-calls", message: row.message });
    leave.abort();
    await Promise.allSettled(others);
    await eventually("a free place", () => expectServing(server).then(() => true));
    for (const channel of channels) channel[Symbol.dispose]();
  },
);

test("T-X9 a server that runs out of descriptors goes on accepting once there are some", async () => {
  await using folder = await temporaryDirectory();
  const path = join(folder.path, "api.sock");
  const script = fileURLToPath(new URL("../../support/rpc-server-process.ts", import.meta.url));
  const child = spawn("sh", ["-c", 'ulimit -n 100 && exec "$0" "$@"', process.execPath, script, path]);
  const exited = once(child, "exit");
  await once(child.stdout, "data");
  const many = await Promise.all(Array.from({ length: 150 }, () => connected(path)));
  for (const socket of many) socket.on("error", () => {}).destroy();
  using channel = dialUnix(path, { backoff: { firstMs: 50, maxMs: 100 } });
  await eventually("an answer", async () => (await channel.client(HealthApi).Check({})).status === "SERVING");
  child.stdin.end();
  expect(await exited).toEqual([0, null]);
});

/** Says that it serves, and goes on for as long as the client stays. */
async function* untilLeft(_: object, { signal }: { readonly signal: AbortSignal }) {
  yield { status: "SERVING" as const };
  await once(signal, "abort");
}

function workloadApi() {
  const refused = (): AsyncIterable<never> => {
    throw new Fault("unimplemented", "not part of this test");
  };
  const refusedOnce = unary(async (): Promise<never> => {
    throw new Fault("unimplemented", "not part of this test");
  });
  return service(WorkloadApi, {
    FetchX509SVID: serverStream(async function* () {
      for (const turn of [1, 2]) yield { svids: [{ spiffe_id: `spiffe:${turn}` }] };
    }),
    FetchX509Bundles: serverStream(refused),
    FetchJWTSVID: refusedOnce,
    FetchJWTBundles: serverStream(refused),
    ValidateJWTSVID: refusedOnce,
    FetchWITSVID: serverStream(refused),
    FetchWITBundles: serverStream(refused),
  });
}

async function expectServing({ path }: TestRpcServer): Promise<void> {
  using channel = dialUnix(path);
  expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
}

async function connected(path: string): Promise<Socket> {
  const socket = connect(path);
  await once(socket, "connect");
  return socket;
}

async function readAll(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(socket, "close");
  return Buffer.concat(chunks);
}

async function resetStreams(path: string, count: number): Promise<void> {
  const session = http2Connect("http://localhost", { createConnection: () => connect(path) });
  session.on("error", () => {});
  for (let i = 0; i < count && !session.destroyed; i++) {
    const stream = session.request({
      ":method": "POST",
      ":path": "/grpc.health.v1.Health/Watch",
      "content-type": "application/grpc",
    });
    stream.on("error", () => {});
    stream.close();
  }
  await new Promise<void>((done) => (session.destroyed ? done() : session.close(done)));
}

async function failEachWay(path: string): Promise<void> {
  connect(path)
    .on("error", () => {})
    .destroy();
  (await connected(path))
    .on("error", () => {})
    .resume()
    .end("garbage");
  const tls = tlsConnect({ socket: connect(path), rejectUnauthorized: false });
  await once(tls, "error");
  await rawGrpcCall(path, "/grpc.health.v1.Health/Check");
  execFileSync(process.execPath, ["-e", CONNECT_AND_EXIT, path]);
  const many = await Promise.all(Array.from({ length: 45 }, () => connected(path)));
  for (const socket of many) socket.on("error", () => {}).destroy();
  await Promise.all(many.map((socket) => socket.closed || once(socket, "close")));
}

const CONNECT_NOTE_AND_EXIT = `
require("node:net").connect(process.argv[1], () => {
  require("node:fs").writeFileSync(process.argv[2], process.pid + "\\n");
  process.exit(0);
});`;

/** Waits, without letting the server accept, until every thread of the process has ended. */
function waitForZombie(note: string): void {
  const still = new Int32Array(new SharedArrayBuffer(4));
  for (let turn = 0; turn < 2000; turn++) {
    const pid = existsSync(note) ? readFileSync(note, "utf8").match(/^(\d+)\n/)?.[1] : undefined;
    if (pid !== undefined && isZombie(pid)) return;
    Atomics.wait(still, 0, 0, 10);
  }
  throw new Error("the process did not become a zombie");
}

function isZombie(pid: string): boolean {
  const threads = readdirSync(`/proc/${pid}/task`).length;
  return threads === 1 && /\) Z /.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
}

const CONNECT_AND_EXIT = `require("node:net").connect(process.argv[1], () => process.exit(0))`;

/** The socket becomes the standard input of a sleeping process, whose pid is printed. */
const CONNECT_AND_HAND_ON = `
const socket = require("node:net").connect(process.argv[1], () => {
  const heir = require("node:child_process").spawn("sleep", ["60"], { stdio: [socket, "ignore", "ignore"], detached: true });
  process.stdout.write(String(heir.pid), () => process.exit(0));
});`;

const CALL_AND_PRINT_PID = `
const { connect } = require("node:net");
const session = require("node:http2").connect("http://localhost", { createConnection: () => connect(process.argv[1]) });
const stream = session.request({ ":method": "POST", ":path": "/grpc.health.v1.Health/Check", "content-type": "application/grpc", te: "trailers" });
stream.end(Buffer.alloc(5));
stream.resume().on("end", () => { process.stdout.write(String(process.pid)); session.close(); });`;

test("T-W1 callers that are connected at once, many times each, are never taken for one another", async () => {
  const pids = new Set<number | undefined>();
  await using server = await startRpc({
    health: {
      Check: unary(async ({ service: claimed }, { caller }) => {
        await new Promise(setImmediate);
        pids.add(caller.process?.pid);
        return { status: claimed === String(caller.process?.pid) ? "SERVING" : "NOT_SERVING" };
      }),
    },
  });
  const script = fileURLToPath(new URL("../../support/pid-caller-process.ts", import.meta.url));
  const callers = Array.from({ length: 6 }, () => run(process.execPath, [script, server.path]));
  expect((await Promise.all(callers)).map(({ stdout }) => stdout)).toEqual(callers.map(() => "[]"));
  expect(pids.size).toBe(callers.length);
});
