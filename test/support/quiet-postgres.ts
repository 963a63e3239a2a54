import { once } from "node:events";
import { createServer, connect as dial, type Socket } from "node:net";

/** 'A': NotificationResponse. */
const NOTIFICATION = 65;

/** A way to PostgreSQL that loses notifications, as a pooler that shares connections between transactions does. */
export async function withoutNotifications(url: string): Promise<{ readonly url: string } & Disposable> {
  const { port, hostname } = new URL(url);
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const upstream = dial(Number(port), hostname);
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", () => undefined).on("close", () => [client, upstream].map((other) => other.destroy()));
    }
    client.on("data", (bytes) => upstream.write(bytes));
    let rest = Buffer.alloc(0);
    upstream.on("data", (bytes: Buffer) => {
      rest = Buffer.concat([rest, bytes]);
      while (rest.length >= 5 && rest.length > rest.readUInt32BE(1)) {
        const message = rest.subarray(0, 1 + rest.readUInt32BE(1));
        rest = rest.subarray(message.length);
        if (message[0] !== NOTIFICATION) client.write(message);
      }
    });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const target = new URL(url);
  target.port = String(typeof address === "object" ? address?.port : "");
  target.searchParams.set("sslmode", "disable");
  return {
    url: target.href,
    [Symbol.dispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
