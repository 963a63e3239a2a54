import { createHash } from "node:crypto";
import { type BigIntStats, constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import type { Clock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { KeyedGate } from "./gate.ts";

/** What "no limit" means at most: no executable is larger, and a larger file would be hashed for too long. */
const HARD_LIMIT_BYTES = 8n * 1024n ** 3n;
const MAX_MS = 60_000;
const CHUNK_BYTES = 128 * 1024;
const CACHED_DIGESTS = 1024;
/** Files read at the same time for one caller's like; reading more at once is no faster. */
const CONCURRENT = 2;
const WAITING = 4096;
/** A file changed this recently could change again within one tick of its timestamps, so its digest is not kept. */
const SETTLED_MS = 2_000;

export interface DigestOptions {
  /** Bytes; 0 means only the built-in bound. */
  readonly sizeLimit: number;
  readonly clock: Clock;
  /** Ends whatever is still being read. */
  readonly signal: AbortSignal;
  readonly maxMs?: number;
}

/**
 * SHA-256 of executables, each file read once: a digest is kept by device, inode, size and both timestamps. Only
 * regular files that stay as they are while they are read have a digest. T-W6.
 */
export class Digests {
  readonly #options: DigestOptions;
  readonly #gate = new KeyedGate<string>({ concurrent: CONCURRENT, waiting: WAITING });
  readonly #known = new Map<string, string>();
  readonly #reading = new Map<string, Promise<string>>();

  constructor(options: DigestOptions) {
    this.#options = options;
  }

  /**
   * `file` may be open with O_PATH only; it is opened anew for reading. `group` tells callers apart who stand in each
   * other's way: programs that take long to read hold up those of the same group alone. Hex, lower case.
   */
  async sha256(file: FileHandle, group = ""): Promise<string> {
    const stats = await file.stat({ bigint: true });
    this.#check(stats);
    const key = keyOf(stats);
    return this.#known.get(key) ?? this.#reading.get(`${key} ${group}`) ?? this.#start(group, file, stats);
  }

  #check(stats: BigIntStats): void {
    if (!stats.isFile()) throw new Fault("denied", "SHA256 digest: not a regular file", { code: "digest-not-a-file" });
    const limit = this.#options.sizeLimit > 0 ? BigInt(this.#options.sizeLimit) : HARD_LIMIT_BYTES;
    if (stats.size > limit) {
      throw new Fault("denied", `SHA256 digest: workload exceeds size limit (${stats.size} > ${limit})`, {
        code: "digest-size",
        hint: "raise workload_size_limit of the unix workload attestor, or set it below 0 to do without digests",
      });
    }
  }

  /** Another group may have had the same file read meanwhile. */
  #start(group: string, file: FileHandle, stats: BigIntStats): Promise<string> {
    const key = keyOf(stats);
    const turn = this.#gate.run(group, this.#options.signal, async () => {
      return this.#known.get(key) ?? (await this.#read(file, stats));
    });
    const reading = turn.finally(() => this.#reading.delete(`${key} ${group}`));
    this.#reading.set(`${key} ${group}`, reading);
    return reading;
  }

  async #read(file: FileHandle, before: BigIntStats): Promise<string> {
    await using readable = await open(`/proc/self/fd/${file.fd}`, constants.O_RDONLY | constants.O_NONBLOCK);
    const digest = await this.#hash(readable, before.size);
    const after = await readable.stat({ bigint: true });
    if (keyOf(after) !== keyOf(before)) throw changed();
    if (this.#options.clock.now().getTime() - Number(after.ctimeMs) > SETTLED_MS) this.#keep(keyOf(after), digest);
    return digest;
  }

  async #hash(file: FileHandle, size: bigint): Promise<string> {
    const { clock, signal, maxMs = MAX_MS } = this.#options;
    const until = clock.monotonic() + maxMs;
    const hash = createHash("sha256");
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    let total = 0n;
    for (;;) {
      signal.throwIfAborted();
      if (clock.monotonic() > until)
        throw new Fault("timeout", "SHA256 digest: took too long", { code: "digest-time" });
      const { bytesRead } = await file.read(chunk, 0, CHUNK_BYTES, null);
      if (bytesRead === 0) break;
      total += BigInt(bytesRead);
      if (total > size) throw changed();
      hash.update(chunk.subarray(0, bytesRead));
    }
    if (total !== size) throw changed();
    return hash.digest("hex");
  }

  #keep(key: string, digest: string): void {
    const oldest = this.#known.keys().next();
    if (this.#known.size >= CACHED_DIGESTS && oldest.done === false) this.#known.delete(oldest.value);
    this.#known.set(key, digest);
  }
}

function keyOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return [dev, ino, size, mtimeNs, ctimeNs].join(":");
}

function changed(): Fault {
  return new Fault("unavailable", "SHA256 digest: the file changed while it was read", { code: "digest-changed" });
}
