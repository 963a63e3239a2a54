import { createPublicKey, type KeyObject, sign, webcrypto } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  JWS_ALGORITHMS,
  type JwsAlgorithm,
  jwsHolds,
  jwsSigner,
  jwsSignerOf,
  parseJws,
  signJws,
} from "../../../src/crypto/jws.ts";
import { generateKey, KEY_TYPES } from "../../../src/crypto/key.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { base64url, flipBit, forge, shown, signParts, type TestKey, testKey } from "../../support/tokens.ts";

const p256 = testKey("p256");
const rsa = testKey("rsa", "RSA");
const KEYS: Readonly<Record<string, TestKey>> = {
  ES256: p256,
  ES384: testKey("p384", "P-384"),
  ES512: testKey("p521", "P-521"),
};
const keyFor = (algorithm: string): TestKey => KEYS[algorithm] ?? rsa;

const MALFORMED = refusal("invalid", "jws-malformed");
const ALGORITHM = refusal("invalid", "jws-algorithm");
const good = forge({ alg: "ES256" }, { sub: "x" }, p256.privateKey);
const [header = "", payload = "", signature = ""] = good.split(".");

describe("signatures", () => {
  test.each(JWS_ALGORITHMS)(
    "JWT-06 a token that another signer made with %s holds, and a changed one doesn't",
    async (alg) => {
      const { privateKey, publicKey } = keyFor(alg);
      const token = forge({ alg }, { sub: "x" }, privateKey);
      expect(await jwsHolds(parseJws(token), publicKey)).toBe(true);
      expect(await jwsHolds(parseJws(flipBit(token, 2, 13)), publicKey)).toBe(false);
      expect(await jwsHolds(parseJws(forge({ alg }, { sub: "x" }, testKey("y", "P-256").privateKey)), publicKey)).toBe(
        false,
      );
    },
  );

  test.each(JWS_ALGORITHMS)("what is signed with %s is taken by WebCrypto", async (alg) => {
    const { privateKey, publicKey } = keyFor(alg);
    const token = await signJws({ alg }, { sub: "x" }, jwsSignerOf(alg, privateKey));
    expect(await webcryptoHolds(token, alg, publicKey)).toBe(true);
    expect(await jwsHolds(parseJws(token), publicKey)).toBe(true);
  });

  test.each(KEY_TYPES)("JWT-05 a signing key of %s signs with its own algorithm", async (type) => {
    const key = await generateKey(type);
    const signer = jwsSigner(key);
    expect(signer.algorithm).toBe(
      { "ec-p256": "ES256", "ec-p384": "ES384", "rsa-2048": "RS256", "rsa-4096": "RS256" }[type],
    );
    const publicKey = createPublicKey({ key: Buffer.from(key.publicKey), format: "der", type: "spki" });
    // Enough of them that some r or s begins with a zero, which DER leaves out and JWS doesn't.
    for (let count = 0; count < (type.startsWith("ec") ? 300 : 2); count += 1) {
      const token = await signJws({ alg: signer.algorithm }, { count }, signer);
      expect(await jwsHolds(parseJws(token), publicKey)).toBe(true);
    }
  });

  test("JWT-05 a signer is not made for a key that does not fit", () => {
    expect(faultOf(() => jwsSignerOf("ES384", p256.privateKey))).toMatchObject(ALGORITHM);
    expect(faultOf(() => jwsSignerOf("RS256", p256.privateKey))).toMatchObject(ALGORITHM);
    expect(faultOf(() => jwsSignerOf("ES256", rsa.privateKey))).toMatchObject(ALGORITHM);
  });

  test("JWT-08 T-J3 an algorithm holds only with keys of its type and curve", async () => {
    for (const algorithm of JWS_ALGORITHMS) {
      for (const key of [...Object.values(KEYS), rsa]) {
        const jws = parseJws(forge({ alg: algorithm }, { sub: "x" }, key.privateKey));
        expect(await jwsHolds(jws, key.publicKey), `${algorithm} by ${key.keyId}`).toBe(keyFor(algorithm) === key);
      }
    }
  });

  test("JWT-08 an ECDSA signature in DER form is refused", async () => {
    const signed = `${header}.${payload}`;
    const der = sign("sha256", Buffer.from(signed), p256.privateKey);
    expect(await jwsHolds(parseJws(`${signed}.${base64url(der)}`), p256.publicKey)).toBe(false);
    const zero = Buffer.alloc(64);
    expect(await jwsHolds(parseJws(`${signed}.${base64url(zero)}`), p256.publicKey)).toBe(false);
  });

  test("the examples of RFC 7515, appendix A.3", async () => {
    const token =
      "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    const key = createPublicKey({
      format: "jwk",
      key: {
        kty: "EC",
        crv: "P-256",
        x: "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        y: "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
      },
    });
    const jws = parseJws(token);
    expect(jws.payload).toEqual({ iss: "joe", exp: 1300819380, "http://example.com/is_root": true });
    expect(await jwsHolds(jws, key)).toBe(true);
  });
});

