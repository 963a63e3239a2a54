import { runProgram } from "../../src/runtime/process.ts";
import { processIo } from "../../src/runtime/terminal.ts";
import { bench } from "./command.ts";

await runProgram((signal) => bench(process.argv.slice(2), { io: processIo(), signal }));
