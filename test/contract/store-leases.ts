import { beforeEach, expect, test } from "vitest";
import { eventually } from "../support/eventually.ts";
import type { StoreUnderTest } from "./store.ts";

const LONG_MS = 600_000;

export function leaseContract(current: () => StoreUnderTest): void {
  const leases = () => current().store.leases;
  beforeEach(() => current().store.session.write((db) => db.deleteFrom("leases").execute()));

  test("one holder has it, extends it, and keeps others off; leases of other names are free", async () => {
    expect(await leases().take("work", "one", LONG_MS)).toBe(true);
    expect(await leases().take("work", "two", LONG_MS)).toBe(false);
    expect(await leases().take("work", "one", LONG_MS)).toBe(true);
    expect(await leases().take("other", "two", LONG_MS)).toBe(true);
  });

  test("of many that ask at once, one gets it", async () => {
    const asked = Array.from({ length: 50 }, (_, index) => leases().take("work", `holder ${index}`, LONG_MS));
    expect((await Promise.all(asked)).filter((taken) => taken)).toHaveLength(1);
  });

  test("its holder gives it to the next, and nobody else does", async () => {
    await leases().take("work", "one", LONG_MS);
    await leases().release("work", "two");
    expect(await leases().take("work", "two", LONG_MS)).toBe(false);
    await leases().release("work", "one");
    expect(await leases().take("work", "two", LONG_MS)).toBe(true);
  });

  test("one that is not extended ends by the database's clock, and its old holder cannot extend it then", async () => {
    expect(await leases().take("work", "one", 50)).toBe(true);
    await eventually("another takes it", () => leases().take("work", "two", LONG_MS));
    expect(await leases().take("work", "one", LONG_MS)).toBe(false);
  });
}
