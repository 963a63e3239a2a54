const FORMAT = /^(\d{4})-(\d{2})-(\d{2}) (\d{2}):(\d{2}):(\d{2}) ([+-])(\d{2})(\d{2}) [+-]\d{2}$/;

/**
 * Reads SPIRE's text time `2006-01-02 15:04:05 -0700 -07`. Undefined for anything else: the filter then does not apply,
 * as in SPIRE.
 */
export function parseExpiresBefore(text: string): Date | undefined {
  const parts = FORMAT.exec(text);
  if (parts === null) return undefined;
  const [year, month, day, hour, minute, second] = parts.slice(1, 7).map(Number) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  const local = new Date(Date.UTC(year, month - 1, day, hour, minute, second));
  const same =
    local.getUTCMonth() === month - 1 &&
    local.getUTCDate() === day &&
    local.getUTCHours() === hour &&
    local.getUTCMinutes() === minute;
  if (!same) return undefined;
  const offset = (Number(parts[8]) * 60 + Number(parts[9])) * (parts[7] === "-" ? -1 : 1);
  return new Date(local.getTime() - offset * 60_000);
}
