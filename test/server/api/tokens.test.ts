import { generateKeyPairSync, verify } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { publicKeyFromJwk } from "../../../src/crypto/jwk.ts";
import { JWS_ALGORITHMS } from "../../../src/crypto/jws.ts";
import { generateKey } from "../../../src/crypto/key.ts";
import type { JWTKey__Output } from "../../../src/rpc/gen/spire/api/types/JWTKey.ts";
import { validateJwtSvid } from "../../../src/spiffe/jwt-svid.ts";
import { validateWitSvid } from "../../../src/spiffe/wit-svid.ts";
import { faultFrom } from "../../support/faults.ts";
import { type Apis, protoId, startServer, type TestServer, type TestSvid } from "../../support/server.ts";

const ID = "spiffe://example.org/minted";
const WIT = { feature_flags: ["wit-svid"] };

let server: TestServer;
let agentSvid: TestSvid;
let agent: Apis;
beforeAll(async () => {
  server = await startServer({ server: { jwt_issuer: "https://issuer.test", experimental: WIT } });
  agentSvid = await server.attest();
  agent = server.connect(agentSvid.tls);
});
afterAll(async () => {
  agent[Symbol.dispose]();
  await server[Symbol.asyncDispose]();
});

type Claims = Readonly<Record<string, unknown>>;

function decode(token: string): { readonly header: Claims; readonly claims: Claims } {
  const [header = "", claims = ""] = token.split(".");
  const read = (part: string): Claims => JSON.parse(Buffer.from(part, "base64url").toString());
  return { header: read(header), claims: read(claims) };
}

/** Checks the signature with nothing but the bundle and the crypto of Node, and returns what was signed. */
function verified(token: string, keys: readonly JWTKey__Output[]): ReturnType<typeof decode> {
  const { header, claims } = decode(token);
  const key = keys.find(({ key_id }) => key_id === header["kid"]);
  if (key === undefined) throw new Error("the bundle has no such key");
  const [head, body, signature = ""] = token.split(".");
  const hash = header["alg"] === "ES384" ? "sha384" : "sha256";
  const spki = { key: key.public_key, format: "der", type: "spki", dsaEncoding: "ieee-p1363" } as const;
  const holds = verify(hash, Buffer.from(`${head}.${body}`), spki, Buffer.from(signature, "base64url"));
  expect(holds).toBe(true);
  return { header, claims };
}

async function jwtKeys(from = server): Promise<readonly JWTKey__Output[]> {
  return (await from.admin.bundle.GetBundle({})).jwt_authorities;
}

async function witKeys(from = server): Promise<readonly JWTKey__Output[]> {
  return (await from.admin.bundle.GetBundle({})).wit_authorities;
}

let made = 0;
function entryFor(more: Partial<Parameters<TestServer["createEntry"]>[0]> = {}) {
  made += 1;
  return server.createEntry({ spiffeId: `spiffe://example.org/t${made}`, parentId: agentSvid.id, ...more });
}

const unixNow = (): number => Math.floor(Date.now() / 1000);

describe("MintJWTSVID", () => {
  const mint = (request: { id?: string; audience?: string[]; ttl?: number }, from = server) =>
    from.admin.svid.MintJWTSVID({
      id: protoId(request.id ?? ID),
      audience: request.audience ?? ["a"],
      ttl: request.ttl ?? 0,
    });

  test("JWT-04 JWT-09 JWT-11 JWT-12 JWT-13 JWT-14 JWT-18 holds exactly alg, kid, typ and SPIRE's claims", async () => {
    const before = unixNow();
    const { svid } = await mint({ audience: ["b", "", "a"], ttl: 90 });
    const { header, claims } = verified(svid?.token ?? "", await jwtKeys());
    expect(header).toEqual({ alg: "ES256", kid: expect.stringMatching(/^[A-Za-z0-9]{32}$/), typ: "JWT" });
    const iat = Number(claims["iat"]);
    expect(claims).toEqual({ sub: ID, aud: ["b", "a"], iat, exp: iat + 90, iss: "https://issuer.test" });
    expect(iat).toBeGreaterThanOrEqual(before);
    expect(svid).toMatchObject({ id: protoId(ID), issued_at: String(iat), expires_at: String(iat + 90) });
  });

  test.each([0, -1, -(2 ** 31)])("JWT-18 a lifetime of %d is the default", async (ttl) => {
    const { svid } = await mint({ ttl });
    expect(Number(svid?.expires_at) - Number(svid?.issued_at)).toBe(300);
  });

  test("a lifetime ends with that of the key", async () => {
    const { svid } = await mint({ ttl: 2 ** 31 - 1 });
    const { header } = decode(svid?.token ?? "");
    const key = (await jwtKeys()).find(({ key_id }) => key_id === header["kid"]);
    expect(svid?.expires_at).toBe(key?.expires_at);
  });

  test("our own validator accepts it for its audience only, in its own trust domain only", async () => {
    const { svid } = await mint({ audience: ["reports"] });
    const keys = (await jwtKeys()).map(({ public_key, key_id }) => ({
      publicKey: public_key,
      keyId: key_id,
      expiresAt: 0,
      tainted: false,
    }));
    const validate = (audience: string, trusts = "example.org") =>
      validateJwtSvid({
        token: svid?.token ?? "",
        audience: [audience],
        authorities: (trustDomain) => (trustDomain === trusts ? keys : undefined),
        at: new Date(Date.now()),
      });
    expect((await validate("reports")).id).toBe(ID);
    expect((await faultFrom(validate("report"))).code).toBe("token-audience");
    expect((await faultFrom(validate("reports", "other.test"))).code).toBe("no-bundle");
  });

  test.each([
    { what: "no audience", request: { audience: [] }, message: "at least one audience is required" },
    { what: "an empty audience", request: { audience: ["", ""] }, message: "at least one audience is required" },
    {
      what: "another trust domain",
      request: { id: "spiffe://other.test/w" },
      message: 'invalid SPIFFE ID: "spiffe://other.test/w" is not a member of trust domain "example.org"',
    },
    { what: "the trust domain itself", request: { id: "spiffe://example.org" }, message: "invalid SPIFFE ID: " },
    { what: "a reserved ID", request: { id: "spiffe://example.org/spire/server" }, message: "invalid SPIFFE ID: " },
    { what: "T-J4 an audience of 20 KB", request: { audience: ["a".repeat(20_000)] }, message: "16 KiB" },
  ])("JWT-13 JWT-14 T-J2 $what is refused", async ({ request, message }) => {
    const fault = await faultFrom(mint(request));
    expect([fault.kind, fault.message]).toEqual(["invalid", expect.stringContaining(message)]);
  });

  test("JWT-17 several audiences, or the whole trust domain as one, are warned of", async () => {
    await mint({ audience: ["x", "y"] });
    await server.untilLogged("JWT-SVID is minted for several audiences", { count: 2 });
    await mint({ audience: ["spiffe://example.org"] });
    await server.untilLogged("JWT-SVID is minted for the whole trust domain; name the service that it is for");
  });
});

