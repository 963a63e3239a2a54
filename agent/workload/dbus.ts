import { connect, type Socket } from "node:net";
import { libc } from "../../src/rpc/libc.ts";
import { descriptorOf } from "../../src/rpc/peer-credentials.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import {
  type DbusMessage,
  type DbusValue,
  decodeMessage,
  ERROR,
  encodeMessage,
  METHOD_CALL,
  messageLength,
} from "./dbus-wire.ts";

/** One call of a method. */
export interface DbusCall {
  readonly destination: string;
  readonly path: string;
  readonly interface: string;
  readonly member: string;
  readonly signature?: string;
  readonly body?: readonly DbusValue[];
  /** An open file that the service gets a copy of; the body names it as 0. */
  readonly descriptor?: number;
}

interface DbusConnectionOptions {
  /** Ends the attempt to connect. */
  readonly signal: AbortSignal;
  /** Called for each answer. */
  readonly heard: () => void;
}

interface Authenticated {
  /** What came after the bus's last word on it. */
  readonly rest: Buffer;
  readonly passesDescriptors: boolean;
}

interface Waiting {
  resolve(body: readonly DbusValue[]): void;
  reject(error: Fault): void;
}

const SYSTEM_BUS = "unix:path=/var/run/dbus/system_bus_socket";
const BUS = { destination: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/** A connection to a message bus, for calling methods. D-Bus Specification. */
export class DbusConnection implements Disposable {
  /** Whether open files can be handed over. */
  readonly passesDescriptors: boolean;
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  readonly #heard: () => void;
  #received: Buffer;
  #serial = 0;
  #failure: Fault | undefined;

  private constructor(socket: Socket, { rest, passesDescriptors }: Authenticated, heard: () => void) {
    this.#socket = socket;
    this.#heard = heard;
    this.#received = rest;
    this.passesDescriptors = passesDescriptors;
    socket.on("data", (chunk: Buffer) => this.#receive(chunk));
    socket.on("error", (error) => this.#fail(closed(messageOf(error))));
    socket.on("close", () => this.#fail(closed("it was closed")));
  }

  /** Connects and introduces itself. Throws `unavailable`, also when the signal is aborted before. */
  static async open(address: string, { signal, heard }: DbusConnectionOptions): Promise<DbusConnection> {
    const socket = connect(pathOf(address));
    const stop = (): void => void socket.destroy();
    signal.addEventListener("abort", stop, { once: true });
    try {
      const connection = new DbusConnection(socket, await authenticate(socket), heard);
      await connection.call({ ...BUS, member: "Hello" });
      return connection;
    } catch (error) {
      socket.destroy();
      throw error instanceof Fault ? error : closed(messageOf(error));
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }

  get isOpen(): boolean {
    return this.#failure === undefined;
  }

  /** The body of the answer. Throws `unavailable` with the error's name as code when the service answers with one. */
  call({ descriptor, ...call }: DbusCall): Promise<readonly DbusValue[]> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) throw this.#failure;
      this.#serial += 1;
      const serial = this.#serial;
      this.#waiting.set(serial, { resolve, reject });
      const descriptors = descriptor === undefined ? {} : { descriptors: 1 };
      this.#send(encodeMessage({ ...call, ...descriptors, type: METHOD_CALL, serial }), descriptor);
    });
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  /** A descriptor travels beside the bytes, which Node cannot send; nothing else may be on its way then. */
  #send(bytes: Buffer, descriptor: number | undefined): void {
    if (descriptor === undefined) {
      this.#socket.write(bytes);
      return;
    }
    const isIdle = this.#socket.writableLength === 0;
    const sent = isIdle ? libc().sendDescriptor(descriptorOf(this.#socket), bytes, descriptor) : -1;
    if (sent === bytes.length) return;
    const failure = closed("an open file could not be handed over");
    this.#fail(failure);
    this.#socket.destroy();
    throw failure;
  }

  #receive(chunk: Buffer): void {
    try {
      this.#received = Buffer.concat([this.#received, chunk]);
      for (;;) {
        const length = messageLength(this.#received);
        if (length === undefined || this.#received.length < length) return;
        this.#take(decodeMessage(this.#received.subarray(0, length)));
        this.#received = this.#received.subarray(length);
      }
    } catch (error) {
      this.#fail(Fault.from(error));
      this.#socket.destroy();
    }
  }

  /** Signals and calls are nobody's here. */
  #take({ type, replySerial, errorName, body = [] }: DbusMessage): void {
    const waiting = this.#waiting.get(Number(replySerial));
    if (waiting === undefined) return;
    this.#waiting.delete(Number(replySerial));
    this.#heard();
    if (type === ERROR) waiting.reject(new Fault("unavailable", String(body[0]), { code: String(errorName) }));
    else waiting.resolve(body);
  }

  #fail(failure: Fault): void {
    this.#failure ??= failure;
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
  }
}

/** Of `DBUS_SYSTEM_BUS_ADDRESS`, or where the system's bus is. */
export function systemBusAddress(): string {
  return process.env["DBUS_SYSTEM_BUS_ADDRESS"] || SYSTEM_BUS;
}

/** Path of the first Unix socket in a list of addresses. D-Bus Specification, "Server Addresses". */
function pathOf(addresses: string): string {
  for (const address of addresses.split(";")) {
    const [, kind, value] = /^unix:(?:.*,)?(path|abstract)=([^,]*)/.exec(address) ?? [];
    if (value !== undefined) return `${kind === "abstract" ? "\0" : ""}${decodeURIComponent(value)}`;
  }
  throw closed(`no Unix socket in the address ${JSON.stringify(addresses)}`);
}

/** By our own user id, as the kernel confirms it. D-Bus Specification, "Authentication Protocol". */
async function authenticate(socket: Socket): Promise<Authenticated> {
  const lines = new LineReader(socket);
  const uid = Buffer.from(String(process.geteuid?.() ?? 0)).toString("hex");
  socket.write(`\0AUTH EXTERNAL ${uid}\r\n`);
  if (!(await lines.next()).startsWith("OK ")) throw closed("the bus does not accept our user");
  socket.write("NEGOTIATE_UNIX_FD\r\n");
  const passesDescriptors = (await lines.next()) === "AGREE_UNIX_FD";
  socket.write("BEGIN\r\n");
  return { rest: lines.end(), passesDescriptors };
}

class LineReader {
  readonly #socket: Socket;
  #buffer = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  #failure: Fault | undefined;
  readonly #onData = (chunk: Buffer): void => {
    this.#buffer = Buffer.concat([this.#buffer, chunk]);
    if (this.#buffer.length > 16_384) this.#fail("the bus sends no lines");
    this.#wake?.();
  };
  readonly #onError = (error: Error): void => this.#fail(messageOf(error));
  readonly #onClose = (): void => this.#fail("it was closed");

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", this.#onData);
    socket.on("error", this.#onError);
    socket.on("close", this.#onClose);
  }

  async next(): Promise<string> {
    for (;;) {
      const end = this.#buffer.indexOf("\r\n");
      if (end >= 0) {
        const line = this.#buffer.toString("latin1", 0, end);
        this.#buffer = this.#buffer.subarray(end + 2);
        return line;
      }
      if (this.#failure !== undefined) throw this.#failure;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** What came after the last line. */
  end(): Buffer {
    this.#socket.off("data", this.#onData);
    this.#socket.off("error", this.#onError);
    this.#socket.off("close", this.#onClose);
    return this.#buffer;
  }

  #fail(reason: string): void {
    this.#failure ??= closed(reason);
    this.#wake?.();
  }
}

function closed(reason: string): Fault {
  return new Fault("unavailable", `the D-Bus connection failed: ${reason}`, { code: "dbus-unavailable" });
}
