/** A time in UTC as Go prints it: `2026-11-22 02:17:17 +0000 UTC`. */
export function goUtcTime(at: Date): string {
  const text = at.toISOString();
  return `${text.slice(0, 10)} ${text.slice(11, 19)} +0000 UTC`;
}