async function webcryptoHolds(token: string, algorithm: JwsAlgorithm, key: KeyObject): Promise<boolean> {
  const [first, second, third = ""] = token.split(".");
  const hash = `SHA-${algorithm.slice(2)}`;
  const name = { ES: "ECDSA", RS: "RSASSA-PKCS1-v1_5", PS: "RSA-PSS" }[algorithm.slice(0, 2)] ?? "";
  const curve = { ES256: "P-256", ES384: "P-384", ES512: "P-521" }[algorithm as string];
  const parameters = {
    name,
    hash,
    saltLength: Number(algorithm.slice(2)) / 8,
    ...(curve ? { namedCurve: curve } : {}),
  };
  const imported = await webcrypto.subtle.importKey(
    "spki",
    key.export({ type: "spki", format: "der" }),
    parameters,
    false,
    ["verify"],
  );
  return webcrypto.subtle.verify(
    parameters,
    imported,
    Buffer.from(third, "base64url"),
    Buffer.from(`${first}.${second}`),
  );
}

describe("form", () => {
  test.each([
    { id: "JWT-01", what: "flattened JSON", token: JSON.stringify({ payload, protected: header, signature }) },
    {
      id: "JWT-01",
      what: "general JSON",
      token: JSON.stringify({ payload, signatures: [{ protected: header, signature }] }),
    },
    {
      id: "JWT-01 T-J3",
      what: "general JSON with two signatures",
      token: JSON.stringify({
        payload,
        signatures: [
          { protected: header, signature },
          { protected: header, signature },
        ],
      }),
    },
    { id: "JWT-02", what: "no dot", token: header },
    { id: "JWT-02", what: "one dot", token: `${header}.${payload}` },
    { id: "JWT-02", what: "three dots", token: `${good}.` },
    { id: "JWT-03", what: "an encrypted token", token: `${header}.${payload}.${payload}.${payload}.${signature}` },
    { id: "JWT-02", what: "an empty header", token: `.${payload}.${signature}` },
    { id: "JWT-02", what: "an empty payload", token: `${header}..${signature}` },
    { id: "JWT-02", what: "an empty signature", token: `${header}.${payload}.` },
    { id: "JWT-02", what: "padding", token: `${header}.${payload}.${signature}==` },
    { id: "JWT-02", what: "the other alphabet", token: `${header}.${payload}.${signature.slice(0, -1)}+` },
    { id: "JWT-02", what: "a slash", token: `${header}.${payload}.${signature.slice(0, -1)}/` },
    { id: "JWT-02", what: "a space before", token: ` ${good}` },
    { id: "JWT-02", what: "a space inside", token: `${header}. ${payload}.${signature}` },
    { id: "JWT-02", what: "a newline at the end", token: `${good}\n` },
    { id: "JWT-02", what: "a length that no bytes have", token: `${header}.${payload}.${signature}AAA` },
    { id: "JWT-02", what: "bits after the last byte", token: `${header}.${payload}.${spareBits(signature)}` },
    { id: "JWT-02", what: "nothing", token: "" },
  ])("$id refused: $what", ({ token }) => {
    expect(parseJws(good).payload).toEqual({ sub: "x" });
    expect(faultOf(() => parseJws(token))).toMatchObject(MALFORMED);
  });

  test.each([
    { id: "JWT-22", what: "a payload that is an array", payload: base64url("[]") },
    { id: "JWT-22", what: "a payload that is null", payload: base64url("null") },
    { id: "JWT-22", what: "a payload that is text", payload: base64url('"x"') },
    { id: "JWT-22", what: "a payload that is not JSON", payload: base64url("{sub:1}") },
    { id: "JWT-22", what: "JSON with something after it", payload: base64url("{}{}") },
    { id: "JWT-22", what: "a repeated member", payload: base64url('{"sub":"a","sub":"b"}') },
    { id: "JWT-22", what: "a repeated member, escaped", payload: base64url('{"sub":"a","s\\u0075b":"b"}') },
    {
      id: "JWT-22",
      what: "UTF-8 that is not valid",
      payload: base64url(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])),
    },
    { id: "JWT-22", what: "a byte order mark", payload: base64url("\ufeff{}") },
    { id: "JWT-03", what: "a token inside a token", payload: base64url(good) },
  ])("$id refused: $what", ({ payload: part }) => {
    const signed = signParts(base64url('{"alg":"ES256"}'), part, { algorithm: "ES256", key: p256.privateKey });
    expect(faultOf(() => parseJws(signed))).toMatchObject(MALFORMED);
  });

  test.each([{ crit: ["b64"], b64: false }, { crit: [] }, { crit: ["exp"] }, { crit: null }])(
    "JWT-04 T-J3 a header with critical extensions is refused: %j",
    (extra) => {
      const token = forge({ alg: "ES256", ...extra }, { sub: "x" }, p256.privateKey);
      expect(faultOf(() => parseJws(token))).toMatchObject(MALFORMED);
    },
  );

  test("JWT-04 a repeated member of the header is refused", () => {
    const token = signParts(base64url('{"alg":"ES256","alg":"ES256"}'), payload, {
      algorithm: "ES256",
      key: p256.privateKey,
    });
    expect(faultOf(() => parseJws(token))).toMatchObject(MALFORMED);
  });

  test.each([
    "none",
    "None",
    "NONE",
    "",
    undefined,
    "HS256",
    "HS384",
    "EdDSA",
    "ES256K",
    "es256",
    "RS1",
    256,
    null,
    ["ES256"],
  ])("JWT-06 JWT-07 T-J3 the algorithm %j is refused before anything else is looked at", (alg) => {
    for (const rest of [`${payload}.${signature}`, "%%%.", `${payload}.`]) {
      const refused = faultOf(() => parseJws(`${base64url(JSON.stringify({ alg }))}.${rest}`));
      expect(refused).toMatchObject(ALGORITHM);
      expect(refused.message).toContain(typeof alg === "string" ? shown(alg) : "missing or not text");
    }
  });

  test("T-J4 a token over 16 KiB is refused before it is taken apart, and dots cost nothing", () => {
    const claims = { sub: "x", pad: "p".repeat(16 * 1024) };
    expect(faultOf(() => parseJws(forge({ alg: "ES256" }, claims, p256.privateKey))).message).toContain("16 KiB");
    expect(faultOf(() => parseJws(".".repeat(100_000_000))).message).toContain("16 KiB");
    expect(faultOf(() => parseJws(".".repeat(16_000)))).toMatchObject(MALFORMED);
  });

  test("a token that its own parser would refuse is not signed", async () => {
    const signer = jwsSignerOf("ES256", p256.privateKey);
    await expect(signJws({ alg: "ES256" }, { pad: "p".repeat(16 * 1024) }, signer)).rejects.toMatchObject(MALFORMED);
  });
});

