/**
 * The server that `pid-storm.pl` attacks: it names each caller by the real attestor, and by a naive one that looks up
 * the PID when it is asked. Says "ready" on descriptor 3, and prints what came of it when its input ends.
 */
import { writeSync } from "node:fs";
import { readFile, readlink } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { WorkloadAttestor } from "../../agent/workload/attest.ts";
import { UnixAttestor } from "../../agent/workload/unix.ts";
import { libc } from "../../src/rpc/libc.ts";
import { descriptorOf, type PeerProcess, parseIds, pinPeer } from "../../src/rpc/peer-credentials.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { formatSelector } from "../../src/spiffe/selector.ts";
import type { StormResult } from "./pid-storm.ts";
import { RecordingLog } from "./recording-log.ts";

const SO_PEERCRED = 17;
const READY = 3;
const VICTIM = 1002;
const VICTIM_PROGRAM = /\/(sleep|coreutils|busybox)$/;
/** Longer than the attacker needs to make the PID mean another process. */
const STALL_MS = 30;

const never = new AbortController().signal;
const unix = new UnixAttestor({ discoverWorkloadPath: true, workloadSizeLimit: -1, clock: systemClock, signal: never });
const attestor = new WorkloadAttestor({ attestors: [unix], clock: systemClock, log: new RecordingLog() });
const result: StormResult = { callers: 0, wrong: 0, wrongByNaive: 0, refused: 0, genuine: 0, genuineRefused: 0 };

interface Named {
  readonly uid: number;
  readonly program: string;
}

function isVictim({ uid, program }: Named): boolean {
  return uid === VICTIM || VICTIM_PROGRAM.test(program);
}

/** Looks up whatever process has the PID at the moment, as an attestor without a pidfd would. */
async function nameNaively(pid: number): Promise<Named | undefined> {
  try {
    const { uid } = parseIds(await readFile(`/proc/${pid}/status`, "latin1"));
    return { uid, program: await readlink(`/proc/${pid}/exe`) };
  } catch {
    return undefined;
  }
}

async function nameReally(peer: PeerProcess): Promise<Named | undefined> {
  try {
    const texts = (await attestor.attest(peer, never)).map(formatSelector);
    const after = (prefix: string): string => texts.find((text) => text.startsWith(prefix))?.slice(prefix.length) ?? "";
    return { uid: Number(after("unix:uid:")), program: after("unix:path:") };
  } catch {
    return undefined;
  }
}

function pin(socket: Socket): (PeerProcess & Disposable) | undefined {
  try {
    return pinPeer(socket);
  } catch {
    return undefined;
  }
}

function accept(socket: Socket): void {
  socket.on("error", () => socket.destroy());
  const credentials = libc().getsockopt(descriptorOf(socket), SO_PEERCRED, 12);
  if (typeof credentials === "number") throw new Error("no credentials");
  const peer = pin(socket);
  socket.once("close", () => peer?.[Symbol.dispose]());
  socket.write("k");
  socket.once("data", (data) => {
    if (data.toString() === "s") Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, STALL_MS);
    else void judge(socket, peer, { pid: credentials.readInt32LE(0), uid: credentials.readUInt32LE(4) });
  });
}

async function judge(
  socket: Socket,
  peer: PeerProcess | undefined,
  connected: { readonly pid: number; readonly uid: number },
): Promise<void> {
  const naive = await nameNaively(connected.pid);
  const real = peer === undefined ? undefined : await nameReally(peer);
  if (connected.uid === VICTIM) {
    result.genuine += 1;
    if (real === undefined || !isVictim(real)) result.genuineRefused += 1;
  } else {
    result.callers += 1;
    if (naive !== undefined && isVictim(naive)) result.wrongByNaive += 1;
    if (real === undefined) result.refused += 1;
    else if (isVictim(real)) result.wrong += 1;
  }
  socket.destroy();
}

const server = createServer(accept);
server.listen({ path: process.argv[2] ?? "", writableAll: true, readableAll: true }, () => writeSync(READY, "ready"));
for await (const _ of process.stdin);
process.stdout.write(JSON.stringify(result));
process.exit(0);
