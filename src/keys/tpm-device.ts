import { once } from "node:events";
import { type FileHandle, open, readdir } from "node:fs/promises";
import { createConnection, type Socket } from "node:net";
import { systemClock } from "../runtime/clock.ts";
import { Fault, messageOf } from "../runtime/fault.ts";
import { retry } from "../runtime/task.ts";
import { Tpm } from "../tpm/commands.ts";

/** A TPM that is ours for the moment. Disposing ends the connection. */
export interface OpenTpm extends AsyncDisposable {
  readonly tpm: Tpm;
}

const MAX_REPLY_BYTES = 4096;
const HEADER_BYTES = 10;

/**
 * Opens `/dev/tpmrm0` or the like, or a simulator by `unix:/path` or `tcp:host:port`; undefined finds the only device
 * there is. Throws `precondition`.
 */
export async function openTpm(path: string | undefined): Promise<OpenTpm> {
  const place = path ?? (await onlyDevice());
  try {
    if (!SIMULATOR.test(place)) return overDevice(await open(place, "r+"));
    // Between two users a simulator does not listen for a moment.
    return await retry(systemClock, CONNECT, () => connect(place), NEVER);
  } catch (error) {
    throw new Fault("precondition", `cannot open TPM at "${place}": ${messageOf(error)}`, {
      code: "tpm-open",
      hint: "check tpm_device_path, and that this account may use the device",
      cause: error,
    });
  }
}

/** With the kernel's resource manager if there is one; SPIRE looks in the same way. */
async function onlyDevice(): Promise<string> {
  const names = await readdir("/dev");
  for (const pattern of [/^tpmrm\d+$/, /^tpm\d+$/]) {
    const found = names.filter((name) => pattern.test(name));
    if (found.length > 1) throw noDevice("several TPM devices were found");
    if (found.length === 1) return `/dev/${found[0]}`;
  }
  throw noDevice("no TPM device was found");
}

function noDevice(message: string): Fault {
  return new Fault("precondition", `tpm autodetection failed: ${message}`, {
    code: "tpm-open",
    hint: "set tpm_device_path",
  });
}

const SIMULATOR = /^(?:unix:(.+)|tcp:(.+):(\d+))$/;
const CONNECT = { firstMs: 20, maxMs: 200, giveUpAfterMs: 2_000 } as const;
const NEVER = new AbortController().signal;

async function connect(place: string): Promise<OpenTpm> {
  const [, path, host, port] = SIMULATOR.exec(place) ?? [];
  const socket = path === undefined ? createConnection(Number(port), host) : createConnection(path);
  await once(socket, "connect");
  try {
    return await overSocket(socket);
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

function overDevice(file: FileHandle): OpenTpm {
  const exchange = inTurn(async (command: Uint8Array) => {
    await file.write(command);
    return await readReply(file);
  });
  return { tpm: new Tpm(exchange), [Symbol.asyncDispose]: () => file.close() };
}

/** In as many pieces as it comes. There is always room for the whole: kernels before 4.20 drop what does not fit. */
async function readReply(file: FileHandle): Promise<Uint8Array> {
  const reply = Buffer.alloc(MAX_REPLY_BYTES);
  for (let end = 0; ; ) {
    const { bytesRead } = await file.read(reply, end, MAX_REPLY_BYTES - end, null);
    if (bytesRead === 0) throw new Error("the TPM gave no whole reply");
    end += bytesRead;
    if (end >= HEADER_BYTES && end >= reply.readUInt32BE(2)) return reply.subarray(0, reply.readUInt32BE(2));
  }
}

/** A simulator has no resource manager: what an earlier user left would fill its few slots. */
async function overSocket(socket: Socket): Promise<OpenTpm> {
  const replies = new Replies(socket);
  const exchange = inTurn((command: Uint8Array) => {
    socket.write(command);
    return replies.next();
  });
  const tpm = new Tpm(exchange);
  for (const type of [0x80, 0x02]) for (const handle of await tpm.handles(type)) await tpm.flush(handle);
  return {
    tpm,
    async [Symbol.asyncDispose]() {
      const closed = new Promise<void>((done) => socket.once("close", () => done()));
      socket.end();
      if (!socket.closed) await closed;
    },
  };
}

function inTurn(work: (command: Uint8Array) => Promise<Uint8Array>): (command: Uint8Array) => Promise<Uint8Array> {
  let last: Promise<unknown> = Promise.resolve();
  return (command) => {
    const mine = last.then(() => work(command));
    last = mine.catch(() => undefined);
    return mine;
  };
}

/** Cuts the stream into replies by the length in their header. */
class Replies {
  #data = Buffer.alloc(0);
  #waiting: PromiseWithResolvers<Uint8Array> | undefined;
  #failure: Error | undefined;

  constructor(socket: Socket) {
    socket.on("data", (chunk: Buffer) => {
      this.#data = Buffer.concat([this.#data, chunk]);
      this.#deliver();
    });
    socket.on("error", (error) => this.#fail(error));
    socket.on("close", () => this.#fail(new Error("the TPM closed the connection")));
  }

  next(): Promise<Uint8Array> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    this.#waiting = Promise.withResolvers<Uint8Array>();
    const { promise } = this.#waiting;
    this.#deliver();
    return promise;
  }

  #deliver(): void {
    if (this.#waiting === undefined || this.#data.length < HEADER_BYTES) return;
    const size = this.#data.readUInt32BE(2);
    if (size > MAX_REPLY_BYTES) this.#fail(new Error("a reply of the TPM is too long"));
    else if (this.#data.length >= size) this.#take(size);
  }

  #take(size: number): void {
    this.#waiting?.resolve(this.#data.subarray(0, size));
    this.#data = this.#data.subarray(size);
    this.#waiting = undefined;
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#waiting?.reject(this.#failure);
    this.#waiting = undefined;
  }
}
