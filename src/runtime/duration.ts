const UNIT_MS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  μs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};
const DURATION = /^[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+$/;
const PART = /(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)/g;
/** What Go's 64-bit nanoseconds hold, in milliseconds. */
const LONGEST_MS = 9_223_372_036_854;

/** Milliseconds of a Go duration such as `1h30m`, `500ms` or `0`; undefined when it isn't one. */
export function parseDuration(text: string): number | undefined {
  if (text === "0" || text === "+0" || text === "-0") return 0;
  if (text.length > 64 || !DURATION.test(text)) return undefined;
  let total = 0;
  for (const [, amount = "", unit = ""] of text.matchAll(PART)) total += Number(amount) * (UNIT_MS[unit] ?? Number.NaN);
  if (total > LONGEST_MS) return undefined;
  const nanoseconds = Math.round(total * 1e6);
  return (text.startsWith("-") ? -nanoseconds : nanoseconds) / 1e6;
}

/** As Go prints a duration: `1h30m0s`, `1.5s`, `200ms`, `0s`. */
export function formatDuration(ms: number): string {
  if (ms < 0) return `-${formatDuration(-ms)}`;
  if (ms === 0) return "0s";
  if (ms < 1) return ms < 0.001 ? `${round(ms * 1e6)}ns` : `${round(ms * 1e3)}µs`;
  if (ms < 1000) return `${round(ms)}ms`;
  const hours = Math.floor(ms / 3_600_000);
  const minutes = Math.floor((ms % 3_600_000) / 60_000);
  const seconds = round((ms % 60_000) / 1000);
  if (hours > 0) return `${hours}h${minutes}m${seconds}s`;
  return minutes > 0 ? `${minutes}m${seconds}s` : `${seconds}s`;
}

/** `formatDuration` in whole seconds and without parts that are zero at its end: `24h`, `1h30m`. */
export function formatRoundDuration(ms: number): string {
  const text = formatDuration(Math.trunc(ms / 1000) * 1000);
  return text.replace(/m0s$/, "m").replace(/h0m$/, "h");
}

function round(value: number): string {
  return String(Number(value.toFixed(9)));
}
