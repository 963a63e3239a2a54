import { escapeHtml, protoJson } from "../rpc/proto-json.ts";
import type { Clock } from "../runtime/clock.ts";
import type { Fault } from "../runtime/fault.ts";
import type { OutputFormat } from "../runtime/flags.ts";
import type { Io } from "../runtime/terminal.ts";
import { printable, renderTable, type Table } from "./table.ts";

/** What a command found, in every form it can be printed in. */
export interface Answer {
  /** `json` and `yaml` print it whole. */
  readonly message: object;
  /** Fields of the message keep their order, as those of SPIRE's own structures do. Default: sorted by name. */
  readonly ordered?: true;
  /** SPIRE's text, on standard output and error. */
  pretty(io: Io): void;
  /** Without one, `table` and `wide` print SPIRE's text. */
  readonly table?: Table;
  /** Something was refused: thrown after printing. `json` leaves it to the message and to status 0, as SPIRE does. */
  readonly failure?: Fault | undefined;
}

export interface Printing {
  readonly io: Io;
  readonly output: OutputFormat;
  readonly clock: Clock;
}

/** Throws the answer's failure. */
export async function printAnswer(answer: Answer, { io, output, clock }: Printing): Promise<void> {
  switch (output) {
    case "json":
      io.stdout.write(`${jsonOf(answer)}\n`);
      return;
    case "yaml": {
      const { yamlText } = await import("../runtime/yaml.ts");
      io.stdout.write(yamlText(JSON.parse(jsonOf(answer))));
      break;
    }
    case "pretty":
      answer.pretty(guarded(io));
      break;
    default: {
      const { isTTY, columns } = io.stdout;
      const wide = output === "wide";
      // A terminal that does not know its width says 0.
      const width = isTTY === true && !wide ? columns || undefined : undefined;
      if (answer.table === undefined) answer.pretty(guarded(io));
      else io.stdout.write(renderTable(answer.table, { wide, width, now: clock.now() }));
    }
  }
  if (answer.failure !== undefined) throw answer.failure;
}

/** On a terminal, what another party wrote must not steer it; elsewhere every byte stays, as SPIRE prints it. */
function guarded(io: Io): Io {
  if (io.stdout.isTTY !== true) return io;
  const { stdout } = io;
  return { ...io, stdout: { isTTY: true, write: (text) => stdout.write(printable(text, "\n\t")) } };
}

/** As `-output json` prints it. */
export function jsonOf({ message, ordered }: Answer): string {
  return ordered === true ? escapeHtml(JSON.stringify(message)) : protoJson(message);
}
