import { runCommandLine } from "../src/runtime/cli.ts";
import { runProgram } from "../src/runtime/process.ts";
import { processIo } from "../src/runtime/terminal.ts";
import { serverProgram } from "./cli/program.ts";

await runProgram((signal) =>
  runCommandLine(serverProgram(process.env), { args: process.argv.slice(2), io: processIo(), signal }),
);
