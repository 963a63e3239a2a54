import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  contextTag,
  DerReader,
  integerBytes,
  readAscii,
  readBoolean,
  readFlags,
  readOctets,
  readOid,
  readOnly,
  readSmallUnsigned,
  readTime,
  readUnsigned,
  TAG,
} from "../../../src/crypto/der.ts";
import {
  encode,
  encodeAscii,
  encodeBoolean,
  encodeFlags,
  encodeOctets,
  encodeOid,
  encodeText,
  encodeTime,
  encodeUnsigned,
  sequence,
  setOf,
} from "../../../src/crypto/der-writer.ts";
import { faultOf, refusal } from "../../support/faults.ts";

const bytes = (hex: string): Buffer => Buffer.from(hex.replaceAll(" ", ""), "hex");
const element = (hex: string) => new DerReader(bytes(hex)).read();
const MALFORMED = refusal("invalid", "asn1-malformed");

describe("T-X5 what is not DER is refused", () => {
  test.each([
    { what: "nothing", hex: "" },
    { what: "a tag without a length", hex: "30" },
    { what: "contents that are cut off", hex: "30 05 02 01 01" },
    { what: "a length that is cut off", hex: "30 82 01" },
    { what: "an indefinite length", hex: "30 80 02 01 01 00 00" },
    { what: "a long form for a short length", hex: "04 81 01 00" },
    { what: "a length with a leading zero", hex: "04 82 00 80" },
    { what: "a length of five octets", hex: "04 85 01 00 00 00 00" },
    { what: "the reserved length octet", hex: "04 ff" },
    { what: "a length far beyond the input", hex: "04 84 ff ff ff ff 00" },
    { what: "a tag of several octets", hex: "1f 1f 00" },
  ])("$what", ({ hex }) => {
    expect(faultOf(() => element(hex))).toMatchObject(MALFORMED);
  });

  test.each([
    { what: "another tag than the one wanted", read: () => new DerReader(bytes("0400")).read(TAG.sequence) },
    { what: "bytes after the only element", read: () => readOnly(bytes("3000 00")) },
    { what: "an empty INTEGER", read: () => readUnsigned(element("0200")) },
    { what: "a negative INTEGER", read: () => readUnsigned(element("0201ff")) },
    { what: "an INTEGER with a needless zero", read: () => integerBytes(element("02020001")) },
    { what: "an INTEGER with a needless ff", read: () => integerBytes(element("0202ff80")) },
    { what: "a serial of 41 octets", read: () => readUnsigned(element(`0229${"11".repeat(41)}`)) },
    { what: "a small number beyond 2^53", read: () => readSmallUnsigned(element("02080020000000000000")) },
    { what: "a BOOLEAN of 01", read: () => readBoolean(element("010101")) },
    { what: "a BOOLEAN of two octets", read: () => readBoolean(element("0102ff00")) },
    { what: "an empty BOOLEAN", read: () => readBoolean(element("0100")) },
    { what: "a key with unused bits", read: () => readOctets(element("030201fe")) },
    { what: "an empty BIT STRING", read: () => readOctets(element("0300")) },
    { what: "flags with 8 unused bits", read: () => readFlags(element("03020800")) },
    { what: "flags whose unused bits are set", read: () => readFlags(element("030201ff")) },
    { what: "flags without octets but with unused bits", read: () => readFlags(element("030101")) },
    { what: "flags of nine octets", read: () => readFlags(element("030a00010101010101010101")) },
    { what: "an empty OBJECT IDENTIFIER", read: () => readOid(element("0600")) },
    { what: "an OBJECT IDENTIFIER with a padded arc", read: () => readOid(element("06032a8001")) },
    { what: "an OBJECT IDENTIFIER that is cut off", read: () => readOid(element("06022a86")) },
    { what: "an OBJECT IDENTIFIER of 65 octets", read: () => readOid(element(`0641${"2a".repeat(65)}`)) },
    { what: "an IA5String beyond ASCII", read: () => readAscii(bytes("c3a4")) },
  ])("$what", ({ read }) => {
    expect(faultOf(read)).toMatchObject(MALFORMED);
  });

  test.each([
    "200102030405Z0",
    "2001020304Z",
    "200102030405+0000",
    "20010203040Z",
    "201302030405Z",
    "200230030405Z",
    "200102240405Z",
    "200102036005Z",
    "200102030460Z",
    "2001020304 5Z",
  ])("the UTCTime %s", (text) => {
    expect(faultOf(() => readTime({ ...element("1700"), body: Buffer.from(text) }))).toMatchObject(MALFORMED);
  });

  test.each(["20200102030405", "20200102030405.5Z", "20210229030405Z", "00001301000000Z", "2020010203040Z"])(
    "the GeneralizedTime %s",
    (text) => {
      expect(faultOf(() => readTime({ ...element("1800"), body: Buffer.from(text) }))).toMatchObject(MALFORMED);
    },
  );

  test("a time of another type", () => {
    expect(faultOf(() => readTime(element("0c00")))).toMatchObject(MALFORMED);
  });
});

