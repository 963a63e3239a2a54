import { generateKeyPairSync } from "node:crypto";
import { describe, expect, test } from "vitest";
import { parseJws } from "../../../src/crypto/jws.ts";
import { localSigner } from "../../../src/crypto/key.ts";
import { parseSpiffeId, parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { signWitSvid, validateWitSvid, type WitSvidOptions } from "../../../src/spiffe/wit-svid.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { forge, type Members, testKey } from "../../support/tokens.ts";

const NOW = new Date("2026-05-01T12:00:00Z");
const now = NOW.getTime() / 1000;
const A = parseTrustDomain("example.org");
const wa1 = testKey("wa1");
const ja1 = testKey("ja1");
const held = testKey("held");
const heldRsa = testKey("rsa", "RSA");
const jwkOf = (key: typeof held): Members => key.publicKey.export({ format: "jwk" }) as Members;
const P = { ...jwkOf(held), alg: "ES256" };
const authorities = (trustDomain: TrustDomain) => (trustDomain === A ? [wa1.authority] : undefined);

function wit(header: Members = {}, claims: Members = {}, key = wa1): string {
  return forge(
    { alg: "ES256", kid: "wa1", typ: "wit+jwt", ...header },
    { sub: "spiffe://example.org/web", exp: now + 3600, cnf: { jwk: P }, ...claims },
    key.privateKey,
  );
}

const validate = (token: string, options: Partial<WitSvidOptions> = {}) =>
  validateWitSvid({ token, authorities, at: NOW, ...options });

async function refused(token: string, code: string, options: Partial<WitSvidOptions> = {}): Promise<void> {
  await validate(wit());
  expect(await faultFrom(validate(token, options))).toMatchObject(refusal("denied", code));
}

describe("header", () => {
  test.each([undefined, "", 7, null])("WIT-01 kid %j is refused", async (kid) => {
    await refused(wit({ kid }), "token-kid");
  });

  test.each(["wa2", "WA1", "k".repeat(1024), "é/../wa1"])("WIT-02 kid %s is compared as it is", async (kid) => {
    await refused(wit({ kid }), "token-kid");
    await validate(wit({ kid }), { authorities: () => [{ ...wa1.authority, keyId: kid }] });
  });

  test.each([undefined, "JWT", "JOSE", "wpt+jwt", "", "WIT+JWT", "application/wit+jwt", 1])(
    "WIT-04 typ %j is refused",
    async (typ) => {
      await refused(wit({ typ }), "token-typ");
    },
  );

  test.each(["none", "HS256", "ES256K", "es256", undefined])("WIT-06 alg %s is refused", async (alg) => {
    await refused(wit({ alg }), "jws-algorithm");
  });

  test("WIT-06 EdDSA is refused, though WIMSE knows it", async () => {
    const { privateKey } = generateKeyPairSync("ed25519");
    await refused(wit({ alg: "EdDSA" }, {}, { ...wa1, privateKey }), "jws-algorithm");
  });

  test("WIT-08 unknown headers are ignored, critical ones refused", async () => {
    await validate(wit({ x: 1, jku: "https://evil.test" }));
    await refused(wit({ crit: ["x"], x: 1 }), "jws-malformed");
    await refused(wit({ crit: [] }), "jws-malformed");
  });
});

describe("claims", () => {
  test.each([
    undefined,
    "",
    7,
    ["spiffe://example.org/web"],
    "wimse://example.com/w",
    "example.org/web",
    "spiffe://Example.org/web",
    "spiffe://example.org",
  ])("WIT-09 sub %j is refused", async (sub) => {
    await refused(wit({}, { sub }), "token-subject");
  });

  test.each([undefined, null, "x", {}, [], 1])("WIT-10 cnf %j is refused", async (cnf) => {
    await refused(wit({}, { cnf }), "token-cnf");
  });

  const weak = generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey.export({ format: "jwk" }) as Members;
  const edwards = generateKeyPairSync("ed25519").publicKey.export({ format: "jwk" }) as Members;
  test.each([
    { id: "WIT-11", what: "a key id", cnf: { kid: "x" } },
    { id: "WIT-11", what: "a thumbprint", cnf: { jkt: "x" } },
    { id: "WIT-11", what: "an encrypted key", cnf: { jwe: "x" } },
    {
      id: "WIT-11",
      what: "a private key",
      cnf: { jwk: { ...held.privateKey.export({ format: "jwk" }), alg: "ES256" } },
    },
    { id: "WIT-11", what: "a symmetric key", cnf: { jwk: { kty: "oct", k: "AAAA", alg: "HS256" } } },
    { id: "WIT-11", what: "a point off the curve", cnf: { jwk: { ...P, x: jwkOf(held)["y"], y: jwkOf(held)["x"] } } },
    { id: "WIT-11", what: "a short RSA key", cnf: { jwk: { ...weak, alg: "RS256" } } },
    { id: "WIT-11", what: "a list of keys", cnf: { jwk: [P] } },
    { id: "WIT-12", what: "no algorithm", cnf: { jwk: { ...P, alg: undefined } } },
    { id: "WIT-12", what: "none", cnf: { jwk: { ...P, alg: "none" } } },
    { id: "WIT-12", what: "HS256", cnf: { jwk: { ...P, alg: "HS256" } } },
    { id: "WIT-12", what: "EdDSA", cnf: { jwk: { ...edwards, alg: "EdDSA" } } },
    { id: "WIT-12", what: "ECDH-ES", cnf: { jwk: { ...P, alg: "ECDH-ES" } } },
    { id: "WIT-12", what: "ES256 with P-384", cnf: { jwk: { ...jwkOf(testKey("k", "P-384")), alg: "ES256" } } },
    { id: "WIT-12", what: "PS256 with an EC key", cnf: { jwk: { ...P, alg: "PS256" } } },
  ])("$id a cnf of $what is refused", async ({ cnf }) => {
    await refused(wit({}, { cnf }), "token-cnf");
  });

  test("WIT-12 an RSA key for PS256 is accepted", async () => {
    const { confirmation } = await validate(wit({}, { cnf: { jwk: { ...jwkOf(heldRsa), alg: "PS256" } } }));
    expect(confirmation.algorithm).toBe("PS256");
    expect(confirmation.key.equals(heldRsa.publicKey)).toBe(true);
  });

  test.each([undefined, null, "1999999999", {}])("WIT-17 exp %j is refused", async (exp) => {
    await refused(wit({}, { exp }), "token-exp");
  });

  test("WIT-18 WIT-19 a past exp is refused, beyond a leeway of at most two minutes", async () => {
    await validate(wit({}, { exp: now - 59 }), { leewayMs: 60_000 });
    await refused(wit({}, { exp: now - 61 }), "token-expired", { leewayMs: 60_000 });
    await refused(wit({}, { exp: now - 1 }), "token-expired", { leewayMs: 0 });
    await validate(wit({}, { exp: now - 119 }), { leewayMs: 120_000 });
    for (const leewayMs of [121_000, -1, Number.NaN])
      expect(await faultFrom(validate(wit(), { leewayMs }))).toMatchObject(refusal("invalid", "leeway"));
  });

  test("WIT-21 a future nbf is refused without leeway", async () => {
    await refused(wit({}, { nbf: now + 1 }), "token-not-yet-valid", { leewayMs: 0 });
    await refused(wit({}, { nbf: now + 30 }), "token-not-yet-valid", { leewayMs: 60_000 });
    await validate(wit({}, { nbf: now - 1 }));
  });

  test("WIT-22 policy can cap the lifetime, from nbf alone", async () => {
    const maxLifetimeMs = 3_600_000;
    await validate(wit({}, { nbf: now - 10, exp: now + 3590 }), { maxLifetimeMs });
    await refused(wit({}, { nbf: now - 10, exp: now + 3591 }), "token-lifetime", { maxLifetimeMs });
    await validate(wit({}, { iat: now - 10, exp: now + 90_000 }), { maxLifetimeMs });
  });

  test("WIT-13 WIT-23 WIT-24 WIT-25 WIT-29 iat, jti, iss and unknown claims change nothing", async () => {
    await validate(wit({}, { iat: now + 3600, exp: now + 7200 }));
    const { id, claims } = await validate(wit({}, { jti: "x", iss: "https://evil.test", x: { y: 1 } }));
    expect(id).toBe("spiffe://example.org/web");
    expect(claims).toMatchObject({ jti: "x", x: { y: 1 } });
  });

  test.each([[["reports"]], ["x"], [[]], [null]])("WIT-27 aud %j is refused", async (aud) => {
    await refused(wit({}, { aud }), "token-aud");
  });
});

describe("keys", () => {
  test("WIT-40 a token signed by a key for JWT-SVIDs is refused", async () => {
    await refused(wit({ kid: "ja1" }, {}, ja1), "token-kid");
    await refused(wit({}, {}, ja1), "token-signature");
  });

  test("WIT-41 a domain without keys for WIT-SVIDs supports none; one without a bundle is not trusted", async () => {
    await refused(wit(), "token-unsupported", { authorities: () => [] });
    await refused(wit({}, { sub: "spiffe://third.test/w" }), "no-bundle");
  });
});

describe("issuing", () => {
  const template = {
    subject: parseSpiffeId("spiffe://example.org/web"),
    publicKey: held.authority.publicKey,
    algorithm: "ES256",
    issuedAt: NOW,
    expiresAt: new Date(NOW.getTime() + 3_600_000),
  } as const;
  const key = { keyId: "wa1", signer: localSigner(wa1.privateKey) };

  test("WIT-05 WIT-07 WIT-27 WIT-30 what is signed has the headers and claims of the standard and is valid", async () => {
    const token = await signWitSvid(template, key);
    const { header, payload } = parseJws(token);
    expect(header).toEqual({ alg: "ES256", kid: "wa1", typ: "wit+jwt" });
    expect(payload).toEqual({ sub: template.subject, exp: now + 3600, iat: now, cnf: { jwk: P } });
    const svid = await validate(token);
    expect(svid.id).toBe(template.subject);
    expect(svid.confirmation.key.equals(held.publicKey)).toBe(true);
  });

  test("WIT-05 WIT-12 a confirmation key that does not fit its algorithm is refused", async () => {
    for (const algorithm of ["ES384", "RS256"] as const)
      expect(await faultFrom(signWitSvid({ ...template, algorithm }, key))).toMatchObject(
        refusal("invalid", "jws-algorithm"),
      );
  });

  test("WIT-13 WIT-25 a jti and an issuer are set when asked for", async () => {
    const { payload } = parseJws(await signWitSvid({ ...template, jti: "j", issuer: "spiffe://example.org" }, key));
    expect(payload).toMatchObject({ jti: "j", iss: "spiffe://example.org" });
  });
});
