import type { Program } from "../../src/runtime/cli.ts";
import { packageVersion } from "../../src/runtime/version.ts";
import { debugCommands, loggerCommands } from "./admin.ts";
import { apiCommands } from "./api.ts";
import { healthcheck } from "./health.ts";
import { run, validate } from "./run.ts";

/** The `steeple-agent` command line. */
export function agentProgram(): Program {
  return {
    name: "steeple-agent",
    version: packageVersion(),
    summary: "The Steeple agent: attests workloads on this machine and serves their identities.",
    commands: { api: apiCommands, debug: debugCommands, healthcheck, logger: loggerCommands, run, validate },
  };
}
