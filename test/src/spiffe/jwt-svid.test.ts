import { createHmac } from "node:crypto";
import { describe, expect, test } from "vitest";
import { parseJws } from "../../../src/crypto/jws.ts";
import { generateKey, localSigner } from "../../../src/crypto/key.ts";
import type { TokenAuthority } from "../../../src/spiffe/bundle.ts";
import { parseSpiffeId, parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { type JwtSvidOptions, signJwtSvid, validateJwtSvid } from "../../../src/spiffe/jwt-svid.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { base64url, flipBit, forge, type Members, shown, testKey } from "../../support/tokens.ts";

const NOW = new Date("2026-05-01T12:00:00Z");
const now = NOW.getTime() / 1000;
const A = parseTrustDomain("example.org");
const B = parseTrustDomain("partner.test");
const ja1 = testKey("ja1");
const ja2 = testKey("ja2", "RSA");
const jb1 = testKey("jb1");
const wa1 = testKey("wa1");
const BUNDLES = new Map<TrustDomain, readonly TokenAuthority[]>([
  [A, [ja1.authority, ja2.authority]],
  [B, [jb1.authority]],
]);
const authorities = (trustDomain: TrustDomain) => BUNDLES.get(trustDomain);

/** As section 0 of the requirements has it; a member that is undefined is left out. */
function jwt(header: Members = {}, claims: Members = {}, key = ja1): string {
  return forge(
    { alg: "ES256", kid: "ja1", typ: "JWT", ...header },
    { sub: "spiffe://example.org/web", aud: ["reports"], exp: now + 300, iat: now, ...claims },
    key.privateKey,
  );
}

const validate = (token: string, options: Partial<JwtSvidOptions> = {}) =>
  validateJwtSvid({ token, audience: ["reports"], authorities, at: NOW, ...options });

async function refused(token: string, code: string, options: Partial<JwtSvidOptions> = {}): Promise<string> {
  expect((await validate(jwt())).id).toBe("spiffe://example.org/web");
  const fault = await faultFrom(validate(token, options));
  expect(fault).toMatchObject(refusal("denied", code));
  return fault.message;
}

describe("header", () => {
  test.each([
    ["RS256", ja2],
    ["RS384", ja2],
    ["RS512", ja2],
    ["PS256", ja2],
    ["PS384", ja2],
    ["PS512", ja2],
    ["ES256", ja1],
    ["ES384", testKey("e384", "P-384")],
    ["ES512", testKey("e512", "P-521")],
  ] as const)("JWT-06 %s is accepted with a key that fits", async (alg, key) => {
    const token = jwt({ alg, kid: key.keyId }, {}, key);
    expect((await validate(token, { authorities: () => [key.authority] })).claims["sub"]).toBe(
      "spiffe://example.org/web",
    );
  });

  test.each(["none", "HS256", "EdDSA", undefined])(
    "JWT-06 JWT-07 algorithm %s is refused before any key is looked up",
    async (alg) => {
      const asked: TrustDomain[] = [];
      const watched = (trustDomain: TrustDomain) => {
        asked.push(trustDomain);
        return authorities(trustDomain);
      };
      await refused(jwt({ alg }), "jws-algorithm", { authorities: watched });
      expect(asked).toEqual([]);
    },
  );

  test.each(["der", "pem"] as const)("JWT-06 T-J3 HS256 keyed with the public key in %s is refused", async (format) => {
    const head = `${base64url('{"alg":"HS256","kid":"ja1"}')}.${jwt().split(".")[1]}`;
    const key = ja1.publicKey.export({ type: "spki", format } as { type: "spki"; format: "der" });
    await refused(`${head}.${createHmac("sha256", key).update(head).digest("base64url")}`, "jws-algorithm");
  });

  test("JWT-08 RS256 with the id of an EC key is refused", async () => {
    await refused(jwt({ alg: "RS256" }, {}, ja2), "token-signature");
  });

  test("JWT-04 harmless headers are ignored and never followed; crit is refused", async () => {
    const headers = {
      jku: "https://evil.test",
      x5u: "https://evil.test",
      jwk: jb1.publicKey.export({ format: "jwk" }),
    };
    await validate(jwt({ ...headers, x5c: ["AAAA"], b: 1 }));
    await refused(jwt({ jwk: jb1.publicKey.export({ format: "jwk" }) }, {}, jb1), "token-signature");
    await refused(jwt({ crit: ["b64"], b64: true }), "jws-malformed");
  });

  test("JWT-09 a token without kid is tried with the keys of its own domain", async () => {
    await validate(jwt({ kid: undefined }));
    await validate(jwt({ kid: undefined, alg: "RS256" }, {}, ja2));
    await refused(jwt({ kid: undefined }, {}, jb1), "token-signature");
  });

  test("JWT-09 no more than eight keys are tried", async () => {
    const nine = [...Array.from({ length: 8 }, (_, index) => testKey(`k${index}`).authority), ja1.authority];
    await refused(jwt({ kid: undefined }), "token-signature", { authorities: () => nine });
    await validate(jwt({ kid: undefined }), { authorities: () => nine.slice(1) });
  });

  test.each([
    { kid: "zzz", key: ja1, code: "token-kid" },
    { kid: "JA1", key: ja1, code: "token-kid" },
    { kid: "ja2", key: ja1, code: "token-signature" },
    { kid: "jb1", key: jb1, code: "token-kid" },
    { kid: "", key: ja1, code: "token-kid" },
    { kid: 1, key: ja1, code: "token-kid" },
    { kid: null, key: ja1, code: "token-kid" },
  ])("JWT-10 T-J3 kid $kid is refused", async ({ kid, key, code }) => {
    await refused(jwt({ kid }, {}, key), code);
  });

  test.each([undefined, "JWT", "JOSE"])("JWT-11 typ %s is accepted", async (typ) => {
    await validate(jwt({ typ }));
  });

  test.each(["jwt", "at+jwt", "wit+jwt", "wpt+jwt", "", 1, null])("JWT-11 WIT-34 typ %j is refused", async (typ) => {
    await refused(jwt({ typ }), "token-typ");
  });
});

describe("claims", () => {
  test("JWT-12 T-J5 further claims are kept and change nothing", async () => {
    const extra = {
      iss: "x",
      nbf: now,
      iat: now,
      jti: "1",
      "https://x/y": {},
      client_id: "spiffe://example.org/admin",
    };
    const svid = await validate(jwt({}, extra));
    expect(svid).toMatchObject({ id: "spiffe://example.org/web", audience: ["reports"], claims: extra });
  });

  test.each([
    undefined,
    "",
    7,
    ["spiffe://example.org/web"],
    null,
    "example.org/web",
    "spiffe://Example.org/web",
    "spiffe://example.org/web?x",
    `spiffe://example.org/${"a".repeat(2029)}`,
    "spiffe://example.org",
  ])("JWT-13 sub %j is refused", async (sub) => {
    await refused(jwt({}, { sub }), "token-subject");
  });

  test("JWT-13 an ID of 2048 bytes is accepted", async () => {
    const sub = `spiffe://example.org/${"a".repeat(2048 - 21)}`;
    expect(sub).toHaveLength(2048);
    expect((await validate(jwt({}, { sub }))).id).toBe(sub);
  });

  test.each([undefined, [], null, 5, {}, [5], ["reports", 5]])("JWT-15 T-J2 aud %j is refused", async (aud) => {
    await refused(jwt({}, { aud }), "token-aud");
  });

  test.each(
    [["other"], "other", ["Reports"], ["reports/"], ["reportsX"], "report", ["reports "], ""].map((aud) => ({ aud })),
  )("JWT-16 T-J2 aud $aud is not for this validator", async ({ aud }) => {
    expect(await refused(jwt({}, { aud }), "token-audience")).toContain('expected audience in ["reports"]');
  });

  test.each(["reports", ["reports"], ["x", "reports"]].map((aud) => ({ aud })))(
    "JWT-16 aud $aud is accepted",
    async ({ aud }) => {
      expect((await validate(jwt({}, { aud }))).audience).toEqual([aud].flat());
    },
  );

  test("JWT-16 T-J2 a validator without an audience of its own accepts nothing", async () => {
    for (const audience of [[], [""]])
      expect(await faultFrom(validate(jwt(), { audience }))).toMatchObject(refusal("invalid", "audience-missing"));
    await refused(jwt({}, { aud: [""] }), "token-audience", { audience: ["", "reports"] });
  });

  test.each([undefined, null, "1999999999", {}, [now + 300], true])("JWT-19 T-J1 exp %j is refused", async (exp) => {
    await refused(jwt({}, { exp }), "token-exp");
  });

  test.each([
    { exp: now + 1, leewayMs: 60_000 },
    { exp: now, leewayMs: 60_000 },
    { exp: now - 59, leewayMs: 60_000 },
    { exp: now + 10.5, leewayMs: 0 },
    { exp: 1.9e9, leewayMs: 0 },
    { exp: 2 ** 53, leewayMs: 0 },
    { exp: 1e300, leewayMs: 0 },
  ])("JWT-19 JWT-20 T-J1 exp $exp is accepted with a leeway of $leewayMs ms", async ({ exp, leewayMs }) => {
    const svid = await validate(jwt({}, { exp }), { leewayMs });
    expect(Number.isNaN(svid.expiresAt.getTime())).toBe(false);
  });

  test.each([
    { exp: now - 61, leewayMs: 60_000 },
    { exp: now, leewayMs: 0 },
    { exp: -1, leewayMs: 60_000 },
    { exp: -1e300, leewayMs: 60_000 },
  ])("JWT-20 T-J1 exp $exp is past with a leeway of $leewayMs ms", async ({ exp, leewayMs }) => {
    expect(await refused(jwt({}, { exp }), "token-expired", { leewayMs })).toBe("token has expired");
  });

  test("JWT-21 T-J1 nbf is honoured, and iat never makes a token early", async () => {
    await refused(jwt({}, { nbf: now + 120 }), "token-not-yet-valid");
    await refused(jwt({}, { nbf: "x" }), "token-nbf");
    await refused(jwt({}, { iat: "x" }), "token-iat");
    await validate(jwt({}, { nbf: now + 30 }));
    await validate(jwt({}, { iat: now + 100_000, exp: now + 200_000 }));
    await validate(jwt({}, { iat: undefined }));
  });

  test("JWT-30 a token with a jti may be validated twice", async () => {
    const token = jwt({}, { jti: "1" });
    await validate(token);
    await validate(token);
  });
});

describe("keys", () => {
  test("JWT-22 one changed bit anywhere is refused", async () => {
    const token = jwt();
    for (const part of [0, 1, 2] as const) {
      const fault = await faultFrom(validate(flipBit(token, part, 77)));
      expect(fault.kind).toBe("denied");
    }
  });

  test("JWT-23 TDB-02 only the keys of the subject's own domain count", async () => {
    await refused(jwt({}, { sub: "spiffe://partner.test/web" }), "token-kid");
    await refused(jwt({ kid: "jb1" }, { sub: "spiffe://partner.test/web" }), "token-signature");
    const message = await refused(jwt({}, { sub: "spiffe://third.test/web" }), "no-bundle");
    expect(message).toBe('no keys found for trust domain "third.test"');
    await validate(jwt({ kid: "jb1" }, { sub: "spiffe://partner.test/web" }, jb1));
  });

  test("JWT-28 WAPI-59 a token signed by a key for other tokens is refused", async () => {
    await refused(jwt({ kid: "wa1" }, {}, wa1), "token-kid");
  });

  test("JWT-29 TDB-14 a domain without keys for tokens supports none", async () => {
    await refused(jwt(), "token-unsupported", { authorities: () => [] });
  });

  test("WIT-39 two keys under one id: neither is taken", async () => {
    const clash = { ...jb1.authority, keyId: "ja1" };
    await refused(jwt(), "token-kid", { authorities: () => [ja1.authority, clash] });
  });
});

describe("issuing", () => {
  const template = {
    subject: parseSpiffeId("spiffe://example.org/web"),
    audience: ["a", "b"],
    issuedAt: new Date(NOW.getTime() + 400),
    expiresAt: new Date(NOW.getTime() + 300_400),
  };
  const key = { keyId: "ja1", signer: localSigner(ja1.privateKey) };

  test("JWT-04 JWT-13 JWT-14 JWT-18 what is signed has the headers and claims of the standard and is valid", async () => {
    const token = await signJwtSvid(template, key);
    const { header, payload } = parseJws(token);
    expect(header).toEqual({ alg: "ES256", kid: "ja1", typ: "JWT" });
    expect(payload).toEqual({ sub: template.subject, aud: ["a", "b"], exp: now + 300, iat: now });
    expect(await validate(token, { audience: ["b"] })).toMatchObject({ id: template.subject, audience: ["a", "b"] });
  });

  test("JWT-12 an issuer and a jti are set when asked for", async () => {
    const { payload } = parseJws(await signJwtSvid({ ...template, issuer: "https://idp.test", jti: "j" }, key));
    expect(payload).toMatchObject({ iss: "https://idp.test", jti: "j" });
  });

  test.each(["ec-p384", "rsa-2048"] as const)("JWT-05 a key of %s signs valid tokens", async (type) => {
    const signer = await generateKey(type);
    const token = await signJwtSvid(template, { keyId: "k", signer });
    const authority = { publicKey: signer.publicKey, keyId: "k", expiresAt: 0, tainted: false };
    await validate(token, { audience: ["a"], authorities: () => [authority] });
  });

  test.each([[], [""], ["", ""]].map((audience) => ({ audience })))(
    "JWT-14 an audience of $audience is refused",
    async ({ audience }) => {
      const fault = await faultFrom(signJwtSvid({ ...template, audience }, key));
      expect(fault).toMatchObject(refusal("invalid", "audience-missing"));
    },
  );

  test("JWT-14 empty values are left out, and the order is kept", async () => {
    const { payload } = parseJws(await signJwtSvid({ ...template, audience: ["z", "", "a"] }, key));
    expect(payload["aud"], shown(payload)).toEqual(["z", "a"]);
  });
});
