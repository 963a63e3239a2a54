import { loggerAsked, loggerToProto, logLevelFromProto, logLevelReset, logLevelSet } from "../../src/rpc/log-level.ts";
import type { ServerLoggerApi } from "../../src/rpc/protos.ts";
import { unary } from "../../src/rpc/service.ts";
import { messageOf } from "../../src/runtime/fault.ts";
import type { Log, LogHandle, LogLevel } from "../../src/runtime/log.ts";
import { failure } from "./fail.ts";
import type { HandlersOf } from "./shapes.ts";

export interface LoggerServiceParts {
  /** Of the whole program; a new level takes effect at once. */
  readonly logger: Pick<LogHandle, "level">;
}

/** The log level of the running server. What it is now counts as the level at start. */
export function loggerService({ logger }: LoggerServiceParts): HandlersOf<typeof ServerLoggerApi> {
  const launch = logger.level;
  return {
    GetLogger: unary(async (_, { auth: { log } }) => {
      loggerAsked(log);
      return loggerToProto(logger.level, launch);
    }),
    SetLogLevel: unary(async ({ new_level }, { auth: { log } }) => {
      const level = readLevel(log, new_level);
      logLevelSet(log, level);
      logger.level = level;
      return loggerToProto(level, launch);
    }),
    ResetLogLevel: unary(async (_, { auth: { log } }) => {
      logLevelReset(log, launch);
      logger.level = launch;
      return loggerToProto(launch, launch);
    }),
  };
}

function readLevel(log: Log, level: unknown): LogLevel {
  try {
    return logLevelFromProto(level);
  } catch (error) {
    throw failure(log, "invalid", messageOf(error), error);
  }
}
