import type { Program } from "../../src/runtime/cli.ts";
import { packageVersion } from "../../src/runtime/version.ts";
import { agentCommands } from "./agent.ts";
import { bundleCommands } from "./bundle.ts";
import { datastoreCommands } from "./datastore.ts";
import { entryCommands } from "./entry.ts";
import { healthcheck } from "./health.ts";
import { run, validate } from "./run.ts";
import { tokenCommands } from "./token.ts";
import { x509Commands } from "./x509.ts";

/** The `steeple-server` command line. */
export function serverProgram(): Program {
  return {
    name: "steeple-server",
    version: packageVersion(),
    summary: "The Steeple server: attests nodes, holds registration entries and signs SVIDs.",
    commands: {
      agent: agentCommands,
      bundle: bundleCommands,
      datastore: datastoreCommands,
      entry: entryCommands,
      healthcheck,
      run,
      token: tokenCommands,
      validate,
      x509: x509Commands,
    },
  };
}
