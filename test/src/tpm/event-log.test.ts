import { createHash } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Fault } from "../../../src/runtime/fault.ts";
import { bootPrograms, parseEventLog, replay, secureBoot, secureBootAuthorities } from "../../../src/tpm/event-log.ts";
import { bootLog, eventLog, secureBootLog, variable } from "../../support/event-log.ts";
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

test("T-N11 what the digest of its event does not cover is not believed", () => {
  expect(secureBoot(parseEventLog(secureBootLog(1).log))).toBe(true);
  expect(secureBoot(parseEventLog(secureBootLog(0).log))).toBe(false);
  const [event] = parseEventLog(secureBootLog(1).log);
  const { data = Buffer.alloc(0), digest } = event ?? {};
  const forged = eventLog({ pcr: 7, type: 0x80000001, data: Buffer.from(data), digest: Buffer.alloc(32, 1) });
  expect(secureBoot(parseEventLog(forged))).toBeUndefined();
  const elsewhere = eventLog({
    pcr: 5,
    type: 0x80000001,
    data: Buffer.from(data),
    ...(digest && { digest: Buffer.from(digest) }),
  });
  expect(secureBoot(parseEventLog(elsewhere))).toBeUndefined();
});

const sha256 = (data: Buffer) => createHash("sha256").update(data).digest();

test("T-N11 tells the programs that were booted by their digests, and the certificates that let them, each once", () => {
  const [certificate, program] = [Buffer.from("a certificate"), sha256(Buffer.from("a boot loader"))];
  const { log } = bootLog({ certificate, program });
  const twice = parseEventLog(log).concat(parseEventLog(log));
  expect(bootPrograms(twice)).toEqual([program.toString("hex")]);
  expect(secureBootAuthorities(twice)).toEqual([sha256(certificate).toString("hex")]);
});

test("T-N11 an authority is not believed without its digest, of another list, or from another register", () => {
  const value = Buffer.concat([Buffer.alloc(16), Buffer.from("a certificate")]);
  const rows = [
    { pcr: 7, type: 0x800000e0, data: variable("db", value), digest: Buffer.alloc(32, 1) },
    { pcr: 7, type: 0x800000e0, data: variable("MokList", value) },
    { pcr: 7, type: 0x800000e0, data: variable("db", Buffer.alloc(16)) },
    { pcr: 6, type: 0x800000e0, data: variable("db", value) },
    { pcr: 7, type: 0x80000001, data: variable("db", value) },
    { pcr: 7, type: 0x800000e0, data: variable("db", value).subarray(0, -1) },
  ];
  for (const row of rows) expect(secureBootAuthorities(parseEventLog(eventLog(row)))).toEqual([]);
  const elsewhere = { pcr: 5, type: 0x80000003, data: value };
  expect(bootPrograms(parseEventLog(eventLog(elsewhere, { ...elsewhere, pcr: 4, type: 0x80000004 })))).toEqual([]);
});

test("T-N11 a log that is cut anywhere inside an event is malformed, and whatever the bytes, reading ends", () => {
  const { log } = secureBootLog(1);
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
