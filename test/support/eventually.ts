import { setTimeout as delay } from "node:timers/promises";

/**
 * Polls until `probe` returns something other than undefined or false, and returns it. Fails with the last error, or
 * with `what`, after `withinMs`.
 */
export async function eventually<T>(
  what: string,
  probe: () => Promise<T | undefined | false> | T | undefined | false,
  withinMs = 15_000,
): Promise<T> {
  const until = performance.now() + withinMs;
  let last: unknown;
  for (;;) {
    try {
      const found = await probe();
      if (found !== undefined && found !== false) return found;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (performance.now() > until) throw new Error(`not within ${withinMs} ms: ${what}`, { cause: last });
    await delay(15);
  }
}
