import { HealthApi } from "../../src/rpc/protos.ts";
import { Fault } from "../../src/runtime/fault.ts";
import { serverCommand } from "./connection.ts";

const DEADLINE_MS = 10_000;

export const healthcheck = serverCommand({
  summary: "Determines server health status",
  flags: {
    shallow: { type: "bool", doc: "Perform a less stringent health check" },
    verbose: { type: "bool", doc: "Print verbose information" },
  },
  examples: ["healthcheck", "healthcheck -verbose"],
  async run({ flags, io, api }) {
    if (flags.verbose) io.stdout.write("Checking server health...\n");
    const status = await api
      .client(HealthApi)
      .Check({}, { deadlineMs: DEADLINE_MS })
      .then((answer) => answer.status)
      .catch((error: unknown) => {
        const fault = Fault.from(error);
        if (flags.verbose) io.stderr.write(`Failed to check health: ${fault.message}\n`);
        const hint = fault.hint ?? "run it again with -verbose for the reason";
        throw new Fault("unavailable", "server is unhealthy: unable to determine health", {
          code: "unhealthy",
          hint,
          cause: error,
        });
      });
    if (status !== "SERVING") {
      throw new Fault("unavailable", `server is unhealthy: server returned status ${JSON.stringify(status)}`, {
        code: "unhealthy",
      });
    }
    io.stdout.write("Server is healthy.\n");
  },
});