describe("what is DER is read", () => {
  test.each([
    { dotted: "1.2.840.113549.1.1.11", hex: "06092a864886f70d01010b" },
    { dotted: "2.5.29.17", hex: "0603551d11" },
    { dotted: "2.999.3", hex: "0603883703" },
    {
      dotted: "2.25.329800735698586629295641978511506172918",
      hex: "0614698 3f09da7ebcfdee0c7a1a7b2c0948cc8f9d776".replace(" ", ""),
    },
    { dotted: "0.9.2342", hex: "060309 9226" },
  ])("the OBJECT IDENTIFIER $dotted", ({ dotted, hex }) => {
    expect(encodeOid(dotted).toString("hex")).toBe(hex.replaceAll(" ", ""));
    expect(readOid(element(hex))).toBe(dotted);
  });

  test.each([
    { iso: "2050-01-01T00:00:00.000Z", tag: TAG.generalizedTime },
    { iso: "2049-12-31T23:59:59.000Z", tag: TAG.utcTime },
    { iso: "1950-01-01T00:00:00.000Z", tag: TAG.utcTime },
    { iso: "2000-02-29T12:00:00.000Z", tag: TAG.utcTime },
    { iso: "9999-12-31T23:59:59.000Z", tag: TAG.generalizedTime },
  ])("the time $iso, in the form that RFC 5280 asks for", ({ iso, tag }) => {
    const encoded = new DerReader(encodeTime(new Date(iso))).read();
    expect(encoded.tag).toBe(tag);
    expect(readTime(encoded).toISOString()).toBe(iso);
  });

  test("times outside the years of X.509 are not written", () => {
    expect(faultOf(() => encodeTime(new Date("1949-12-31T23:59:59Z")))).toMatchObject(MALFORMED);
    expect(faultOf(() => encodeTime(new Date("+010000-01-01T00:00:00Z")))).toMatchObject(MALFORMED);
    expect(faultOf(() => encodeTime(new Date(Number.NaN)))).toMatchObject(MALFORMED);
  });

  test("milliseconds are cut off", () => {
    expect(readTime(new DerReader(encodeTime(new Date(1_700_000_000_999))).read()).getTime()).toBe(1_700_000_000_000);
  });

  test("an optional element that is absent consumes nothing", () => {
    const reader = new DerReader(bytes("020105"));
    expect(reader.optional(TAG.boolean)).toBeUndefined();
    expect(readSmallUnsigned(reader.read(TAG.integer))).toBe(5);
    expect(reader.atEnd).toBe(true);
    expect(reader.optional(TAG.boolean)).toBeUndefined();
  });

  test("views share the bytes of the input", () => {
    const input = sequence(encodeUnsigned(7n));
    const { body, raw } = new DerReader(input).read();
    expect(raw.buffer).toBe(input.buffer);
    expect(body.buffer).toBe(input.buffer);
  });
});

describe("what is written is read back", () => {
  test("unsigned integers", () => {
    fc.assert(
      fc.property(fc.bigInt(0n, 2n ** 300n), (value) => {
        expect(readUnsigned(new DerReader(encodeUnsigned(value)).read())).toBe(value);
      }),
    );
  });

  test("contents of any length up to the limit of three octets", () => {
    for (const length of [0, 1, 127, 128, 255, 256, 65535, 65536]) {
      const encoded = encode(TAG.octetString, new Uint8Array(length));
      const reader = new DerReader(encoded);
      expect(reader.read(TAG.octetString).body).toHaveLength(length);
      reader.end();
    }
    expect(faultOf(() => encode(TAG.octetString, new Uint8Array(0x1000000)))).toMatchObject(MALFORMED);
  });

  test("flags", () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.integer({ min: 0, max: 63 })), (flags) => {
        expect(readFlags(new DerReader(encodeFlags(flags)).read())).toEqual(new Set(flags));
      }),
    );
  });

  test("object identifiers", () => {
    const arc = fc.bigInt(0n, 2n ** 64n);
    const second = fc.integer({ min: 0, max: 39 });
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1 }), second, fc.array(arc, { maxLength: 5 }), (root, next, rest) => {
        const dotted = [root, next, ...rest].join(".");
        expect(readOid(new DerReader(encodeOid(dotted)).read())).toBe(dotted);
      }),
    );
  });

  test("octets, booleans and text", () => {
    expect(readOctets(new DerReader(encodeOctets(bytes("0102"))).read())).toEqual(bytes("0102"));
    expect(readBoolean(new DerReader(encodeBoolean(true)).read())).toBe(true);
    expect(readBoolean(new DerReader(encodeBoolean(false)).read())).toBe(false);
    expect(new DerReader(encodeText("web.example.org")).read().tag).toBe(TAG.printableString);
    expect(new DerReader(encodeText("w@b")).read().tag).toBe(TAG.utf8String);
    expect(faultOf(() => encodeAscii(contextTag(6), "ü"))).toMatchObject(MALFORMED);
  });

  test("a SET OF is in the order of its encodings", () => {
    expect(setOf(encodeUnsigned(2n), encodeUnsigned(1n)).toString("hex")).toBe("3106020101020102");
  });
});

test("T-X5 100,000 levels of nesting cost no stack", () => {
  const depth = 100_000;
  const tower = Buffer.concat([Buffer.from("3080".repeat(depth), "hex")]);
  expect(faultOf(() => readOnly(tower))).toMatchObject(MALFORMED);
  const sound = Array.from({ length: 2000 }).reduce<Buffer>((inner) => sequence(inner), Buffer.alloc(0));
  expect(new DerReader(sound).read(TAG.sequence).raw).toHaveLength(sound.length);
});

test("T-X5 any bytes are read or refused with a fault", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (input) => {
      try {
        for (const found of new DerReader(input).rest()) {
          for (const read of [readBoolean, readUnsigned, readSmallUnsigned, readOctets, readFlags, readOid, readTime]) {
            try {
              read(found);
            } catch (error) {
              expect(error).toMatchObject(MALFORMED);
            }
          }
        }
      } catch (error) {
        expect(error).toMatchObject(MALFORMED);
      }
    }),
    { numRuns: 2000 },
  );
});
