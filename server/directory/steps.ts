import type { Clock } from "../../src/runtime/clock.ts";

/**
 * Work in small steps, between which whoever drives it may give way. A step that gives `"turn"` has set work going that
 * runs in the event loop: it gets a turn before the next step.
 */
export type Steps = Generator<"turn" | undefined, void, undefined>;

/** The longest that steps go on without giving way. */
const SLICE_MS = 8;
/** So many small steps cost less than a look at the clock is worth. */
const UNSEEN = 16;

/** Takes all the steps, and leaves the event loop its turns. */
export async function inTurns(clock: Clock, steps: Steps): Promise<void> {
  let began = clock.monotonic();
  let unseen = 0;
  for (const wish of steps) {
    if (wish !== "turn") {
      unseen += 1;
      if (unseen < UNSEEN) continue;
      unseen = 0;
      if (clock.monotonic() - began < SLICE_MS) continue;
    }
    await clock.sleep(0);
    began = clock.monotonic();
  }
}

/** Takes all the steps at once. */
export function atOnce(steps: Steps): void {
  while (steps.next().done !== true);
}
