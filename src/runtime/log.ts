import { closeSync, openSync } from "node:fs";
import { basename } from "node:path";
import type { Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import { getCallSites } from "node:util";
import { type LoggerOptions, pino, destination as pinoDestination } from "pino";
import { type Clock, systemClock } from "./clock.ts";
import { Fault, messageOf } from "./fault.ts";
import { goDateTime, quoteWhenNeeded, rfc3339 } from "./logfmt.ts";
import { type Metrics, noMetrics } from "./metrics.ts";

/** A number in JSON, its name in text, as Go's logs print such numbers. */
export interface NamedNumber {
  readonly number: number;
  readonly name: string;
}

export type LogValue = string | number | boolean | bigint | undefined | Date | readonly string[] | Error | NamedNumber;

/** Fields of a log line, under SPIRE's names (snake_case). Never a key, a token or a selector unless asked for. */
export type LogFields = Readonly<Record<string, LogValue>>;

export interface Log {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** A log whose every line carries these fields; `subsystem_name` names a part. */
  child(fields: LogFields): Log;
  /** Where the same events are counted. */
  readonly metrics: Metrics;
  /** The same log, counting there. */
  measured(metrics: Metrics): Log;
}

/** SPIRE's levels, most severe first. */
export const LOG_LEVELS = ["panic", "fatal", "error", "warn", "info", "debug", "trace"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export const LOG_FORMATS = ["text", "json"] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

/** What a configuration says about logging; goes to `createLog` as it is. */
export interface LogSettings {
  /** One of `LOG_LEVELS` in any case; `warning` is `warn`. */
  readonly level: string;
  readonly format: LogFormat;
  /** Default: standard output. */
  readonly file?: string;
  /** Adds `file` and `func` of the caller to every line. */
  readonly sourceLocation?: boolean;
  /** Fractions of a second in text lines, as SPIRE writes when `log_format` is set; JSON lines always have them. */
  readonly fractionalSeconds?: boolean;
}

export interface LogOptions extends LogSettings {
  /** Instead of standard output or a file. */
  readonly stream?: Writable;
  readonly clock?: Clock;
}

/** Owner's view of a log. Disposal writes out what is pending and closes the file. */
export interface LogHandle extends Log, AsyncDisposable {
  /** Takes effect at once, for every child too. */
  level: LogLevel;
  /** Opens the file anew, for log rotation; nothing for other outputs. SIGUSR2 does the same while a file is open. */
  reopen(): void;
}

/** A level by SPIRE's names, in any case. */
export function parseLogLevel(text: string): LogLevel {
  const name = text.toLowerCase();
  const level = LOG_LEVELS.find((known) => known === (name === "warning" ? "warn" : name));
  if (level !== undefined) return level;
  throw new Fault("invalid", `not a valid log level: ${JSON.stringify(text)}`, {
    code: "log-level-unknown",
    hint: `use one of ${LOG_LEVELS.join(", ")}`,
  });
}

/** What may wait for a slow reader of the log; more is dropped, because a log must not stop the program. */
const LONGEST_BACKLOG = 16 * 1024 * 1024;
const RESERVED_KEYS = new Set(["time", "level", "msg"]);
const REOPEN_SIGNAL = "SIGUSR2";

/** Opens the program's log. Throws `invalid` for a level that does not exist, `unavailable` for a file that can't be opened. */
export function createLog(options: LogOptions): LogHandle {
  const sink = openSink(options);
  const clock = options.clock ?? systemClock;
  const fraction = options.format === "json" || options.fractionalSeconds === true;
  const settings: LoggerOptions<"panic"> = {
    level: parseLogLevel(options.level),
    customLevels: { panic: 70 },
    messageKey: "msg",
    base: null,
    timestamp: () => `,"time":"${rfc3339(clock.now(), fraction)}"`,
    formatters: { level: (label) => ({ level: levelName(label) }) },
  };
  const logger = pino(settings, options.format === "json" ? sink : new TextLines(sink));
  const spelling = SPELLINGS[options.format];
  return new RootLog({ logger, sink, withSource: options.sourceLocation === true, spelling, metrics: noMetrics });
}

interface Sink {
  write(line: string): void;
  reopen(): void;
  close(): Promise<void>;
}

interface PinoLogger {
  level: string;
  readonly levels: { readonly labels: Readonly<Record<number, string>> };
  isLevelEnabled(level: string): boolean;
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

interface LogState {
  readonly logger: PinoLogger;
  readonly sink: Sink;
  readonly withSource: boolean;
  readonly spelling: Spelling;
  readonly metrics: Metrics;
}

/** How a format writes what the two do not write alike. */
interface Spelling {
  readonly date: (value: Date) => string;
  readonly named: (value: NamedNumber) => string | number;
}

const SPELLINGS: Readonly<Record<LogFormat, Spelling>> = {
  json: { date: (value) => rfc3339(value, true), named: ({ number }) => number },
  text: { date: goDateTime, named: ({ name }) => name },
};

type Severity = "debug" | "info" | "warn" | "error";
type PlainValue = string | number | boolean | readonly string[];

class PinoLog implements Log {
  readonly #state: LogState;
  readonly #fields: LogFields;

  constructor(state: LogState, fields: LogFields) {
    this.#state = state;
    this.#fields = fields;
  }

  debug(message: string, fields?: LogFields): void {
    this.#write("debug", message, fields);
  }

  info(message: string, fields?: LogFields): void {
    this.#write("info", message, fields);
  }

  warn(message: string, fields?: LogFields): void {
    this.#write("warn", message, fields);
  }

  error(message: string, fields?: LogFields): void {
    this.#write("error", message, fields);
  }

  child(fields: LogFields): Log {
    return new PinoLog(this.#state, { ...this.#fields, ...fields });
  }

  get metrics(): Metrics {
    return this.#state.metrics;
  }

  measured(metrics: Metrics): Log {
    return new PinoLog({ ...this.#state, metrics }, this.#fields);
  }

  #write(severity: Severity, message: string, fields: LogFields | undefined): void {
    const { logger, withSource, spelling } = this.#state;
    if (!logger.isLevelEnabled(severity)) return;
    const all = { ...this.#fields, ...fields, ...(withSource ? callerFields() : undefined) };
    logger[severity](plainFields(all, spelling), message);
  }
}

class RootLog extends PinoLog implements LogHandle {
  readonly #logger: PinoLogger;
  readonly #sink: Sink;

  constructor(state: LogState) {
    super(state, {});
    this.#logger = state.logger;
    this.#sink = state.sink;
  }

  get level(): LogLevel {
    return parseLogLevel(this.#logger.level);
  }

  set level(level: LogLevel) {
    this.#logger.level = level;
  }

  reopen(): void {
    this.#sink.reopen();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#sink.close();
  }
}

const PINO_METADATA: unique symbol = Symbol.for("pino.metadata");

/** Writes lines as logrus' text formatter does. pino hands over the parts of the last line through these members. */
class TextLines {
  readonly [PINO_METADATA] = true;
  readonly #sink: Sink;
  lastLevel = 0;
  lastMsg = "";
  lastObj: Readonly<Record<string, PlainValue>> = {};
  /** With its quotes. */
  lastTime = "";
  lastLogger: PinoLogger | undefined;

  constructor(sink: Sink) {
    this.#sink = sink;
  }

  write(_json: string): void {
    const level = levelName(this.lastLogger?.levels.labels[this.lastLevel] ?? "info");
    let line = `time=${this.lastTime} level=${level}`;
    if (this.lastMsg !== "") line += ` msg=${quoteWhenNeeded(this.lastMsg)}`;
    for (const [key, value] of Object.entries(this.lastObj)) line += ` ${key}=${quoteWhenNeeded(textOf(value))}`;
    this.#sink.write(`${line}\n`);
  }
}

function textOf(value: PlainValue): string {
  return typeof value === "object" ? `[${value.join(" ")}]` : String(value);
}

function levelName(label: string): string {
  return label === "warn" ? "warning" : label;
}

/** Keys sorted, names that clash with the line's own moved away, values reduced to what both formats can print. */
function plainFields(fields: LogFields, spelling: Spelling): Record<string, PlainValue> {
  const plain: [string, PlainValue][] = [];
  for (const [key, value] of Object.entries(fields)) {
    if (value === undefined) continue;
    const name = RESERVED_KEYS.has(key) ? `fields.${key}` : key;
    plain.push([name, plainValue(value, spelling)]);
  }
  return Object.fromEntries(plain.sort(([a], [b]) => (a < b ? -1 : 1)));
}

function plainValue(value: Exclude<LogValue, undefined>, spelling: Spelling): PlainValue {
  if (value instanceof Date) return spelling.date(value);
  if (value instanceof Error) return messageOf(value);
  if (typeof value === "object" && "number" in value) return spelling.named(value);
  if (typeof value !== "bigint") return value;
  return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
}

/** Of the call stack that `callerFields` sees: itself, `#write`, the method of the level. */
const OWN_FRAMES = 3;

function callerFields(): LogFields {
  const site = getCallSites(OWN_FRAMES + 1)[OWN_FRAMES];
  if (site === undefined) return {};
  const path = site.scriptName.startsWith("file:") ? fileURLToPath(site.scriptName) : site.scriptName;
  return {
    file: `${basename(path)}:${site.lineNumber}`,
    func: site.functionName === "" ? undefined : site.functionName,
  };
}

function openSink(options: LogOptions): Sink {
  const { stream, file } = options;
  if (stream !== undefined) {
    return { write: (line) => void stream.write(line), reopen: () => undefined, close: async () => undefined };
  }
  if (file !== undefined) probe(file);
  const out = pinoDestination({ dest: file ?? 1, sync: false, append: true, mode: 0o640, maxLength: LONGEST_BACKLOG });
  let isOpen = true;
  out.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") isOpen = false;
    process.stderr.write(`Failed to write to log, ${messageOf(error)}\n`);
  });
  const reopen = (): void => {
    if (file !== undefined && isOpen) out.reopen();
  };
  if (file !== undefined) process.on(REOPEN_SIGNAL, reopen);
  const close = async (): Promise<void> => {
    process.off(REOPEN_SIGNAL, reopen);
    if (!isOpen) return;
    isOpen = false;
    await ended(out);
  };
  const write = (line: string): void => {
    if (isOpen) out.write(line);
  };
  return { write, reopen, close };
}

/** Resolves when everything is written, or when it can't be. */
function ended(out: ReturnType<typeof pinoDestination>): Promise<void> {
  return new Promise((resolve) => {
    out.once("close", () => resolve());
    out.once("error", () => resolve());
    out.end();
  });
}

/** Fails early: the destination itself opens the file later. */
function probe(file: string): void {
  try {
    closeSync(openSync(file, "a", 0o640));
  } catch (cause) {
    throw new Fault("unavailable", `could not open log file: ${messageOf(cause)}`, {
      code: "log-file-unavailable",
      hint: "check that the directory of log_file exists and can be written to",
      cause,
    });
  }
}
