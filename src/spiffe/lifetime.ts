const DAY_MS = 24 * 60 * 60 * 1000;
/** Share of the half life by which renewals are spread to either side. */
const JITTER = 0.1;

/** Agents ask for the bundle every 5 s: what was published this long ago, they hold. */
export const BUNDLE_SPREAD_MS = 6000;

/** When to renew: at half of the lifetime, +-10 % of that half by `random`, which is in [0, 1). */
export function renewAt(notBefore: Date, notAfter: Date, random: number): Date {
  const half = (notAfter.getTime() - notBefore.getTime()) / 2;
  return new Date(notAfter.getTime() - half * (1 + JITTER * (2 * random - 1)));
}

/** True from `renewAt` on, and always once it has expired. */
export function shouldRotate(now: Date, notBefore: Date, notAfter: Date, random: number): boolean {
  return now >= renewAt(notBefore, notAfter, random) || now >= notAfter;
}

/** When the next authority is prepared: half of the lifetime, but no more than 30 days, before its end. */
export function prepareAt(notBefore: Date, notAfter: Date): Date {
  return before(notBefore, notAfter, { divisor: 2, mostMs: 30 * DAY_MS });
}

/** When the prepared authority takes over: a sixth of the lifetime, but no more than 7 days, before its end. */
export function activateAt(notBefore: Date, notAfter: Date): Date {
  return before(notBefore, notAfter, { divisor: 6, mostMs: 7 * DAY_MS });
}

function before(
  notBefore: Date,
  notAfter: Date,
  { divisor, mostMs }: { readonly divisor: number; readonly mostMs: number },
): Date {
  const lifetime = notAfter.getTime() - notBefore.getTime();
  return new Date(notAfter.getTime() - Math.min(lifetime / divisor, mostMs));
}
