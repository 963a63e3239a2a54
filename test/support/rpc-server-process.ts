/**
 * Serves health on the Unix socket named by the first argument until its standard input ends, to callers of other pid
 * namespaces too with a second argument; prints one line when ready.
 */
import { healthService } from "../../src/rpc/health.ts";
import { RpcServer } from "../../src/rpc/serve.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { type LogLine, RecordingLog } from "./recording-log.ts";

const log = new RecordingLog();
await using server = new RpcServer<undefined>({
  services: [healthService({ isReady: async () => true, clock: systemClock })],
  admit: async () => undefined,
  log,
  clock: systemClock,
});
await server.listenUnix({ path: process.argv[2] ?? "", mode: 0o777 }, { unseen: process.argv[3] === "unseen" });
process.stdout.write("ready\n");
for await (const _ of process.stdin);
const said = ({ message, fields }: LogLine): string =>
  fields["error"] instanceof Error ? `${message}: ${fields["error"].message}` : message;
process.stdout.write(JSON.stringify(log.lines.map(said)));
