import { once } from "node:events";
import { type AddressInfo, createServer, type Server } from "node:net";
import { expect, test } from "vitest";
import { sleepUntilListening } from "../../../agent/node/listening.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { freePort } from "../../support/server-process.ts";

const HOUR = 3_600_000;
const clock = systemClock;
const signal = new AbortController().signal;

async function listen(port: number): Promise<Server> {
  const server = createServer((socket) => socket.destroy()).listen(port, "127.0.0.1");
  await once(server, "listening");
  return server;
}

test("a long wait is over as soon as somebody listens where nobody did", async () => {
  const port = await freePort();
  const over = sleepUntilListening({ clock, address: "127.0.0.1", port, ms: HOUR }, signal);
  const server = await listen(port);
  await over;
  server.close();
});

test("what listens all the time, and refuses, is waited for in full and looked at once", async () => {
  const server = await listen(0);
  let connections = 0;
  server.on("connection", () => {
    connections += 1;
  });
  const { port } = server.address() as AddressInfo;
  const started = clock.monotonic();
  await sleepUntilListening({ clock, address: "127.0.0.1", port, ms: 2_000 }, signal);
  expect(clock.monotonic() - started).toBeGreaterThanOrEqual(1_999);
  expect(connections).toBe(1);
  server.close();
});

test("where nobody comes, the wait ends in time, and with its signal", async () => {
  const port = await freePort();
  await sleepUntilListening({ clock, address: "127.0.0.1", port, ms: 200 }, signal);
  const stop = new AbortController();
  const over = sleepUntilListening({ clock, address: "127.0.0.1", port, ms: HOUR }, stop.signal);
  stop.abort(new Error("enough"));
  await expect(over).rejects.toThrow();
});
