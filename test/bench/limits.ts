import { execFile, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, open, rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { KeyType } from "../../src/crypto/key.ts";
import type { Limit } from "./figures.ts";
import { calls, percentile } from "./stats.ts";

/** What this machine can do at best, each measured once in a run and when it is first asked for. */
export interface Limits {
  /** `openssl speed` on one core, of the key type of an authority. */
  openssl(type: KeyType): Promise<OpensslSpeed>;
  /** Microseconds of one core for one signature, or for a signature and the check of one. */
  signing(type: KeyType, what: "sign" | "sign and verify"): Promise<Limit>;
  /** Median round trip, in milliseconds, of so many bytes each way to another process over a raw socket. */
  roundTrip(kind: "unix" | "tcp", bytes: number): Promise<Limit>;
  /** Milliseconds of a change that is safe on disk and known on another connection. */
  commit(): Promise<Limit>;
}

/** Operations per second. */
export interface OpensslSpeed {
  readonly sign: number;
  readonly verify: number;
}

const OPENSSL_NAMES: Readonly<Record<KeyType, readonly [argument: string, row: RegExp]>> = {
  "ec-p256": ["ecdsap256", /256 bits ecdsa \(nistp256\)\s+\S+\s+\S+\s+([\d.]+)\s+([\d.]+)/],
  "ec-p384": ["ecdsap384", /384 bits ecdsa \(nistp384\)\s+\S+\s+\S+\s+([\d.]+)\s+([\d.]+)/],
  "rsa-2048": ["rsa2048", /rsa 2048 bits\s+\S+\s+\S+\s+([\d.]+)\s+([\d.]+)/],
  "rsa-4096": ["rsa4096", /rsa 4096 bits\s+\S+\s+\S+\s+([\d.]+)\s+([\d.]+)/],
};

const ROUND_TRIPS = 2000;
const SYNCS = 200;

export function measuredLimits(): Limits {
  const once = memo();
  const openssl: Limits["openssl"] = (type) => once(type, () => opensslSpeed(type));
  return {
    openssl,
    async signing(type, what) {
      const { sign, verify } = await openssl(type);
      const us = 1_000_000 / sign + (what === "sign" ? 0 : 1_000_000 / verify);
      return { name: `openssl speed ${type}, ${what}`, value: us };
    },
    roundTrip: (kind, bytes) => once(`${kind}/${bytes}`, () => roundTrip(kind, bytes)),
    commit: () =>
      once("commit", async () => {
        const trip = await once("tcp/1024", () => roundTrip("tcp", 1024));
        return { name: "fsync of 8 kB, and a round trip on raw TCP", value: (await fsyncMs()) + trip.value };
      }),
  };
}

function memo(): <T>(key: string, work: () => Promise<T>) => Promise<T> {
  const held = new Map<string, Promise<unknown>>();
  return <T>(key: string, work: () => Promise<T>) => {
    const found = held.get(key) ?? work();
    held.set(key, found);
    return found as Promise<T>;
  };
}

async function opensslSpeed(type: KeyType): Promise<OpensslSpeed> {
  const { stdout } = await promisify(execFile)("openssl", ["speed", "-seconds", "1", OPENSSL_NAMES[type][0]]);
  return readOpensslSpeed(stdout, type);
}

/** Reads the columns `sign/s` and `verify/s`. Throws when they are not there. */
export function readOpensslSpeed(stdout: string, type: KeyType): OpensslSpeed {
  const [, sign, verify] = OPENSSL_NAMES[type][1].exec(stdout) ?? [];
  if (sign === undefined || verify === undefined) throw new Error(`openssl speed says nothing of ${type}:\n${stdout}`);
  return { sign: Number(sign), verify: Number(verify) };
}

async function roundTrip(kind: "unix" | "tcp", bytes: number): Promise<Limit> {
  const child = fork(new URL("./echo-process.ts", import.meta.url), [kind], { execArgv: [] });
  try {
    const [where] = (await once(child, "message")) as [string | number];
    const socket = typeof where === "string" ? connect(where) : connect(where, "127.0.0.1");
    await once(socket, "connect");
    socket.setNoDelay(true);
    const payload = Buffer.alloc(bytes, 1);
    const { ms } = await calls({ count: ROUND_TRIPS }, () => echoed(socket, payload));
    socket.destroy();
    return {
      name: `round trip of ${bytes} bytes, raw ${kind === "tcp" ? "TCP" : "Unix"} socket`,
      value: percentile(ms, 0.5),
    };
  } finally {
    child.disconnect();
  }
}

/** Median time to write a page of a database's log to where the stores of a bench lie, and to have it on disk. */
async function fsyncMs(): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), "steeple-bench-"));
  const file = await open(join(folder, "log"), "w");
  try {
    const { ms } = await calls({ count: SYNCS }, async () => {
      await file.write(Buffer.alloc(8192, 1));
      await file.datasync();
    });
    return percentile(ms, 0.5);
  } finally {
    await file.close();
    await rm(folder, { recursive: true });
  }
}

function echoed(socket: Socket, payload: Buffer): Promise<void> {
  return new Promise((resolve) => {
    let seen = 0;
    const take = (chunk: Buffer): void => {
      seen += chunk.length;
      if (seen < payload.length) return;
      socket.off("data", take);
      resolve();
    };
    socket.on("data", take);
    socket.write(payload);
  });
}
