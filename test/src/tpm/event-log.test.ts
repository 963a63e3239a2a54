import { createHash } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Fault } from "../../../src/runtime/fault.ts";
import { bootPrograms, parseEventLog, replay, secureBoot, secureBootAuthorities } from "../../../src/tpm/event-log.ts";
import {
  type Event,
  eventLog,
  policyEvents,
  programEvents,
  separator,
  TYPE,
  variable,
} from "../../support/event-log.ts";
import { faultOf } from "../../support/faults.ts";

const extended = (before: Buffer, digest: Buffer) => createHash("sha256").update(before).update(digest).digest();

test("replays what was measured, from the locality that the log names, without what was not measured", () => {
  const [a, b] = [Buffer.from("a"), Buffer.from("b")];
  const [ofA, ofB] = [a, b].map((data) => createHash("sha256").update(data).digest()) as [Buffer, Buffer];
  const locality = Buffer.concat([Buffer.from("StartupLocality\0"), Buffer.of(3)]);
  const log = eventLog(
    { pcr: 0, type: 3, data: locality },
    { pcr: 0, type: 8, data: a },
    { pcr: 4, type: 8, data: a },
    { pcr: 4, type: 3, data: b },
    { pcr: 4, type: 8, data: b },
  );
  expect(replay(parseEventLog(log))).toEqual(
    new Map([
      [0, extended(Buffer.concat([Buffer.alloc(31), Buffer.of(3)]), ofA).toString("hex")],
      [4, extended(extended(Buffer.alloc(32), ofA), ofB).toString("hex")],
    ]),
  );
});

const sha256 = (data: Buffer) => createHash("sha256").update(data).digest();
const read = (...events: readonly Event[]) => parseEventLog(eventLog(...events));

test("T-N11 tells whether secure boot was on, and neither without a separator nor by what no digest covers", () => {
  expect([1, 0].map((value) => secureBoot(read(...policyEvents(value))))).toEqual([true, false]);
  const [variableEvent, ...others] = policyEvents(1);
  if (variableEvent === undefined) throw new Error("no event");
  expect(secureBoot(read({ ...variableEvent, digest: Buffer.alloc(32, 1) }, ...others))).toBeUndefined();
  expect(secureBoot(read({ ...variableEvent, pcr: 5 }, ...others))).toBeUndefined();
  expect(secureBoot(read(variableEvent))).toBeUndefined();
  expect(secureBoot(read())).toBeUndefined();
});

test("T-N11 what the machine's owner extends later does not turn secure boot on, whatever type the log gives an event", () => {
  const later = policyEvents(1)[0] as Event;
  const [off, ...others] = policyEvents(0) as readonly [Event, ...Event[]];
  expect(secureBoot(read(off, ...others, later))).toBeUndefined();
  for (const type of Object.values(TYPE)) expect(secureBoot(read({ ...off, type }, ...others, later))).toBeUndefined();
  const hidden = { ...off, digest: sha256(off.data), data: Buffer.from("something else") };
  expect(secureBoot(read(hidden, ...others, later))).toBeUndefined();
  expect(secureBoot(read(...others, separator(7), later))).toBeUndefined();
});

test("T-N11 tells all certificates by which something was let in, and none alone to which another one was added", () => {
  const [one, two] = [Buffer.from("a certificate"), Buffer.from("another one")];
  const hex = [one, two].map((der) => sha256(der).toString("hex")).sort();
  expect(secureBootAuthorities(read(...policyEvents(1, one)))).toEqual([sha256(one).toString("hex")]);
  expect(secureBootAuthorities(read(...policyEvents(1, two, one, two)))).toEqual(hex);
  // Of another type by the log alone, it is still what it is.
  const relabelled = policyEvents(1, one, two).map((event) => ({ ...event, type: TYPE.config }));
  expect(secureBootAuthorities(read(...relabelled))).toEqual(hex);
});

test("T-N11 an authority is not believed without its digest, of another list, without an owner, or from another register", () => {
  const value = Buffer.concat([Buffer.alloc(16), Buffer.from("a certificate")]);
  const rows = [
    { pcr: 7, type: TYPE.authority, data: variable("db", value), digest: Buffer.alloc(32, 1) },
    { pcr: 7, type: TYPE.authority, data: variable("MokList", value) },
    { pcr: 7, type: TYPE.authority, data: variable("db", Buffer.alloc(16)) },
    { pcr: 6, type: TYPE.authority, data: variable("db", value) },
    { pcr: 7, type: TYPE.authority, data: variable("db", value).subarray(0, -1) },
    { pcr: 7, type: TYPE.authority, data: Buffer.concat([variable("db", value), Buffer.of(0)]) },
  ];
  for (const row of rows) expect(secureBootAuthorities(read(...policyEvents(1), row))).toEqual([]);
});

test("T-N11 tells the programs that were started in their order, and every one whatever its event is called", () => {
  const [loader, kernel] = [sha256(Buffer.from("a boot loader")), sha256(Buffer.from("a kernel"))];
  const hex = [loader, kernel].map((digest) => digest.toString("hex"));
  expect(bootPrograms(read(...programEvents(loader, kernel)))).toEqual(hex);
  const called = programEvents(loader, kernel).map((event) => ({ ...event, type: TYPE.separator }));
  expect(bootPrograms(read(...called))).toEqual(hex);
  // The very bytes that the digest of a program is of.
  const image = Buffer.concat([Buffer.from("MZ"), Buffer.alloc(300), Buffer.from("a boot loader")]);
  const explained = [...programEvents(), { pcr: 4, type: TYPE.action, data: image }, ...programEvents(kernel).slice(2)];
  expect(bootPrograms(read(...explained))).toEqual([sha256(image), kernel].map((digest) => digest.toString("hex")));
  const elsewhere = { pcr: 5, type: TYPE.application, data: image };
  expect(bootPrograms(read(elsewhere, ...programEvents()))).toEqual([]);
});

test("T-N11 a log that is cut anywhere inside an event is malformed, and whatever the bytes, reading ends", () => {
  const log = eventLog(policyEvents(1)[0] as Event);
  const whole = eventLog().length;
  for (let length = 0; length < log.length; length += 1)
    if (length !== whole) expect(faultOf(() => parseEventLog(log.subarray(0, length))).kind).toBe("invalid");
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (tail) => {
      try {
        replay(parseEventLog(Buffer.concat([eventLog(), tail])));
      } catch (error) {
        expect(error).toBeInstanceOf(Fault);
      }
    }),
  );
});
