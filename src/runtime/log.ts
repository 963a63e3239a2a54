/** Fields of a log line, under SPIRE's names (snake_case). Never a key, a token or a selector unless asked for. */
export type LogFields = Readonly<Record<string, string | number | boolean | bigint | undefined | readonly string[] | Error>>;

export interface Log {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** A log whose every line carries these fields; `subsystem_name` names a part. */
  child(fields: LogFields): Log;
}
