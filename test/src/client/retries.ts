import type { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import type { FakeAgent } from "../../support/fake-agent.ts";

/** Lets virtual time pass in steps, only while the client waits, until `done`. */
export async function pass(clock: FakeClock, done: () => boolean, step = 1_000): Promise<void> {
  await eventually("the client gets where it should", async () => {
    if (done()) return true;
    if (clock.sleeping > 0) await clock.advance(step);
    return done();
  });
}

/** Milliseconds between the calls that the agent has seen. */
export function gaps(agent: FakeAgent): readonly number[] {
  return agent.calls.slice(1).map(({ at }, index) => at - (agent.calls[index]?.at ?? 0));
}
