import { setFlagsFromString } from "node:v8";
import { runCommandLine } from "../src/runtime/cli.ts";
import { runProgram } from "../src/runtime/process.ts";
import { processIo } from "../src/runtime/terminal.ts";
import { serverProgram } from "./cli/program.ts";

// By itself V8 lets garbage grow to three times what is in use: with a million entries that is half a gigabyte, and a pause
// of 50 ms and more whenever it is collected. The work is the same, in smaller parts.
setFlagsFromString("--heap-growing-percent=60");

await runProgram((signal) =>
  runCommandLine(serverProgram(process.env), { args: process.argv.slice(2), io: processIo(), signal }),
);
