import { command } from "../runtime/cli.ts";
import { systemClock } from "../runtime/clock.ts";
import { Fault } from "../runtime/fault.ts";
import { outputFlag } from "../runtime/flags.ts";
import { nearestName } from "../runtime/nearest.ts";
import { ERROR_CODES, type ErrorCode } from "./error-codes.ts";
import { printAnswer } from "./output.ts";

/** `errors` and `errors CODE`: what a code at the end of an error means. */
export const errorsCommand = command({
  summary: "Explains the code of an error, or lists all codes",
  flags: {
    markdown: { type: "bool", doc: "Print the reference page of all codes, as Markdown" },
    output: outputFlag,
  },
  operands: "[CODE]",
  examples: ["errors", "errors join-token-used"],
  async run({ flags, args, io }) {
    if (flags.markdown) return void io.stdout.write(errorReference());
    const codes = args[0] === undefined ? ERROR_CODES : [codeNamed(args[0])];
    const answer = {
      message: { codes },
      ordered: true,
      pretty: () => void io.stdout.write(codes.map(textOf).join("\n")),
      table: {
        columns: [{ title: "CODE" }, { title: "CAUSE" }, { title: "FIX" }],
        rows: codes.map(({ code, cause, fix }) => [code, cause, fix]),
      },
    } as const;
    await printAnswer(answer, { io, output: flags.output, clock: systemClock });
  },
});

function textOf({ code, cause, fix }: ErrorCode): string {
  return `${code}\n  ${cause}\n  ${fix}\n`;
}

function codeNamed(name: string): ErrorCode {
  const found = ERROR_CODES.find(({ code }) => code === name);
  if (found !== undefined) return found;
  const nearest = nearestName(
    name,
    ERROR_CODES.map(({ code }) => code),
  );
  throw new Fault("not_found", `there is no error code ${JSON.stringify(name)}`, {
    code: "error-code-unknown",
    hint: nearest === undefined ? "errors lists all codes" : `did you mean "${nearest}"?`,
  });
}

/** The page of all codes. */
export function errorReference(): string {
  const rows = ERROR_CODES.map(({ code, cause, fix }) => `| \`${code}\` | ${cause} | ${fix} |\n`);
  return `# Error codes

Every error of \`steeple-server\` and \`steeple-agent\` ends with a line \`Code: …\`, and every status they send has the same
word as the \`reason\` of its \`google.rpc.ErrorInfo\`. Codes stay as they are from version to version; messages may change.
This page is printed by \`steeple-server errors -markdown\`.

| code | what happened | what to do |
|---|---|---|
${rows.join("")}`;
}
