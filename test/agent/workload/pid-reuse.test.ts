import { expect, test } from "vitest";
import { canStorm, storm } from "../../support/pid-storm.ts";

const TRIES = 80;

test.skipIf(!(await canStorm()))(
  "T-W1 recycled PIDs and programs that change give no wrong identity, and would give one by PID alone",
  async () => {
    const { callers, wrong, wrongByNaive, refused, genuine, genuineRefused } = await storm(TRIES);
    expect({ callers, genuine }).toEqual({ callers: (TRIES * 4) / 5, genuine: TRIES / 5 });
    expect(wrong).toBe(0);
    expect(refused).toBe(callers);
    expect(genuineRefused).toBe(0);
    expect(wrongByNaive).toBeGreaterThan(callers / 2);
  },
);
