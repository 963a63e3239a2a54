import { createPublicKey, generateKeyPairSync } from "node:crypto";
import { describe, expect, test } from "vitest";
import { jwkFromPublicKey, publicKeyFromJwk } from "../../../src/crypto/jwk.ts";
import { generateKey, KEY_TYPES } from "../../../src/crypto/key.ts";
import { faultOf, refusal } from "../../support/faults.ts";

test.each(KEY_TYPES)("a key of %s becomes a JWK and comes back", async (type) => {
  const { publicKey } = await generateKey(type);
  const jwk = jwkFromPublicKey(publicKey);
  expect(Object.keys(jwk)).toEqual(type.startsWith("ec") ? ["kty", "crv", "x", "y"] : ["kty", "n", "e"]);
  expect(jwk).toEqual(
    createPublicKey({ key: Buffer.from(publicKey), format: "der", type: "spki" }).export({ format: "jwk" }),
  );
  expect(publicKeyFromJwk({ ...jwk })).toEqual(publicKey);
});

test("P-521 is a key for tokens", () => {
  const { publicKey } = generateKeyPairSync("ec", { namedCurve: "P-521" });
  expect(publicKeyFromJwk(publicKey.export({ format: "jwk" }) as Record<string, unknown>)).toEqual(
    publicKey.export({ format: "der", type: "spki" }),
  );
});

describe("T-X6 refused", async () => {
  const ec: Record<string, unknown> = { ...jwkFromPublicKey((await generateKey("ec-p256")).publicKey) };
  const rsa: Record<string, unknown> = { ...jwkFromPublicKey((await generateKey("rsa-2048")).publicKey) };
  const jwkOf = (pair: { readonly publicKey: import("node:crypto").KeyObject }) =>
    pair.publicKey.export({ format: "jwk" }) as Record<string, unknown>;
  const MALFORMED = refusal("invalid", "jwk-malformed");
  const WEAK = refusal("invalid", "public-key");
  test.each([
    { what: "no members at all", jwk: {}, fault: MALFORMED },
    { what: "a symmetric key", jwk: { kty: "oct", k: "AAAA" }, fault: MALFORMED },
    { what: "Ed25519, which signs no tokens here", jwk: jwkOf(generateKeyPairSync("ed25519")), fault: MALFORMED },
    { what: "an unknown curve", jwk: { ...ec, crv: "P-999" }, fault: MALFORMED },
    { what: "a curve of another length", jwk: { ...ec, crv: "P-384" }, fault: MALFORMED },
    { what: "secp256k1", jwk: jwkOf(generateKeyPairSync("ec", { namedCurve: "secp256k1" })), fault: WEAK },
    { what: "a point that is not on the curve", jwk: { ...ec, x: ec["y"], y: ec["x"] }, fault: MALFORMED },
    { what: "a coordinate that is missing", jwk: { ...ec, y: undefined }, fault: MALFORMED },
    { what: "a coordinate that is a number", jwk: { ...ec, y: 7 }, fault: MALFORMED },
    { what: "base64 that is not base64url", jwk: { ...ec, x: "a+b/=" }, fault: MALFORMED },
    { what: "RSA of 1024 bits", jwk: jwkOf(generateKeyPairSync("rsa", { modulusLength: 1024 })), fault: WEAK },
    { what: "RSA with the exponent 1", jwk: { ...rsa, e: "AQ" }, fault: WEAK },
    { what: "a modulus beyond all measure", jwk: { ...rsa, n: "A".repeat(100_000) }, fault: MALFORMED },
  ])("$what", ({ jwk, fault }) => {
    expect(faultOf(() => publicKeyFromJwk(jwk))).toMatchObject(fault);
  });
});
