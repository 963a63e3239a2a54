import { Fault } from "../runtime/fault.ts";
import { LOG_LEVELS, type Log, type LogLevel } from "../runtime/log.ts";
import type { Logger } from "./gen/spire/api/types/Logger.ts";

type WireLevel = NonNullable<Exclude<Logger["current_level"], number>>;

/** A program's log level, now and at start, as both Logger services tell it. */
export function loggerToProto(current: LogLevel, launch: LogLevel): Logger {
  return { current_level: wireLevel(current), launch_level: wireLevel(launch) };
}

/** Throws `invalid`, in SPIRE's words. Numbers that the enumeration does not name arrive as they are. */
export function logLevelFromProto(level: unknown): LogLevel {
  if (level === "UNSPECIFIED") throw unusable("newLevel value cannot be LogLevel_UNSPECIFIED");
  const known = LOG_LEVELS.find((name) => wireLevel(name) === level);
  if (known === undefined) throw unusable("unsupported log level");
  return known;
}

// Events of both Logger services, in SPIRE's words.

export function loggerAsked(log: Log): void {
  log.info("GetLogger Called");
}

export function logLevelSet(log: Log, level: LogLevel): void {
  log.info("SetLogLevel Called", { new_log_level: levelText(level) });
}

export function logLevelReset(log: Log, launch: LogLevel): void {
  log.info("ResetLogLevel Called", { launch_log_level: levelText(launch) });
}

/** As logrus spells it. */
function levelText(level: LogLevel): string {
  return level === "warn" ? "warning" : level;
}

function wireLevel(level: LogLevel): WireLevel {
  return level.toUpperCase() as WireLevel;
}

function unusable(message: string): Fault {
  return new Fault("invalid", message, { code: "log-level-unknown", hint: `use one of ${LOG_LEVELS.join(", ")}` });
}
