import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type PeerProcess, pinPeer } from "../../src/rpc/peer-credentials.ts";
import type { WorkloadCommand, WorkloadOrders } from "./workload-process.ts";

/** Only root may run workloads as other users. */
export const isRoot = process.getuid?.() === 0;
export const NOBODY = 65534;

export interface Workload extends AsyncDisposable {
  readonly pid: number;
  /** The process that holds a copy of the connection. */
  readonly relayPid: number | undefined;
  /** Resolves when the workload confirms, for commands that it lives through. */
  order(command: WorkloadCommand): Promise<void>;
  /** Resolves when the process has exited. */
  readonly exited: Promise<unknown>;
}

/** Starts a process that connects as the user in the orders; resolves once it is connected. */
export async function startWorkload(orders: WorkloadOrders, execPath = process.execPath): Promise<Workload> {
  const script = new URL("./workload-process.ts", import.meta.url);
  const child = fork(script, [JSON.stringify(orders)], {
    execPath,
    execArgv: [],
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  const exited = once(child, "exit");
  const relayPid = orders.handOver === true ? await reply(child, "relay") : undefined;
  const pid = await reply(child, "pid");
  return {
    pid,
    relayPid,
    exited,
    order: (command) => order(child, command),
    async [Symbol.asyncDispose]() {
      for (const target of [child.pid, relayPid]) if (target !== undefined) kill(target);
      if (child.exitCode === null && child.signalCode === null) await exited;
    },
  };
}

async function order(child: ChildProcess, command: WorkloadCommand): Promise<void> {
  child.send(command);
  if (command.do === "become") await reply(child, "became");
  if (command.do === "exit") await once(child, "exit");
  if (command.do === "exec") await once(child, "disconnect");
}

function reply(child: ChildProcess, key: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const onMessage = (message: unknown): void => {
      const value = (message as Record<string, number | undefined>)[key];
      if (value === undefined) return;
      child.off("message", onMessage);
      resolve(value);
    };
    child.on("message", onMessage);
    child.once("exit", (code) => reject(new Error(`the workload ended with ${code}`)));
  });
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/** A fresh folder under the system's temporary one. */
export async function temporaryDirectory(): Promise<{ readonly path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), "steeple-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** A socket that pins whoever connects, as the agent's listener does. */
export class PinningSocket implements AsyncDisposable {
  readonly path: string;
  readonly #scope: AsyncDisposableStack;
  readonly #peers: PeerProcess[] = [];
  readonly #waiting: ((peer: PeerProcess) => void)[] = [];

  private constructor(path: string, server: Server, scope: AsyncDisposableStack) {
    this.path = path;
    this.#scope = scope;
    server.on("connection", (socket) => this.#pin(socket));
  }

  static async open(): Promise<PinningSocket> {
    const scope = new AsyncDisposableStack();
    const { path: folder } = scope.use(await temporaryDirectory());
    await chmod(folder, 0o755);
    const path = join(folder, "api.sock");
    const server = createServer();
    scope.defer(() => new Promise<void>((resolve) => server.close(() => resolve())));
    server.listen({ path, writableAll: true });
    await once(server, "listening");
    return new PinningSocket(path, server, scope);
  }

  async next(): Promise<PeerProcess> {
    return this.#peers.shift() ?? new Promise((resolve) => this.#waiting.push(resolve));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#scope.disposeAsync();
  }

  #pin(socket: Socket): void {
    socket.on("error", () => undefined);
    const peer = this.#scope.use(pinPeer(socket));
    this.#scope.defer(() => void socket.destroy());
    const waiter = this.#waiting.shift();
    if (waiter === undefined) this.#peers.push(peer);
    else waiter(peer);
  }
}
