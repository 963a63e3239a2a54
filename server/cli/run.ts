import { PassThrough } from "node:stream";
import { command } from "../../src/runtime/cli.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault, isFault } from "../../src/runtime/fault.ts";
import type { FlagSpecs, FlagValues } from "../../src/runtime/flags.ts";
import { createLog } from "../../src/runtime/log.ts";
import { raiseUmask } from "../../src/runtime/process.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { packageVersion } from "../../src/runtime/version.ts";
import { loadServerConfig, type ServerConfig, serverFlags, serverReference } from "../config.ts";

const configFlags = {
  config: {
    type: "string",
    doc: "Path to a configuration file: HCL, or YAML or JSON by its ending (default conf/server/server.conf, if it exists)",
  },
  expandEnv: { type: "bool", doc: "Expand environment variables in the configuration file" },
  ...serverFlags,
} as const satisfies FlagSpecs;

function load(flags: FlagValues<typeof configFlags>, io: Io): ServerConfig {
  return loadServerConfig({ path: flags.config, expandEnv: flags.expandEnv, flags, env: io.env });
}

export const run = command({
  summary: "Runs the server",
  flags: configFlags,
  examples: ["run", "run -config server.conf", "run -config server.yaml -expandEnv -logLevel debug"],
  async run({ flags, io, signal }) {
    const config = load(flags, io);
    await using log = createLog(config.log);
    raiseUmask(log);
    try {
      // Only running needs the whole program; every other command starts quicker without it.
      const { runServer } = await import("../run.ts");
      await runServer({ config, log, logger: log, clock: systemClock, version: packageVersion(), signal });
    } catch (error) {
      if (signal.aborted && isFault(error, "cancelled")) return;
      log.error("Server crashed", { error: Fault.from(error) });
      throw error;
    }
    log.info("Server stopped gracefully");
  },
});

export const validate = command({
  summary: "Validates a server configuration file",
  flags: {
    ...configFlags,
    explain: { type: "bool", doc: "Print every key with its type, default and meaning, as Markdown" },
  },
  examples: ["validate -config server.conf", "validate -explain"],
  async run({ flags, io }) {
    if (flags.explain) return void io.stdout.write(serverReference());
    try {
      const config = load(flags, io);
      const { checkNodeAttestors } = await import("../run.ts");
      await using log = createLog({ ...config.log, stream: new PassThrough().resume() });
      await checkNodeAttestors({ config, log, clock: systemClock });
      for (const warning of config.warnings) io.stderr.write(`Warning: ${warning}\n`);
    } catch (error) {
      const fault = Fault.from(error);
      io.stderr.write(`SPIRE server configuration file is invalid: ${fault.message}\n`);
      if (fault.hint !== undefined) io.stderr.write(`Hint: ${fault.hint}\n`);
      return 1;
    }
    io.stdout.write("SPIRE server configuration file is valid.\n");
    return 0;
  },
});
