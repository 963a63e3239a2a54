import { dialUnix } from "../../src/rpc/dial.ts";
import { HealthApi } from "../../src/rpc/protos.ts";
import { command } from "../../src/runtime/cli.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { socketFlags, socketPathFrom } from "./connection.ts";

const DEADLINE_MS = 10_000;

export const healthcheck = command({
  summary: "Determines agent health status",
  flags: {
    ...socketFlags,
    shallow: { type: "bool", doc: "Perform a less stringent health check" },
    verbose: { type: "bool", doc: "Print verbose information" },
  },
  examples: ["healthcheck", "healthcheck -verbose"],
  async run({ flags, io }) {
    if (flags.verbose) io.stdout.write("Checking agent health...\n");
    using agent = dialUnix(socketPathFrom(flags, io.env));
    const reason = await agent
      .client(HealthApi)
      .Check({}, { deadlineMs: DEADLINE_MS })
      .then(({ status }) => (status === "SERVING" ? undefined : `agent returned status "${status}"`))
      .catch((error: unknown) => {
        if (flags.verbose) io.stderr.write(`Failed to check health: ${Fault.from(error).message}\n`);
        return "unable to determine health";
      });
    io[reason === undefined ? "stdout" : "stderr"].write(
      reason === undefined ? "Agent is healthy.\n" : `Agent is unhealthy: ${reason}\n`,
    );
    return reason === undefined ? 0 : 1;
  },
});
