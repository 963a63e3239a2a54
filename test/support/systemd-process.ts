/**
 * Answers on a message bus as systemd's manager does, as far as units of processes go: the unit is read from the
 * process's control group, its fragment path from the arguments. Blocks on its socket, so that it can receive open
 * files, which Node cannot. Started by `startSystemd`.
 */
import { closeSync, readFileSync } from "node:fs";
import koffi from "koffi";
import {
  type DbusMessage,
  type DbusValue,
  decodeMessage,
  ERROR,
  encodeMessage,
  METHOD_CALL,
  METHOD_RETURN,
  messageLength,
} from "../../agent/workload/dbus-wire.ts";

export interface SystemdOrders {
  readonly busPath: string;
  /** Unit files by unit. */
  readonly fragments: Readonly<Record<string, string>>;
  /** False for a manager older than systemd 253. */
  readonly knowsPidfds: boolean;
}

const SYSTEMD = "org.freedesktop.systemd1";
const UNITS = "/org/freedesktop/systemd1/unit/";
const BUS = { destination: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };
const AF_UNIX = 1;
const SOCK_STREAM = 1;

const libc = koffi.load(null);
const vector = koffi.struct({ base: "uint8_t *", size: "size_t" });
const header = koffi.struct({
  ...{ name: "uint8_t *", nameSize: "uint32_t", vectors: koffi.pointer(vector), vectorCount: "size_t" },
  ...{ control: "uint8_t *", controlSize: "size_t", flags: "int" },
});
const socket = libc.func("int socket(int domain, int type, int protocol)");
const connect = libc.func("int connect(int fd, const uint8_t *address, uint32_t length)");
const recvmsg = libc.func("recvmsg", "long", ["int", koffi.inout(koffi.pointer(header)), "int"]);
const write = libc.func("long write(int fd, const uint8_t *bytes, size_t length)");

interface Received {
  readonly bytes: Buffer;
  readonly descriptor: number | undefined;
}

class Manager {
  readonly #orders: SystemdOrders;
  readonly #fd: number = Number(socket(AF_UNIX, SOCK_STREAM, 0));
  #received = Buffer.alloc(0);
  #descriptor: number | undefined;
  #serial = 0;

  constructor(orders: SystemdOrders) {
    this.#orders = orders;
  }

  run(): never {
    this.#connect();
    this.#send({ ...BUS, type: METHOD_CALL, member: "Hello", serial: this.#next() });
    const name = { member: "RequestName", signature: "su", body: [SYSTEMD, 4] };
    this.#send({ ...BUS, ...name, type: METHOD_CALL, serial: this.#next() });
    for (;;) this.#take(this.#message());
  }

