import { mkdtempSync, rmSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

// The other end of a raw socket: gives back what it gets, until its parent lets go of it.
const folder = mkdtempSync(join(tmpdir(), "steeple-echo-"));
const server = createServer({ noDelay: true }, (socket) => socket.on("error", () => undefined).pipe(socket));
const ready = (): void => {
  process.send?.(process.argv[2] === "unix" ? join(folder, "echo.sock") : (server.address() as AddressInfo).port);
};
if (process.argv[2] === "unix") server.listen(join(folder, "echo.sock"), ready);
else server.listen(0, "127.0.0.1", ready);
process.on("disconnect", () => process.exit(0));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
