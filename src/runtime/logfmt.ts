const BARE = /^[a-zA-Z0-9\-._/@^+]*$/;
const UNPRINTABLE = /[^\p{L}\p{M}\p{N}\p{P}\p{S} ]|["\\]/gu;
const SHORT_ESCAPES: Readonly<Record<string, string>> = {
  '"': '\\"',
  "\\": "\\\\",
  "\u0007": "\\a",
  "\b": "\\b",
  "\f": "\\f",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\v": "\\v",
};

/** A value of a text log line: bare when every character is harmless, otherwise quoted as Go's `%q` does. */
export function quoteWhenNeeded(text: string): string {
  return BARE.test(text) ? text : quote(text);
}

/** Go's `%q`: nothing in the result can end the line, end the quotes or steer a terminal. */
export function quote(text: string): string {
  return `"${text.toWellFormed().replace(UNPRINTABLE, escapeOne)}"`;
}

function escapeOne(character: string): string {
  const short = SHORT_ESCAPES[character];
  if (short !== undefined) return short;
  const code = character.codePointAt(0) ?? 0;
  if (code < 0x80) return `\\x${hex(code, 2)}`;
  return code > 0xffff ? `\\U${hex(code, 8)}` : `\\u${hex(code, 4)}`;
}

function hex(code: number, width: number): string {
  return code.toString(16).padStart(width, "0");
}

/** Go's RFC 3339 in local time, with the fraction of the second when asked for and not zero. */
export function rfc3339(time: Date, fraction: boolean): string {
  const zone = offset(time, ":");
  return `${date(time)}T${clockTime(time)}${fraction ? fractionOf(time) : ""}${zone === "+00:00" ? "Z" : zone}`;
}

/** Go's default print of a time, in local time: `2026-11-22 01:41:09 +0000 UTC`. */
export function goDateTime(time: Date): string {
  return `${date(time)} ${clockTime(time)}${fractionOf(time)} ${offset(time, "")} ${zoneName(time)}`;
}

function date(time: Date): string {
  return `${pad(time.getFullYear(), 4)}-${pad(time.getMonth() + 1, 2)}-${pad(time.getDate(), 2)}`;
}

function clockTime(time: Date): string {
  return `${pad(time.getHours(), 2)}:${pad(time.getMinutes(), 2)}:${pad(time.getSeconds(), 2)}`;
}

function fractionOf(time: Date): string {
  const fraction = pad(time.getMilliseconds(), 3).replace(/0+$/, "");
  return fraction === "" ? "" : `.${fraction}`;
}

function offset(time: Date, separator: string): string {
  const minutes = -time.getTimezoneOffset();
  const size = Math.abs(minutes);
  return `${minutes < 0 ? "-" : "+"}${pad(Math.floor(size / 60), 2)}${separator}${pad(size % 60, 2)}`;
}

function zoneName(time: Date): string {
  const parts = new Intl.DateTimeFormat("en-US", { timeZoneName: "short" }).formatToParts(time);
  return parts.find((part) => part.type === "timeZoneName")?.value ?? "UTC";
}

function pad(value: number, width: number): string {
  return String(value).padStart(width, "0");
}
