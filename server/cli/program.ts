import { completionCommands } from "../../src/cli/completion.ts";
import { fixOf } from "../../src/cli/error-codes.ts";
import { errorsCommand } from "../../src/cli/errors.ts";
import { loggerCommands } from "../../src/cli/logger.ts";
import { ServerLoggerApi } from "../../src/rpc/protos.ts";
import type { Program } from "../../src/runtime/cli.ts";
import { packageVersion } from "../../src/runtime/version.ts";
import { agentCommands } from "./agent.ts";
import { localAuthorityCommands } from "./authority.ts";
import { bundleCommands } from "./bundle.ts";
import { serverEndpoint } from "./connection.ts";
import { datastoreCommands } from "./datastore.ts";
import { debugCommands } from "./debug.ts";
import { entryCommands } from "./entry.ts";
import { federationCommands } from "./federation.ts";
import { healthcheck } from "./health.ts";
import { jwtCommands } from "./jwt.ts";
import { serverLive } from "./live.ts";
import { run, validate } from "./run.ts";
import { tokenCommands } from "./token.ts";
import { upstreamAuthorityCommands } from "./upstream-authority.ts";
import { witCommands } from "./wit.ts";
import { x509Commands } from "./x509.ts";

/** The `steeple-server` command line. `wit` is there when the environment asks for it, as in SPIRE. */
export function serverProgram(env: Readonly<Record<string, string | undefined>>): Program {
  const experimental = (env["SPIRE_SERVER_FFLAGS"] ?? "").split(" ").includes("wit-svid");
  const program: Program = {
    name: "steeple-server",
    version: packageVersion(),
    fixOf,
    summary: "The Steeple server: attests nodes, holds registration entries and signs SVIDs.",
    commands: {
      agent: agentCommands,
      bundle: bundleCommands,
      ...completionCommands(() => program, serverLive),
      datastore: datastoreCommands,
      debug: debugCommands,
      entry: entryCommands,
      errors: errorsCommand,
      federation: federationCommands,
      healthcheck,
      jwt: jwtCommands,
      localauthority: localAuthorityCommands,
      logger: loggerCommands(serverEndpoint, (api) => api.client(ServerLoggerApi)),
      run,
      token: tokenCommands,
      upstreamauthority: upstreamAuthorityCommands,
      validate,
      ...(experimental ? { wit: witCommands } : {}),
      x509: x509Commands,
    },
  };
  return program;
}
