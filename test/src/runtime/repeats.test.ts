import { expect, test } from "vitest";
import { Repeats } from "../../../src/runtime/repeats.ts";
import { FakeClock } from "../../support/clock.ts";

test("a failure is worth a line at first, when it changes, and then at intervals that double, with its count", async () => {
  const clock = new FakeClock();
  const repeats = new Repeats(clock);
  const said: [number, number][] = [];
  for (let second = 0; second < 100; second += 1) {
    const failures = repeats.worthSaying("down");
    if (failures !== undefined) said.push([second, failures]);
    await clock.advance(1_000);
  }
  expect(said).toEqual([
    [0, 1],
    [10, 11],
    [30, 31],
    [70, 71],
  ]);
  expect(repeats.worthSaying("refused")).toBe(101);
  expect(repeats.worthSaying("refused")).toBeUndefined();
  repeats.over();
  expect(repeats.worthSaying("refused")).toBe(1);
});

test("the same failure is never left out for more than ten minutes", async () => {
  const clock = new FakeClock();
  const repeats = new Repeats(clock);
  const said: number[] = [];
  for (let minute = 0; minute < 120; minute += 1) {
    if (repeats.worthSaying("down") !== undefined) said.push(minute);
    await clock.advance(60_000);
  }
  expect(said.slice(-2)[1]).toBe((said.slice(-2)[0] ?? 0) + 10);
});
