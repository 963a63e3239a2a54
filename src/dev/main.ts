import { command, runCommandLine } from "../runtime/cli.ts";
import { Fault } from "../runtime/fault.ts";
import { runProgram } from "../runtime/process.ts";
import { processIo } from "../runtime/terminal.ts";
import { packageVersion } from "../runtime/version.ts";
import { parseTrustDomain } from "../spiffe/id.ts";
import { runDev } from "./start.ts";
import { tpmCommands } from "./tpm.ts";

/** Shorter, and the rotation would come before the reader has read the first lines. */
const MIN_TTL_SECONDS = 10;

const dev = command({
  summary: "Runs a server and an agent on this machine, with an identity for your own user",
  flags: {
    dataDir: {
      type: "string",
      doc: "Folder to keep everything in; without it a fresh one is made and removed at the end",
    },
    trustDomain: { type: "string", doc: "Name of the trust domain", default: "dev.local" },
    ttl: { type: "duration", doc: "Lifetime of your X.509-SVIDs", default: "30s" },
    once: { type: "bool", doc: "End with status 0 after the first rotation" },
  },
  examples: ["dev", "dev --once", "dev --data-dir ~/steeple --ttl 1h"],
  async run({ flags, io, signal }) {
    const ttlSeconds = Math.floor(flags.ttl / 1000);
    if (ttlSeconds < MIN_TTL_SECONDS)
      throw new Fault("invalid", `-ttl must be at least ${MIN_TTL_SECONDS}s`, { code: "dev-ttl" });
    await runDev(
      { trustDomain: parseTrustDomain(flags.trustDomain), dataDir: flags.dataDir, ttlSeconds, once: flags.once },
      io,
      signal,
    );
  },
});

const program = {
  name: "steeple",
  version: packageVersion(),
  summary:
    "Steeple, workload identity for one machine at a time. steeple-server and steeple-agent are the programs for a fleet.",
  commands: { dev, tpm: tpmCommands },
};

await runProgram((signal) => runCommandLine(program, { args: process.argv.slice(2), io: processIo(), signal }), {
  drainMs: 20_000,
});
