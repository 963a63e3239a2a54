/**
 * A workload as a process of its own: becomes the user it is told to be, connects to a socket and does what the test
 * says over IPC. Started by `startWorkload`.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer, type Server, Socket } from "node:net";
import koffi from "koffi";

export interface WorkloadOrders {
  readonly uid?: number;
  readonly gid?: number;
  readonly groups?: readonly number[];
  /** Where to connect. */
  readonly socket: string;
  /** What arrives on this socket goes over the connection. */
  readonly relay?: string;
  /** The relay is another process, which got a copy of the connection, as after a fork or when it was handed over. */
  readonly handOver?: boolean;
}

/** What the test may order once the connection stands. */
export type WorkloadCommand =
  | { readonly do: "exec"; readonly program: string; readonly args: readonly string[] }
  | { readonly do: "become"; readonly uid: number }
  | { readonly do: "exit" };

const F_SETFD = 2;

if (process.argv[2] === "--relay") await relay(process.argv[3] ?? "");
else if (process.argv[2] !== undefined) await run(JSON.parse(process.argv[2]) as WorkloadOrders);

async function run(orders: WorkloadOrders): Promise<void> {
  const relayed = orders.relay === undefined || orders.handOver === true ? undefined : await listen(orders.relay);
  if (orders.groups !== undefined) process.setgroups?.([...orders.groups]);
  if (orders.gid !== undefined) process.setgid?.(orders.gid);
  if (orders.uid !== undefined) process.setuid?.(orders.uid);
  const socket = connect(orders.socket);
  // What comes is for the process that the connection is handed to.
  if (orders.handOver === true) socket.pause();
  await once(socket, "connect");
  socket.on("error", () => undefined);
  relayed?.on("connection", (client) => join(client, socket));
  if (orders.relay !== undefined && orders.handOver === true) await startRelay(socket, orders.relay);
  process.on("message", (command) => obey(command as WorkloadCommand));
  process.send?.({ pid: process.pid });
}

function obey(command: WorkloadCommand): void {
  if (command.do === "exit") process.exit(0);
  if (command.do === "become") {
    process.setuid?.(command.uid);
    process.send?.({ became: command.uid });
    return;
  }
  const libc = koffi.load(null);
  const execv = libc.func("int execv(const char *path, const char **argv)");
  execv(command.program, [command.program, ...command.args, null]);
}

async function startRelay(socket: Socket, path: string): Promise<void> {
  const fd = (socket as unknown as { _handle: { fd: number } })._handle.fd;
  koffi.load(null).func("int fcntl(int fd, int command, int value)")(fd, F_SETFD, 0);
  const child = spawn(process.execPath, [import.meta.filename, "--relay", path], {
    stdio: ["ignore", "pipe", "inherit", fd],
    detached: true,
  });
  await new Promise((resolve) => child.stdout?.once("data", resolve));
  process.send?.({ relay: child.pid });
}

async function relay(path: string): Promise<void> {
  const upstream = new Socket({ fd: 3 });
  upstream.on("close", () => process.exit(0));
  const server = await listen(path);
  server.on("connection", (client) => join(client, upstream));
  process.stdout.write("listening\n");
}

function join(client: Socket, upstream: Socket): void {
  for (const socket of [client, upstream]) socket.on("error", () => process.exit(1));
  client.pipe(upstream).pipe(client);
}

async function listen(path: string): Promise<Server> {
  const server = createServer();
  server.listen(path);
  await once(server, "listening");
  return server;
}
