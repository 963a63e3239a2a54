import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { connect, createServer, type Server } from "node:tls";
import { authorizeAny, guardServer, mtlsClientOptions, mtlsServerOptions, X509Source } from "../../src/client/index.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault } from "../../src/runtime/fault.ts";

/** Workloads that do mutual TLS with each other all the time. */
export interface Mesh extends AsyncDisposable {
  /** Handshakes that both ends accepted. */
  readonly handshakes: number;
  readonly failures: readonly string[];
  /** Resolves after each client has done this many more. */
  rounds(count: number): Promise<void>;
}

const HANDSHAKE_MS = 20_000;

/** Each client holds its own stream to one of the sockets, and meets the servers of every socket in turn. */
export async function openMesh(sockets: readonly string[], clients: number): Promise<Mesh> {
  const stop = new AbortController();
  const sources = await Promise.all(
    Array.from({ length: clients }, (_, at) => X509Source.open({ socket: sockets[at % sockets.length] ?? "" })),
  );
  const servers = await Promise.all(sources.slice(0, 2 * sockets.length).map(serve));
  const [failures, done]: [string[], number[]] = [[], sources.map(() => 0)];
  const run = async (source: X509Source, at: number): Promise<void> => {
    while (!stop.signal.aborted) {
      const server = servers[((done[at] ?? 0) + at) % servers.length] as Server;
      await handshake(source, server).catch((error: unknown) => failures.push(Fault.from(error).message));
      done[at] = (done[at] ?? 0) + 1;
      await systemClock.sleep(400 * Math.random());
    }
  };
  const running = Promise.all(sources.map(run));
  return {
    get handshakes() {
      return done.reduce((sum, count) => sum + count, 0) - failures.length;
    },
    failures,
    async rounds(count) {
      const goals = done.map((so) => so + count);
      while (done.some((so, at) => so < (goals[at] ?? 0))) await systemClock.sleep(50);
    },
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
      for (const server of servers) server.close();
      await Promise.all(sources.map((source) => source[Symbol.asyncDispose]()));
    },
  };
}

async function serve(source: X509Source): Promise<Server> {
  const server = createServer(mtlsServerOptions({ source }), (socket) => {
    socket.on("error", () => {});
    socket.end("ok");
  });
  guardServer(server, { source, authorize: authorizeAny });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return server;
}

/** The server's word means that it has verified the client: TLS 1.3 tells a client nothing of that. */
async function handshake(source: X509Source, server: Server): Promise<void> {
  const { port } = server.address() as AddressInfo;
  const socket = connect({ ...mtlsClientOptions({ source, authorize: authorizeAny }), host: "127.0.0.1", port });
  socket.setTimeout(HANDSHAKE_MS, () => socket.destroy(new Error("no handshake in time")));
  try {
    let said = "";
    for await (const chunk of socket) said += String(chunk);
    if (said !== "ok") throw new Error("the server closed the connection");
  } finally {
    socket.destroy();
  }
}