describe("NewJWTSVID", () => {
  test("ID and lifetime are the entry's; a jti only when the entry asks for it (JWT-30)", async () => {
    const plain = await entryFor({ jwt_svid_ttl: 77 });
    const { svid } = await agent.svid.NewJWTSVID({ entry_id: plain.id, audience: ["a"] });
    const { claims } = verified(svid?.token ?? "", await jwtKeys());
    expect(claims["sub"]).toBe(`spiffe://example.org${plain.spiffe_id?.path}`);
    expect([Number(claims["exp"]) - Number(claims["iat"]), "jti" in claims]).toEqual([77, false]);
    const marked = await entryFor({ additional_attributes: { jwt_svid_include_jti: true } });
    const ids = await Promise.all(
      [1, 2].map(async () => {
        const answer = await agent.svid.NewJWTSVID({ entry_id: marked.id, audience: ["a"] });
        return decode(answer.svid?.token ?? "").claims["jti"];
      }),
    );
    expect(ids).toEqual([expect.stringMatching(/^[A-Za-z0-9_-]{22}$/), expect.stringMatching(/^[A-Za-z0-9_-]{22}$/)]);
    expect(ids[0]).not.toBe(ids[1]);
  });

  test("an entry of another agent, an unknown one and none are not found; an audience is needed", async () => {
    const other = await server.attest();
    const foreign = await server.createEntry({ spiffeId: "spiffe://example.org/foreign", parentId: other.id });
    for (const entry_id of [foreign.id, "no-such-entry", ""]) {
      const fault = await faultFrom(agent.svid.NewJWTSVID({ entry_id, audience: ["a"] }));
      expect([fault.kind, fault.message]).toEqual(["not_found", "entry not found or not authorized"]);
    }
    const own = await entryFor();
    const fault = await faultFrom(agent.svid.NewJWTSVID({ entry_id: own.id, audience: [] }));
    expect([fault.kind, fault.message]).toEqual(["invalid", "at least one audience is required"]);
  });
});

