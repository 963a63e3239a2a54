import type { Log, LogFields } from "../../src/runtime/log.ts";
import { type Metrics, noMetrics } from "../../src/runtime/metrics.ts";

export interface LogLine {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly message: string;
  readonly fields: LogFields;
}

/** Keeps every line, with the fields of its log. */
export class RecordingLog implements Log {
  readonly lines: LogLine[];
  readonly metrics: Metrics;
  readonly #fields: LogFields;

  constructor(lines: LogLine[] = [], fields: LogFields = {}, metrics: Metrics = noMetrics) {
    this.lines = lines;
    this.metrics = metrics;
    this.#fields = fields;
  }

  debug = (message: string, fields?: LogFields): void => this.#add("debug", message, fields);
  info = (message: string, fields?: LogFields): void => this.#add("info", message, fields);
  warn = (message: string, fields?: LogFields): void => this.#add("warn", message, fields);
  error = (message: string, fields?: LogFields): void => this.#add("error", message, fields);

  child(fields: LogFields): Log {
    return new RecordingLog(this.lines, { ...this.#fields, ...fields }, this.metrics);
  }

  measured(metrics: Metrics): RecordingLog {
    return new RecordingLog(this.lines, this.#fields, metrics);
  }

  #add(level: LogLine["level"], message: string, fields: LogFields = {}): void {
    this.lines.push({ level, message, fields: { ...this.#fields, ...fields } });
  }
}
