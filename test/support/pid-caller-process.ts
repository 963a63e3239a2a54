/** Calls health on the socket named by the first argument, over several connections at once, naming its own pid; prints the answers that were not SERVING. */
import { dialUnix } from "../../src/rpc/dial.ts";
import { HealthApi } from "../../src/rpc/protos.ts";

const CONNECTIONS = 5;
const CALLS = 100;

const wrong: unknown[] = [];
await Promise.all(
  Array.from({ length: CONNECTIONS }, async () => {
    using channel = dialUnix(process.argv[2] ?? "");
    const client = channel.client(HealthApi);
    const calls = Array.from({ length: CALLS }, () => client.Check({ service: String(process.pid) }));
    for (const { status } of await Promise.all(calls)) if (status !== "SERVING") wrong.push(status);
  }),
);
process.stdout.write(JSON.stringify(wrong));