  #connect(): void {
    const address = Buffer.alloc(110);
    address.writeUInt16LE(AF_UNIX, 0);
    address.write(this.#orders.busPath, 2);
    if (Number(connect(this.#fd, address, address.length)) !== 0) throw new Error("no bus");
    const uid = Buffer.from(String(process.getuid?.())).toString("hex");
    for (const line of [`\0AUTH EXTERNAL ${uid}`, "NEGOTIATE_UNIX_FD"]) {
      write(this.#fd, Buffer.from(`${line}\r\n`), line.length + 2);
      this.#receive();
      this.#received = Buffer.alloc(0);
    }
    write(this.#fd, Buffer.from("BEGIN\r\n"), 7);
  }

  #message(): DbusMessage {
    for (;;) {
      const length = messageLength(this.#received);
      if (length !== undefined && this.#received.length >= length) {
        const message = decodeMessage(this.#received.subarray(0, length));
        this.#received = this.#received.subarray(length);
        return message;
      }
      this.#receive();
    }
  }

  #receive(): void {
    const { bytes, descriptor } = receive(this.#fd);
    if (bytes.length === 0) process.exit(0);
    this.#received = Buffer.concat([this.#received, bytes]);
    if (descriptor !== undefined) this.#descriptor = descriptor;
  }

  #take(message: DbusMessage): void {
    if (message.type !== METHOD_CALL) {
      if (message.replySerial === 2) process.send?.({ ready: true });
      return;
    }
    const reply = { destination: message.sender ?? "", replySerial: message.serial, serial: this.#next() };
    const answer = this.#answer(message);
    if ("error" in answer)
      this.#send({ ...reply, type: ERROR, errorName: answer.error, signature: "s", body: [answer.text] });
    else this.#send({ ...reply, ...answer, type: METHOD_RETURN });
  }

  #answer({ interface: of, member, path, body = [] }: DbusMessage): Answer {
    if (of === `${SYSTEMD}.Manager` && member === "GetUnitByPID") return unitByPid(Number(body[0]));
    if (of === `${SYSTEMD}.Manager` && member === "GetUnitByPIDFD" && this.#orders.knowsPidfds) {
      const unit = unitByPid(pidOf(this.#descriptor));
      this.#descriptor = undefined;
      if ("error" in unit) return unit;
      return { signature: "osay", body: [...unit.body, unitName(String(unit.body[0])), new Uint8Array(16)] };
    }
    if (of === "org.freedesktop.DBus.Properties" && member === "Get" && String(path).startsWith(UNITS)) {
      const unit = unitName(String(path));
      if (body[1] === "Id") return { signature: "v", body: [unit] };
      if (body[1] === "FragmentPath") return { signature: "v", body: [this.#orders.fragments[unit] ?? ""] };
    }
    const error = "org.freedesktop.DBus.Error.UnknownMethod";
    return { error, text: `Unknown method ${member} or interface ${of}.` };
  }

  #send(message: DbusMessage): void {
    const bytes = encodeMessage(message);
    write(this.#fd, bytes, bytes.length);
  }

  #next(): number {
    this.#serial += 1;
    return this.#serial;
  }
}

type Answer =
  | { readonly error: string; readonly text: string }
  | { readonly signature: string; readonly body: readonly DbusValue[] };

function receive(fd: number): Received {
  const bytes = Buffer.alloc(65_536);
  const control = Buffer.alloc(64);
  const message = { name: null, nameSize: 0, vectors: [{ base: bytes, size: bytes.length }], vectorCount: 1 };
  const got = { ...message, control, controlSize: control.length, flags: 0 };
  const length = Number(recvmsg(fd, got, 0));
  const hasDescriptor = Number(got.controlSize) >= 20;
  return {
    bytes: bytes.subarray(0, Math.max(0, length)),
    descriptor: hasDescriptor ? control.readInt32LE(16) : undefined,
  };
}

function pidOf(descriptor: number | undefined): number {
  if (descriptor === undefined) return -1;
  const info = readFileSync(`/proc/self/fdinfo/${descriptor}`, "utf8");
  closeSync(descriptor);
  return Number(/^Pid:\s*(-?\d+)$/m.exec(info)?.[1] ?? -1);
}

function unitByPid(pid: number): Answer {
  const unit = pid > 0 ? unitOf(pid) : undefined;
  if (unit !== undefined) return { signature: "o", body: [UNITS + escaped(unit)] };
  return { error: `${SYSTEMD}.NoUnitForPID`, text: `PID ${pid} does not belong to any loaded unit.` };
}

function unitOf(pid: number): string | undefined {
  const own = readFileSync(`/proc/${pid}/cgroup`, "utf8")
    .split("\n")
    .find((line) => line.includes(":name=systemd:"));
  return own?.split("/").findLast((part) => /\.(service|scope)$/.test(part));
}

/** Object paths hold letters, digits and underscores; the rest is written as `_` and two hexadecimal digits. */
function escaped(unit: string): string {
  return unit.replace(/[^A-Za-z0-9]/g, (sign) => `_${sign.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

function unitName(path: string): string {
  const name = path.slice(UNITS.length);
  return name.replace(/_([0-9a-f]{2})/g, (_, code: string) => String.fromCharCode(Number.parseInt(code, 16)));
}

const orders = process.argv[2];
if (orders !== undefined) new Manager(JSON.parse(orders) as SystemdOrders).run();
