import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { activateAt, prepareAt, renewAt, shouldRotate } from "../../../src/spiffe/lifetime.ts";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const START = new Date("2030-01-01T00:00:00Z");
const later = (ms: number): Date => new Date(START.getTime() + ms);

describe("renewal", () => {
  test.each([
    { random: 0, hours: 11 },
    { random: 0.5, hours: 10 },
    { random: 0.999999999, hours: 9 },
  ])("of 20 hours with $random: after $hours", ({ random, hours }) => {
    const at = renewAt(START, later(20 * HOUR), random).getTime() - START.getTime();
    expect(at / HOUR).toBeCloseTo(hours, 6);
  });

  test("is due from that instant on, and whenever the end has come", () => {
    const end = later(20 * HOUR);
    expect(shouldRotate(later(10 * HOUR - 1), START, end, 0.5)).toBe(false);
    expect(shouldRotate(later(10 * HOUR), START, end, 0.5)).toBe(true);
    expect(shouldRotate(later(20 * HOUR), START, end, 0)).toBe(true);
    expect(shouldRotate(START, later(10), START, 0.5)).toBe(true);
  });

  test("always lies in the middle fifth or so of the lifetime", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 10 * 365 * DAY }),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (lifetime, random) => {
          const share = (renewAt(START, later(lifetime), random).getTime() - START.getTime()) / lifetime;
          // A Date holds whole milliseconds.
          const rounding = 1 / lifetime;
          expect(share).toBeGreaterThanOrEqual(0.45 - rounding);
          expect(share).toBeLessThanOrEqual(0.55 + rounding);
        },
      ),
    );
  });
});

describe("authorities", () => {
  test.each([
    { what: "a day", lifetime: DAY, prepare: DAY / 2, activate: (DAY * 5) / 6 },
    { what: "6 hours", lifetime: 6 * HOUR, prepare: 3 * HOUR, activate: 5 * HOUR },
    { what: "60 days", lifetime: 60 * DAY, prepare: 30 * DAY, activate: 53 * DAY },
    { what: "42 days", lifetime: 42 * DAY, prepare: 21 * DAY, activate: 35 * DAY },
    { what: "a year", lifetime: 365 * DAY, prepare: 335 * DAY, activate: 358 * DAY },
  ])("of $what are prepared and activated at SPIRE's thresholds", ({ lifetime, prepare, activate }) => {
    expect(prepareAt(START, later(lifetime))).toEqual(later(prepare));
    expect(activateAt(START, later(lifetime))).toEqual(later(activate));
  });

  test("are always prepared before they are activated, and activated before the old one ends", () => {
    fc.assert(
      fc.property(fc.integer({ min: 6, max: 20 * 365 * DAY }), (lifetime) => {
        const end = later(lifetime);
        expect(prepareAt(START, end).getTime()).toBeLessThan(activateAt(START, end).getTime());
        expect(activateAt(START, end).getTime()).toBeLessThan(end.getTime());
      }),
    );
  });
});
