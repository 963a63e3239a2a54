import type { Logger__Output } from "../rpc/gen/spire/api/types/Logger.ts";
import type { LogLevel } from "../rpc/gen/spire/api/types/LogLevel.ts";
import { type CommandNode, group } from "../runtime/cli.ts";
import { Fault } from "../runtime/fault.ts";
import { type FlagSpecs, outputFlag } from "../runtime/flags.ts";
import { type Api, apiCommand, type Endpoint } from "./api-command.ts";
import type { Answer } from "./output.ts";

/** What the Logger services of server and agent have in common. */
interface LoggerClient {
  GetLogger(request: object): Promise<Logger__Output>;
  SetLogLevel(request: { readonly new_level: LogLevel }): Promise<Logger__Output>;
  ResetLogLevel(request: object): Promise<Logger__Output>;
}

/** Words of a person, and the level they stand for. */
const LEVELS: Readonly<Record<string, LogLevel>> = {
  panic: "PANIC",
  fatal: "FATAL",
  error: "ERROR",
  warn: "WARN",
  warning: "WARN",
  info: "INFO",
  debug: "DEBUG",
  trace: "TRACE",
};
const LEVEL_WORDS = Object.keys(LEVELS).filter((word) => word !== "warning");

/** `logger get`, `set` and `reset` of one program. */
export function loggerCommands<E extends FlagSpecs>(
  endpoint: Endpoint<E>,
  clientOf: (api: Api) => LoggerClient,
): CommandNode {
  const get = apiCommand(endpoint, {
    summary: "Gets the logger details",
    flags: { output: outputFlag },
    examples: ["logger get"],
    run: async ({ api }) => loggerAnswer(await api.ask(clientOf(api).GetLogger({}), "error fetching logger")),
  });
  const set = apiCommand(endpoint, {
    summary: "Sets the logger details",
    flags: {
      level: {
        type: "string",
        doc: `The new log level, one of (${LEVEL_WORDS.join(", ")})`,
        default: "",
        complete: LEVEL_WORDS,
      },
      output: outputFlag,
    },
    examples: ["logger set -level debug"],
    run: async ({ flags, api }) =>
      loggerAnswer(
        await api.ask(clientOf(api).SetLogLevel({ new_level: levelFrom(flags.level) }), "failed to set log level"),
      ),
  });
  const reset = apiCommand(endpoint, {
    summary: "Reset the logger details to launch level",
    flags: { output: outputFlag },
    examples: ["logger reset"],
    run: async ({ api }) => loggerAnswer(await api.ask(clientOf(api).ResetLogLevel({}), "failed to reset logger")),
  });
  return group("Shows and changes the log level at run time", { get, reset, set });
}

function levelFrom(word: string): LogLevel {
  const hint = `choose one of ${LEVEL_WORDS.join(", ")}`;
  if (word === "") throw new Fault("invalid", "a value (-level) must be set", { code: "flag-missing", hint });
  const name = word.toLowerCase();
  const level = Object.hasOwn(LEVELS, name) ? LEVELS[name] : undefined;
  if (level !== undefined) return level;
  throw new Fault("invalid", `the value ${JSON.stringify(word)} is not a valid setting`, {
    code: "log-level-unknown",
    hint,
  });
}

function loggerAnswer(message: Logger__Output): Answer {
  const current = levelText(message.current_level);
  const launch = levelText(message.launch_level);
  return {
    message,
    pretty: ({ stdout }) => void stdout.write(`Logger Level : ${current}\nLaunch Level : ${launch}\n\n`),
    table: { columns: [{ title: "LEVEL" }, { title: "AT LAUNCH" }], rows: [[current, launch]] },
  };
}

/** As SPIRE's logger spells levels. */
function levelText(level: string): string {
  return level === "WARN" ? "warning" : level.toLowerCase();
}
