import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { describe, expect, test } from "vitest";
import { answerChallenge, makeChallenge, verifyResponse } from "../../../src/evidence/x509pop.ts";
import { faultOf } from "../../support/faults.ts";

const keys: Readonly<Record<string, { readonly publicKey: KeyObject; readonly privateKey: KeyObject }>> = {
  "P-256": generateKeyPairSync("ec", { namedCurve: "P-256" }),
  "P-384": generateKeyPairSync("ec", { namedCurve: "P-384" }),
  "P-521": generateKeyPairSync("ec", { namedCurve: "P-521" }),
  "RSA-2048": generateKeyPairSync("rsa", { modulusLength: 2048 }),
};
const read = (data: Uint8Array) => JSON.parse(Buffer.from(data).toString());
const write = (value: unknown) => Buffer.from(JSON.stringify(value));

describe("proof of possession", () => {
  test.each(Object.keys(keys))("%s: an answer of the key holds, for its challenge and its key only", (name) => {
    const { publicKey, privateKey } = keys[name] as (typeof keys)[string];
    const challenge = makeChallenge(publicKey);
    const answer = answerChallenge(privateKey, challenge.message);
    verifyResponse(publicKey, challenge, answer);
    expect(faultOf(() => verifyResponse(publicKey, makeChallenge(publicKey), answer)).kind).toBe("denied");
    const other = generateKeyPairSync("ec", { namedCurve: "P-256" });
    expect(faultOf(() => verifyResponse(other.publicKey, makeChallenge(other.publicKey), answer)).kind).toBe("denied");
  });

  test("halves with leading zeros left out, as Go sends them, hold", () => {
    const { publicKey, privateKey } = keys["P-256"] as (typeof keys)[string];
    for (let seen = 0; seen < 3; ) {
      const challenge = makeChallenge(publicKey);
      const { ecdsa_signature: answer } = read(answerChallenge(privateKey, challenge.message));
      const short = (text: string): string => {
        const half = Buffer.from(text, "base64");
        const start = half.findIndex((byte) => byte !== 0);
        if (start > 0) seen += 1;
        return half.subarray(start).toString("base64");
      };
      const trimmed = { ...answer, r: short(answer.r), s: short(answer.s) };
      verifyResponse(publicKey, challenge, write({ ecdsa_signature: trimmed }));
    }
  });

  test.each([
    ["absent", {}],
    ["null", { ecdsa_signature: null }],
    ["empty", { r: "", s: "" }],
    ["zero", { r: "AA==", s: "AA==" }],
    ["too long", { r: "A".repeat(48), s: "A".repeat(48) }],
    ["without one half", { r: "AQ==" }],
  ])("T-N8 a signature that is %s fails", (_, parts) => {
    const { publicKey } = keys["P-256"] as (typeof keys)[string];
    const nonce = Buffer.alloc(32).toString("base64");
    const answer = "r" in parts ? { ecdsa_signature: { nonce, ...parts } } : parts;
    expect(faultOf(() => verifyResponse(publicKey, makeChallenge(publicKey), write(answer))).kind).toBe("denied");
  });

  test("T-N8 an RSA signature that is empty, cut, or of PKCS#1 v1.5 fails", () => {
    const { publicKey, privateKey } = keys["RSA-2048"] as (typeof keys)[string];
    const challenge = makeChallenge(publicKey);
    const { rsa_signature: good } = read(answerChallenge(privateKey, challenge.message));
    const signed = Buffer.concat([challenge.nonce, Buffer.from(good.nonce, "base64")]);
    const pkcs1 = sign("sha256", signed, privateKey).toString("base64");
    for (const signature of ["", good.signature.slice(0, -4), pkcs1]) {
      const answer = write({ rsa_signature: { ...good, signature } });
      expect(faultOf(() => verifyResponse(publicKey, challenge, answer)).kind).toBe("denied");
    }
  });

  test("nonces of another length are refused on both sides", () => {
    const { publicKey, privateKey } = keys["P-256"] as (typeof keys)[string];
    for (const length of [0, 31, 33, 64]) {
      const nonce = Buffer.alloc(length).toString("base64");
      expect(faultOf(() => answerChallenge(privateKey, write({ ecdsa_signature: { nonce } }))).kind).toBe("invalid");
      const answer = write({ ecdsa_signature: { nonce, r: "AQ==", s: "AQ==" } });
      expect(faultOf(() => verifyResponse(publicKey, makeChallenge(publicKey), answer)).kind).toBe("denied");
    }
  });
});
