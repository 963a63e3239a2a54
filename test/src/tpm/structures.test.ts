import { generateKeyPairSync } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Fault } from "../../../src/runtime/fault.ts";
import { endorsementCertificate } from "../../../src/tpm/endorsement.ts";
import {
  checkAttestationKey,
  checkDeviceKey,
  encodeSelection,
  endorsementPublic,
  nameOf,
  parseAttested,
  parsePublic,
  tpmSignatureHolds,
} from "../../../src/tpm/structures.ts";
import { faultOf } from "../../support/faults.ts";

const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 });
const ecc = generateKeyPairSync("ec", { namedCurve: "P-256" });

/** A public area with these attributes and this key. */
function area(attributes: number): Buffer {
  const { x = "", y = "" } = ecc.publicKey.export({ format: "jwk" });
  const flags = Buffer.alloc(4);
  flags.writeUInt32BE(attributes);
  const point = [x, y].map((half) => Buffer.concat([Buffer.of(0, 32), Buffer.from(half, "base64url")]));
  return Buffer.concat([
    Buffer.from("0023000b", "hex"),
    flags,
    Buffer.from("0000001000180 00b00030010".replaceAll(" ", ""), "hex"),
    ...point,
  ]);
}

describe("public areas", () => {
  test("the endorsement key's is made from a certificate's key and the template, and reads back as it", () => {
    for (const { publicKey } of [rsa, ecc]) {
      const raw = endorsementPublic(publicKey);
      expect(parsePublic(raw).key.equals(publicKey)).toBe(true);
      expect([raw.length, nameOf(parsePublic(raw)).length]).toEqual([publicKey === rsa.publicKey ? 314 : 122, 34]);
    }
    const { publicKey } = generateKeyPairSync("rsa", { modulusLength: 3072 });
    expect(faultOf(() => endorsementPublic(publicKey)).kind).toBe("denied");
  });

  test("T-N11 cut anywhere, or with a byte more, they are malformed", () => {
    for (const raw of [endorsementPublic(rsa.publicKey), area(0x00050072)]) {
      for (let length = 0; length < raw.length; length += 1)
        expect(faultOf(() => parsePublic(raw.subarray(0, length))).kind).toBe("invalid");
      expect(faultOf(() => parsePublic(Buffer.concat([raw, Buffer.of(0)]))).kind).toBe("invalid");
    }
  });

  test("T-N11 whatever the bytes, reading ends with a value or a fault", () => {
    const some = fc.uint8Array({ maxLength: 400 });
    fc.assert(
      fc.property(some, (data) => {
        for (const read of [parsePublic, parseAttested, endorsementCertificate]) {
          try {
            read(data);
          } catch (error) {
            expect(error).toBeInstanceOf(Fault);
          }
        }
      }),
    );
  });

  test.each([
    ["a restricted signing key of its TPM", 0x00050072, true, false],
    ["an unrestricted one", 0x00040072, false, true],
    ["one that may leave its TPM", 0x00050060, false, false],
    ["one that was imported", 0x00050052, false, false],
    ["one that also decrypts", 0x00070072, false, false],
    ["one that does not sign", 0x00010072, false, false],
  ])("T-N11 %s", (_, attributes, attests, identifies) => {
    const key = parsePublic(area(attributes));
    const passes = (check: () => void): boolean => {
      try {
        check();
        return true;
      } catch {
        return false;
      }
    };
    expect([passes(() => checkAttestationKey(key)), passes(() => checkDeviceKey(key))]).toEqual([attests, identifies]);
  });
});

describe("what was signed", () => {
  test("T-N8 a signature of another scheme, hash or length is none", () => {
    const key = parsePublic(area(0x00050072));
    for (const text of ["0018000b00000000", "0014000b0000", "0018000400010100 0101", "0018000c000101000101"])
      expect(tpmSignatureHolds(key, Buffer.of(1), Buffer.from(text.replaceAll(" ", ""), "hex"))).toBe(false);
  });

  test("data without the TPM's mark are refused", () => {
    expect(faultOf(() => parseAttested(Buffer.from("00000000801800", "hex"))).kind).toBe("denied");
  });

  test("selections are written as the TPM has them", () => {
    expect(encodeSelection({ hash: 0xb, pcrs: [0, 7, 23] }).toString("hex")).toBe("00000001000b03810080");
  });
});

describe("the certificate in NV", () => {
  const der = Buffer.concat([Buffer.from("30820003", "hex"), Buffer.of(1, 2, 3)]);

  test("is cut where it ends, and freed of an old header", () => {
    expect(endorsementCertificate(Buffer.concat([der, Buffer.alloc(40, 0xff)]))).toEqual(der);
    expect(endorsementCertificate(Buffer.concat([Buffer.from("1001000007", "hex"), der]))).toEqual(der);
    expect(faultOf(() => endorsementCertificate(Buffer.alloc(20))).kind).toBe("invalid");
  });
});