describe("MintWITSVID and BatchNewWITSVID", () => {
  test("WIT-01 WIT-04 WIT-07 WIT-09 WIT-11 WIT-17 WIT-27 hold alg, kid, typ, and sub, exp, iat and cnf.jwk", async () => {
    const { publicKey } = await generateKey("ec-p256");
    const request = { id: protoId(ID), public_key: publicKey, signing_algorithm: "ES256", ttl: 60 };
    const { svid } = await server.admin.svid.MintWITSVID(request);
    const { header, claims } = verified(svid?.token ?? "", await witKeys());
    expect(header).toEqual({ alg: "ES256", kid: expect.stringMatching(/^[A-Za-z0-9]{32}$/), typ: "wit+jwt" });
    const iat = Number(claims["iat"]);
    expect(claims).toEqual({ sub: ID, iat, exp: iat + 60, cnf: { jwk: expect.objectContaining({ alg: "ES256" }) } });
    const { jwk } = claims["cnf"] as { readonly jwk: Claims };
    expect(Buffer.from(publicKeyFromJwk(jwk))).toEqual(Buffer.from(publicKey));
    expect(Object.keys(jwk).sort()).toEqual(["alg", "crv", "kty", "x", "y"]);
    expect((await jwtKeys()).map(({ key_id }) => key_id)).not.toContain(header["kid"]);
  });

  test("WIT-12 WIT-30 bind any key of ours with each algorithm that fits it, and refuse the others", async () => {
    const keys = {
      rsa: generateKeyPairSync("rsa", { modulusLength: 2048 }).publicKey,
      "256": generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey,
      "384": generateKeyPairSync("ec", { namedCurve: "P-384" }).publicKey,
    };
    const entry = await entryFor({ x509_svid_ttl: 120 });
    const params = Object.entries(keys).flatMap(([name, key]) =>
      [...JWS_ALGORITHMS, "none", "HS256", "EdDSA", ""].map((signing_algorithm) => ({
        name,
        entry_id: entry.id,
        public_key: key.export({ type: "spki", format: "der" }),
        signing_algorithm,
      })),
    );
    const { results } = await agent.svid.BatchNewWITSVID({ params });
    const authorities = (await witKeys()).map(({ public_key, key_id }) => ({
      publicKey: public_key,
      keyId: key_id,
      expiresAt: 0,
      tainted: false,
    }));
    for (const [index, { name, signing_algorithm }] of params.entries()) {
      const result = results[index];
      const fits = name === "rsa" ? /^[RP]S/.test(signing_algorithm) : signing_algorithm === `ES${name}`;
      expect(result?.status?.code, `${name} ${signing_algorithm}`).toBe(fits ? 0 : 3);
      if (!fits) continue;
      const token = result?.svid?.token ?? "";
      const wit = await validateWitSvid({ token, authorities: () => authorities, at: new Date(Date.now()) });
      expect([wit.id, wit.confirmation.algorithm]).toEqual([
        `spiffe://example.org${entry.spiffe_id?.path}`,
        signing_algorithm,
      ]);
      expect(Number(result?.svid?.expires_at) - Number(result?.svid?.issued_at)).toBe(120);
    }
    expect(
      results[params.findIndex(({ name, signing_algorithm }) => name === "256" && signing_algorithm === "RS256")]
        ?.status?.message,
    ).toBe("invalid signing algorithm or key type: unsupported signing algorithm for ec-p256 key: RS256");
  });

  test("WIT-11 keys that are weak or no keys are refused, each item by itself", async () => {
    const entry = await entryFor();
    const ok = (await generateKey("ec-p256")).publicKey;
    const weak = generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey.export({ type: "spki", format: "der" });
    const ed25519 = generateKeyPairSync("ed25519").publicKey.export({ type: "spki", format: "der" });
    const item = (public_key: Uint8Array, signing_algorithm = "ES256", entry_id = entry.id) => ({
      entry_id,
      public_key,
      signing_algorithm,
    });
    const { results } = await agent.svid.BatchNewWITSVID({
      params: [
        item(ok),
        item(weak, "RS256"),
        item(ed25519, "EdDSA"),
        item(Buffer.from("x")),
        item(new Uint8Array()),
        item(ok, "ES256", ""),
        item(ok, "ES256", "no-such-entry"),
      ],
    });
    expect(results.map(({ status }) => status?.code)).toEqual([0, 3, 3, 3, 3, 3, 5]);
    expect(results.map(({ status }) => status?.message)).toEqual([
      "OK",
      expect.stringContaining("malformed public key: "),
      "invalid signing algorithm or key type: unsupported signing algorithm for ed25519 key: EdDSA",
      expect.stringContaining("malformed public key: "),
      "missing public key",
      "missing entry ID",
      "entry not found or not authorized",
    ]);
    expect((await faultFrom(agent.svid.BatchNewWITSVID({ params: [] }))).message).toBe("missing parameters");
  });
});

describe("what is disabled", () => {
  test("answers Unimplemented, and has no keys in the bundle", async () => {
    await using quiet = await startServer({ server: { disable_jwt_svids: true }, keyManager: "memory" });
    const svid = await quiet.attest();
    using caller = quiet.connect(svid.tls);
    const id = protoId(ID);
    const refused = async (name: string, call: Promise<unknown>): Promise<void> =>
      expect(await faultFrom(call)).toMatchObject({
        kind: "unimplemented",
        message: `${name} functionality is disabled`,
      });
    await refused("JWT", quiet.admin.svid.MintJWTSVID({ id, audience: ["a"] }));
    await refused("JWT", caller.svid.NewJWTSVID({ audience: ["a"] }));
    await refused("JWT", quiet.admin.localAuthority.GetJWTAuthorityState({}));
    await refused("JWT", quiet.admin.localAuthority.RevokeJWTAuthority({}));
    await refused("WIT", quiet.admin.localAuthority.PrepareWITAuthority({}));
    await refused("WIT", quiet.admin.svid.MintWITSVID({ id }));
    await refused("WIT", caller.svid.BatchNewWITSVID({ params: [{}] }));
    expect([await jwtKeys(quiet), await witKeys(quiet)]).toEqual([[], []]);
  });
});
