import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

/** A network between a client and a server on this machine, which may be cut, slow, or lead elsewhere. */
export interface Link extends Disposable {
  readonly port: number;
  /** New connections go to this port; those that are open end. */
  to(port: number): void;
  /** Ends open connections, and new ones as they come, until it is mended. */
  cut(isCut: boolean): void;
  /** What arrives from now on is passed on so much later. */
  delay(ms: number): void;
}

/** The same URL, over the link. */
export function through(link: Link, url: string): string {
  const over = new URL(url);
  over.port = String(link.port);
  return over.href;
}

/** `tap` is made for each connection, and sees what its client sends. */
export async function openLink(to: number, tap?: () => (bytes: Buffer) => void): Promise<Link> {
  const sockets = new Set<Socket>();
  const state = { to, isCut: false, delayMs: 0, faster: new AbortController() };
  const pass = async (from: Socket, into: Socket, see?: (bytes: Buffer) => void): Promise<void> => {
    for await (const bytes of from) {
      if (state.delayMs > 0)
        await delay(state.delayMs, undefined, { signal: state.faster.signal }).catch(() => undefined);
      see?.(bytes as Buffer);
      into.write(bytes as Buffer);
    }
  };
  const server = createServer({ noDelay: true }, (client) => {
    if (state.isCut) return void client.destroy();
    const upstream = connect({ port: state.to, host: "127.0.0.1", noDelay: true });
    const end = (): void => [client, upstream].forEach((socket) => void socket.destroy());
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", end).once("close", () => sockets.delete(socket));
    }
    void pass(client, upstream, tap?.())
      .catch(() => undefined)
      .then(end);
    void pass(upstream, client)
      .catch(() => undefined)
      .then(end);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const drop = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    port: (server.address() as AddressInfo).port,
    to(port) {
      state.to = port;
      drop();
    },
    cut(isCut) {
      state.isCut = isCut;
      drop();
    },
    delay(ms) {
      state.delayMs = ms;
      state.faster.abort();
      state.faster = new AbortController();
    },
    [Symbol.dispose]() {
      server.close();
      drop();
    },
  };
}
