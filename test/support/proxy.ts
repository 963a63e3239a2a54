import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

export interface TestProxy extends Disposable {
  readonly port: number;
}

export interface ProxyOptions {
  /** Port of the server, on 127.0.0.1. */
  readonly to: number;
  /** The proxy's own address, of 127.0.0.0/8. */
  readonly from: string;
  /** Sent before anything of the client's. */
  readonly header: Uint8Array;
  /** Byte by byte, each in a packet of its own. */
  readonly inBytes?: boolean;
}

/** A load balancer that says who connects: whatever it is told to say. */
export async function startProxy({ to, from, header, inBytes = false }: ProxyOptions): Promise<TestProxy> {
  const sockets = new Set<Socket>();
  const server = createServer(async (client) => {
    const upstream = connect({ port: to, host: "127.0.0.1", localAddress: from, noDelay: true });
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket
        .on("error", () => {})
        .once("close", () => {
          client.destroy();
          upstream.destroy();
        });
    }
    client.pause();
    await once(upstream, "connect").catch(() => {});
    const pieces = inBytes ? [...header].map((byte) => Buffer.from([byte])) : [header];
    for (const piece of pieces) await new Promise((done) => upstream.write(piece, done));
    client.pipe(upstream).pipe(client);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.dispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
