import { beforeAll, describe, expect, test } from "vitest";
import {
  dueStep,
  emptySlots,
  keyIdOf,
  type RecoveredSlot,
  recordOf,
  recoverSlots,
  type Slots,
  usabilityOf,
  withActivated,
  withPrepared,
  type X509SigningAuthority,
} from "../../../server/ca/slots.ts";
import { makeAuthority, START } from "./support.ts";

const DAY = 86_400;
let a: X509SigningAuthority;
let b: X509SigningAuthority;
let c: X509SigningAuthority;

beforeAll(async () => {
  a = await makeAuthority({ ttlSeconds: DAY });
  b = await makeAuthority({ ttlSeconds: DAY, now: later(DAY / 2) });
  c = await makeAuthority({ ttlSeconds: DAY, now: later(DAY) });
});

function later(seconds: number): Date {
  return new Date(START.getTime() + seconds * 1000);
}

const always = (): boolean => true;
type Shape = readonly [string, string, string, string];

/** State and name of both slots. */
function shape({ current, next }: Slots<X509SigningAuthority>): Shape {
  return [current.state, current.name, next.state, next.name];
}

function recovered(
  authority: X509SigningAuthority,
  fields: Partial<RecoveredSlot<X509SigningAuthority>>,
): RecoveredSlot<X509SigningAuthority> {
  return { name: "A", status: "active", tainted: false, authority, ...fields };
}

test("keys have SPIRE's names", () => {
  expect([keyIdOf("x509", "A"), keyIdOf("jwt", "B"), keyIdOf("wit", "A")]).toEqual([
    "x509-CA-A",
    "JWT-Signer-B",
    "WIT-Signer-A",
  ]);
});

test("the two slots take turns: A, B, A", () => {
  let slots = emptySlots<X509SigningAuthority>();
  slots = withActivated(withPrepared(slots, a));
  expect(shape(slots)).toEqual(["active", "A", "empty", "B"]);
  slots = withPrepared(slots, b);
  expect(shape(slots)).toEqual(["active", "A", "prepared", "B"]);
  slots = withActivated(slots);
  expect(shape(slots)).toEqual(["active", "B", "old", "A"]);
  slots = withActivated(withPrepared(slots, c));
  expect(shape(slots)).toEqual(["active", "A", "old", "B"]);
  expect(withActivated(slots)).toBe(slots);
});

describe("what is due", () => {
  const empty = emptySlots<X509SigningAuthority>();
  const active = (): Slots<X509SigningAuthority> => withActivated(withPrepared(empty, a));

  test("without an active authority one is made, or the prepared one taken", () => {
    expect(dueStep(empty, always, START)).toBe("prepare");
    expect(dueStep(withPrepared(empty, a), always, START)).toBe("activate");
  });

  test.each([
    { hours: 0, prepared: false, step: "rest" },
    { hours: 11.99, prepared: false, step: "rest" },
    { hours: 12.01, prepared: false, step: "prepare" },
    { hours: 12.01, prepared: true, step: "rest" },
    { hours: 19.99, prepared: true, step: "rest" },
    { hours: 20.01, prepared: true, step: "activate" },
    { hours: 23, prepared: false, step: "prepare" },
  ])("of a day's authority after $hours hours, next prepared $prepared: $step", ({ hours, prepared, step }) => {
    const slots = prepared ? withPrepared(active(), b) : active();
    expect(dueStep(slots, always, later(hours * 3600))).toBe(step);
  });

  test("long lives are prepared 30 days, and activated 7 days, before their end", async () => {
    const year = await makeAuthority({ ttlSeconds: 365 * DAY });
    const slots = withActivated(withPrepared(empty, year));
    const due = (days: number, state = slots): string => dueStep(state, always, later(days * DAY));
    expect([due(334), due(336)]).toEqual(["rest", "prepare"]);
    const ready = withPrepared(slots, b);
    expect([due(357, ready), due(359, ready)]).toEqual(["rest", "activate"]);
  });

  test("an authority that may not sign is replaced at once, by the prepared one when that may", () => {
    const not = (bad: X509SigningAuthority) => (authority: X509SigningAuthority) => authority !== bad;
    expect(dueStep(active(), not(a), START)).toBe("prepare");
    expect(dueStep(withPrepared(active(), b), not(a), START)).toBe("activate");
    expect(dueStep(withPrepared(active(), b), not(b), later(20.5 * 3600))).toBe("prepare");
    expect(dueStep(withPrepared(active(), b), not(b), START)).toBe("rest");
  });
});

describe("after a restart", () => {
  test.each<{
    readonly title: string;
    readonly found: () => RecoveredSlot<X509SigningAuthority>[];
    readonly slots: Shape;
  }>([
    { title: "nothing", found: () => [], slots: ["empty", "B", "empty", "A"] },
    { title: "an active one", found: () => [recovered(a, {})], slots: ["active", "A", "empty", "B"] },
    {
      title: "an active one in B and an old one in A",
      found: () => [recovered(a, { status: "old" }), recovered(b, { name: "B" })],
      slots: ["active", "B", "old", "A"],
    },
    {
      title: "an active and a prepared one",
      found: () => [recovered(a, {}), recovered(b, { name: "B", status: "prepared" })],
      slots: ["active", "A", "prepared", "B"],
    },
    {
      title: "a prepared one alone",
      found: () => [recovered(b, { name: "B", status: "prepared" })],
      slots: ["empty", "A", "prepared", "B"],
    },
    { title: "an old one alone", found: () => [recovered(a, { status: "old" })], slots: ["empty", "B", "old", "A"] },
    {
      title: "two active ones: the newer counts",
      found: () => [recovered(a, {}), recovered(b, { name: "B" })],
      slots: ["active", "B", "old", "A"],
    },
  ])("of $title", ({ found, slots }) => {
    expect(shape(recoverSlots(found()))).toEqual(slots);
  });

  test("an old authority keeps its taint", () => {
    const { next } = recoverSlots([recovered(a, { status: "old", tainted: true }), recovered(b, { name: "B" })]);
    expect(next).toMatchObject({ state: "tainted" });
    expect(recordOf(next)).toMatchObject({ status: "old", tainted: true, authorityId: a.id });
  });
});

test("an authority signs only while it is valid, published and not tainted", () => {
  expect(usabilityOf(a, "published", START)).toBe("usable");
  expect(usabilityOf(a, "published", a.notAfter)).toBe("usable");
  expect(usabilityOf(a, "published", later(DAY + 1))).toBe("expired");
  expect(usabilityOf(a, "published", later(-12))).toBe("not yet valid");
  expect(usabilityOf(a, "not published", START)).toBe("not published");
  expect(usabilityOf(a, "tainted", START)).toBe("tainted");
});
