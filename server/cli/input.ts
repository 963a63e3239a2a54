import { readFile } from "node:fs/promises";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { type Io, readStdin } from "../../src/runtime/terminal.ts";

const MAX_STDIN_BYTES = 64 * 1024 * 1024;

/** A file's text, or standard input for `-`. Throws `invalid`. */
export async function readInput(path: string, io: Io): Promise<string> {
  if (path !== "-") {
    return readFile(path, "utf8").catch((error: unknown) => {
      throw new Fault("invalid", messageOf(error), {
        code: "input-unreadable",
        hint: "give the path of a readable file, or - for standard input",
      });
    });
  }
  const text = await readStdin(io, MAX_STDIN_BYTES);
  if (text !== undefined) return text;
  throw new Fault("invalid", "standard input is larger than 64 MiB", {
    code: "input-too-large",
    hint: "split it into several calls",
  });
}

/** A flag without which the command means nothing. */
export function usage(message: string, hint: string): Fault {
  return new Fault("invalid", message, { code: "flag-missing", hint });
}

/** For a result that the server has to give and did not. */
export function incomplete(what: string): Fault {
  return new Fault("internal", what, {
    code: "answer-incomplete",
    hint: "see the server's log; server and command may be of different versions",
  });
}
