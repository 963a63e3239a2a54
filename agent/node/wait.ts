import type { Clock } from "../../src/runtime/clock.ts";
import type { Feed } from "../../src/runtime/feed.ts";

export interface WaitOptions<T> {
  readonly clock: Clock;
  readonly feed: Feed<T>;
  readonly until: (value: T) => boolean;
  readonly ms: number;
}

/** Resolves after `ms`, or as soon as the feed satisfies `until`. Rejects when the signal is aborted first. */
export async function wait<T>({ clock, feed, until, ms }: WaitOptions<T>, signal: AbortSignal): Promise<void> {
  const done = new AbortController();
  const either = AbortSignal.any([signal, done.signal]);
  try {
    await Promise.race([feed.until(until, either), clock.sleep(ms, either)].map((wake) => wake.catch(() => undefined)));
    signal.throwIfAborted();
  } finally {
    done.abort();
  }
}
