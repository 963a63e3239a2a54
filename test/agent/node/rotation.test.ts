import { describe, expect, test } from "vitest";
import { fitsTarget, msUntilDue, OVERDUE, rotationOfKept, rotationOfNew } from "../../../agent/node/rotation.ts";
import { FakeClock } from "../../support/clock.ts";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const YEAR = 366 * 24 * HOUR;
const START = "2026-01-01T00:00:00Z";

/** An SVID issued at the start of the clock, dated back by ten seconds. */
function issued(ttlMs: number, chance = 0.5) {
  const clock = new FakeClock(START, chance);
  const now = clock.now().getTime();
  return { clock, validity: { notBefore: new Date(now - 10 * SECOND), notAfter: new Date(now + ttlMs) } };
}

function minutesUntilDue(ttlMs: number, chance: number, availabilityTargetMs?: number): number {
  const { clock, validity } = issued(ttlMs, chance);
  return msUntilDue(rotationOfNew(validity, { clock, availabilityTargetMs }), clock) / MINUTE;
}

describe("when an SVID is renewed", () => {
  test.each([
    { chance: 0, least: 32, most: 34 },
    { chance: 0.5, least: 29, most: 31 },
    { chance: 0.999, least: 26, most: 28 },
  ])("at half of an hour, a tenth of that earlier or later (chance $chance)", ({ chance, least, most }) => {
    const minutes = minutesUntilDue(HOUR, chance);
    expect(minutes).toBeGreaterThan(least);
    expect(minutes).toBeLessThan(most);
  });

  test.each([0, 0.5, 0.999])("a lifetime of ten seconds leaves time to use the SVID (chance %s)", (chance) => {
    const { clock, validity } = issued(10 * SECOND, chance);
    const ms = msUntilDue(rotationOfNew(validity, { clock }), clock);
    expect(ms).toBeGreaterThan(3 * SECOND);
    expect(ms).toBeLessThan(5 * SECOND);
  });

  test("one from the disk that is past its half is renewed at once", () => {
    const { clock, validity } = issued(HOUR);
    clock.step(50 * MINUTE);
    expect(msUntilDue(rotationOfKept(validity, { clock }), clock)).toBeLessThanOrEqual(0);
  });

  test("one that is overdue is, whatever the time", () => {
    expect(msUntilDue(OVERDUE, new FakeClock())).toBeLessThanOrEqual(0);
  });

  test("an availability target brings it forward, spread over ten minutes", () => {
    expect(minutesUntilDue(48 * HOUR, 0, 30 * HOUR)).toBeCloseTo(18 * 60, 3);
    expect(minutesUntilDue(48 * HOUR, 0.999, 30 * HOUR)).toBeCloseTo(18 * 60 - 10, 1);
  });

  test.each([
    { hours: 36, fits: false },
    { hours: 36.1, fits: true },
  ])("a target of a day fits a lifetime of $hours hours: $fits", ({ hours, fits }) => {
    const { validity } = issued(hours * HOUR - 10 * SECOND);
    expect(fitsTarget(validity, 24 * HOUR)).toBe(fits);
    const minutes = minutesUntilDue(hours * HOUR - 10 * SECOND, 0.5, 24 * HOUR);
    if (fits) expect(minutes).toBeLessThan(12.2 * 60);
    else expect(minutes).toBeGreaterThan(17 * 60);
  });
});

describe("T-F7 a wall clock that is set", () => {
  test("ahead after the SVID came makes it due at once, as when a machine wakes from sleep", async () => {
    const { clock, validity } = issued(HOUR);
    const rotation = rotationOfNew(validity, { clock });
    await clock.advance(5 * SECOND);
    clock.step(YEAR);
    expect(msUntilDue(rotation, clock)).toBeLessThanOrEqual(0);
  });

  test.each([HOUR, YEAR])("back by %s ms after the SVID came does not put the renewal off", async (ms) => {
    const { clock, validity } = issued(HOUR);
    const rotation = rotationOfNew(validity, { clock });
    const before = msUntilDue(rotation, clock);
    clock.step(-ms);
    expect(msUntilDue(rotation, clock)).toBe(before);
    await clock.advance(before);
    expect(msUntilDue(rotation, clock)).toBeLessThanOrEqual(0);
  });

  test.each([HOUR, YEAR])(
    "ahead by %s ms when the SVID comes: it is asked for again, but not in a loop, also once the clock is right",
    (ms) => {
      const { clock, validity } = issued(HOUR);
      clock.step(ms);
      const rotation = rotationOfNew(validity, { clock });
      expect(msUntilDue(rotation, clock)).toBe(30 * SECOND);
      clock.step(-ms);
      expect(msUntilDue(rotation, clock)).toBe(30 * SECOND);
    },
  );

  test.each([HOUR, YEAR])("back by %s ms when the SVID comes: it is renewed in time all the same", (ms) => {
    const { clock, validity } = issued(HOUR);
    clock.step(-ms);
    expect(msUntilDue(rotationOfNew(validity, { clock }), clock)).toBeLessThanOrEqual(31 * MINUTE);
    expect(msUntilDue(rotationOfKept(validity, { clock }), clock)).toBeLessThanOrEqual(31 * MINUTE);
  });
});
