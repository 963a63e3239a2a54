import { completionCommands } from "../../src/cli/completion.ts";
import { fixOf } from "../../src/cli/error-codes.ts";
import { errorsCommand } from "../../src/cli/errors.ts";
import type { Program } from "../../src/runtime/cli.ts";
import { packageVersion } from "../../src/runtime/version.ts";
import { debugCommands, loggerCommands } from "./admin.ts";
import { apiCommands } from "./api.ts";
import { attestationCommands } from "./attestation.ts";
import { healthcheck } from "./health.ts";
import { run, validate } from "./run.ts";

/** The `steeple-agent` command line. */
export function agentProgram(): Program {
  const program: Program = {
    name: "steeple-agent",
    version: packageVersion(),
    fixOf,
    summary: "The Steeple agent: attests workloads on this machine and serves their identities.",
    commands: {
      api: apiCommands,
      attestation: attestationCommands,
      ...completionCommands(
        () => program,
        async () => [],
      ),
      debug: debugCommands,
      errors: errorsCommand,
      healthcheck,
      logger: loggerCommands,
      run,
      validate,
    },
  };
  return program;
}