/** Another spelling of the same bytes, for decoders that don't look: the last character has bits to spare. */
function spareBits(part: string): string {
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  return part.slice(0, -1) + alphabet.charAt(alphabet.indexOf(part.at(-1) ?? "") + 1);
}

describe("properties", () => {
  test("JWT-22 whatever is signed comes back, and with one bit changed it never holds", async () => {
    const signer = jwsSignerOf("ES256", p256.privateKey);
    await fc.assert(
      fc.asyncProperty(
        fc.dictionary(fc.string(), fc.jsonValue()),
        fc.constantFrom(0 as const, 1 as const, 2 as const),
        fc.nat(10_000),
        async (claims, part, bit) => {
          const token = await signJws({ alg: "ES256" }, claims, signer);
          const jws = parseJws(token);
          expect(jws.payload).toEqual(JSON.parse(JSON.stringify(claims)));
          expect(await jwsHolds(jws, p256.publicKey)).toBe(true);
          expect(await readAndHolds(flipBit(token, part, bit))).toBe(false);
        },
      ),
    );
  });

  test("T-J4 no text makes the parser fail otherwise than by its own fault", () => {
    const parts = fc.array(
      fc.oneof(
        fc.string(),
        fc.base64String(),
        fc.constant(header),
        fc.json().map((text) => base64url(text)),
      ),
    );
    fc.assert(
      fc.property(parts, (all) => {
        try {
          parseJws(all.join("."));
        } catch (error) {
          expect(error).toBeInstanceOf(Fault);
        }
      }),
    );
  });
});

async function readAndHolds(token: string): Promise<boolean> {
  try {
    return await jwsHolds(parseJws(token), p256.publicKey);
  } catch {
    return false;
  }
}
