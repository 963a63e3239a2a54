import { open } from "node:fs/promises";
import { command, group } from "../../src/runtime/cli.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { FlagSpecs, FlagValues } from "../../src/runtime/flags.ts";
import { createLog } from "../../src/runtime/log.ts";
import type { Io } from "../../src/runtime/terminal.ts";
import { loadServerConfig, type ServerConfig } from "../config.ts";

const flags = {
  config: {
    type: "string",
    doc: "Path to the server's configuration file (default conf/server/server.conf, if it exists)",
  },
  expandEnv: { type: "bool", doc: "Expand environment variables in the configuration file" },
  file: { type: "string", doc: "File to write or read; '-' is standard output or input", default: "-" },
} as const satisfies FlagSpecs;

type Flags = FlagValues<typeof flags>;

function load({ config, expandEnv }: Flags, io: Io): ServerConfig {
  return loadServerConfig({ path: config, expandEnv, env: io.env });
}

const exportCommand = command({
  summary: "Writes everything in the datastore as JSON lines",
  description:
    "Writes everything in the datastore as JSON lines, for import into another. The file holds join tokens: keep it private. Stop the server first when its store is embedded.",
  flags,
  examples: ["datastore export -config server.conf -file steeple.jsonl"],
  async run({ flags, io }) {
    const config = load(flags, io);
    await using log = createLog({ ...config.log, level: "error" });
    const { exportDatastore } = await import("../transfer.ts");
    const lines = exportDatastore({ config, log, clock: systemClock });
    if (flags.file === "-") for await (const line of lines) io.stdout.write(`${line}\n`);
    else await writeLines(flags.file, lines);
  },
});

/** A new file of mode 0600, made only once the datastore has answered; an existing one is not overwritten. */
async function writeLines(path: string, lines: AsyncGenerator<string, void, undefined>): Promise<void> {
  try {
    const first = await lines.next();
    await using file = await open(path, "wx", 0o600).catch((error: unknown) => {
      throw new Fault("precondition", `unable to write ${path}: ${messageOf(error)}`, {
        code: "export-file",
        hint: "name a file that does not exist",
      });
    });
    if (first.done !== true) await file.write(`${first.value}\n`);
    for await (const line of lines) await file.write(`${line}\n`);
    await file.sync();
  } finally {
    await lines.return();
  }
}

const importCommand = command({
  summary: "Fills an empty datastore from an export",
  flags,
  examples: ["datastore import -config postgres.conf -file steeple.jsonl"],
  async run({ flags, io }) {
    const config = load(flags, io);
    await using log = createLog({ ...config.log, level: "error" });
    const { importDatastore } = await import("../transfer.ts");
    const input = flags.file === "-" ? io.stdin : flags.file;
    const rows = await importDatastore({ config, log, clock: systemClock }, input);
    io.stdout.write(`Imported ${rows} rows\n`);
  },
});

export const datastoreCommands = group("Moves the datastore's content from one database to another", {
  export: exportCommand,
  import: importCommand,
});
