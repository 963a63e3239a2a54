import { expect, test } from "vitest";
import { Refusals } from "../../../src/rpc/refusals.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { FakeClock } from "../../support/clock.ts";
import { RecordingLog } from "../../support/recording-log.ts";

test("T-X9 a flood of refused connections makes one line a second, which counts the others", async () => {
  const clock = new FakeClock();
  const log = new RecordingLog();
  const refusals = new Refusals(log, clock);
  for (let i = 0; i < 1000; i++) refusals.add(new Fault("denied", "no"), "192.0.2.1");
  expect(log.lines).toHaveLength(1);
  expect(log.lines[0]?.fields).toMatchObject({
    address: "192.0.2.1",
    error: { kind: "denied" },
    unlogged_before: undefined,
  });
  await clock.advance(1_000);
  refusals.add(new Fault("denied", "again"));
  refusals.add(new Fault("denied", "and again"));
  expect(log.lines.map(({ fields }) => fields["unlogged_before"])).toEqual([undefined, 999]);
});
