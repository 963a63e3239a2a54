import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, test } from "vitest";
import { bearerHeader } from "../../../src/client/jwt.ts";
import { ReplayCache } from "../../../src/client/replay-cache.ts";
import { type ProofOptions, proofRefusal, signProof, verifyProof } from "../../../src/client/wit-proof.ts";
import { type ReceivedRequest, type VerifyOptions, verifyPossession } from "../../../src/client/wit-request.ts";
import { jwsHolds, jwsSignerOf, parseJws } from "../../../src/crypto/jws.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { validateJwtSvid } from "../../../src/spiffe/jwt-svid.ts";
import { confirmationOf, type UnprovenWitSvid } from "../../../src/spiffe/wit-svid.ts";
import { faultFrom, faultOf, refusal } from "../../support/faults.ts";
import { forge, type Members, testKey } from "../../support/tokens.ts";

const NOW = new Date("2026-05-01T12:00:00Z");
const now = NOW.getTime() / 1000;
const A = parseTrustDomain("example.org");
const WEB = "spiffe://example.org/web";
const URL_A = "https://api.test/a?x=1#f";
const wa1 = testKey("wa1");
const held = testKey("held");
const heldRsa = testKey("rsa", "RSA");
const jwkOf = (key: typeof held, alg: string): Members =>
  ({ ...key.publicKey.export({ format: "jwk" }), alg }) as Members;
const authorities = (trustDomain: TrustDomain) => (trustDomain === A ? [wa1.authority] : undefined);

function wit(claims: Members = {}, key = wa1): string {
  const all = { sub: WEB, exp: now + 3600, cnf: { jwk: jwkOf(held, "ES256") }, ...claims };
  return forge({ alg: "ES256", kid: "wa1", typ: "wit+jwt" }, all, key.privateKey);
}

const svid = { token: wit(), privateKey: held.privateKey, algorithm: "ES256" } as const;
const sign = (options: ProofOptions = {}, target = URL_A) => signProof({ svid, target, at: NOW, ...options });
const verify = (headers: ReceivedRequest["headers"], options: VerifyOptions & { target?: string; at?: Date } = {}) =>
  verifyProof({ headers, target: options.target ?? URL_A }, { authorities, at: NOW, ...options });

/** Headers with a proof that is changed; undefined leaves a member out. */
function forged(header: Members = {}, claims: Members = {}, { key = held, token = svid.token } = {}) {
  const all = { aud: "https://api.test/a", exp: now + 60, jti: "j1", wth: hashOf(token), ...claims };
  const proof = forge({ alg: "ES256", typ: "wpt+jwt", ...header }, all, key.privateKey);
  return { "workload-identity-token": token, "workload-proof-token": proof };
}

const hashOf = (text: string): string => createHash("sha256").update(text).digest("base64url");

async function refused(
  headers: ReceivedRequest["headers"],
  code: string,
  options: Parameters<typeof verify>[1] = {},
): Promise<void> {
  expect((await verify(await sign())).id).toBe(WEB);
  expect(await faultFrom(verify(headers, options))).toMatchObject(refusal("invalid", code));
}

/** The sample of WIT-SVID, appendix A. Its issuer's key is not published. */
const SAMPLE =
  "eyJhbGciOiJFUzI1NiIsImtpZCI6ImxRU2kzaFpGbmRhMkQtWEprajF6bDdmb0pvdWl3STRuckF5aHk0alppSmciLCJ0eXAiOiJ3aXQrand0In0.eyJjbmYiOnsiandrIjp7ImFsZyI6IkVTMjU2IiwiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJyelA3bUxDS0FIV21zTTZYMEV3VklTQ19oSTN1amN1OTVmZlVreWVER0dvIiwieSI6InVPcmZEbGp0WDltM2pZLWhzeWhMSllheHRHa3pEdjVlNWttQ2U1OFo5N2cifX0sImV4cCI6MTc2NTQ1NjUwMywiaWF0IjoxNzY1NDUyOTAzLCJqdGkiOiIxeWoxOVY0TWNPQXpNY0ZpN3F2c2dfQWdDeGxyWTVFX3g1MDl3bEtLUXRjIiwic3ViIjoic3BpZmZlOi8vZXhhbXBsZS5jb20vbXktd29ya2xvYWQifQ.sfhEvZNdY_kWrICF08lX0u__rn39YnTavnW-VPBS20zgowDh6-X43v5eOUKZbjZf06yLBQM-Mry5w1g1QFsCkg";

describe("making a proof", () => {
  test("WIT-33 WIT-42 WITX-01 WITX-04 WITX-05 WITX-06 WITX-09 WITX-10 WITX-11 has the form of the draft", async () => {
    const headers = await sign();
    expect(Object.keys(headers)).toEqual(["workload-identity-token", "workload-proof-token"]);
    expect(headers["workload-identity-token"]).toBe(svid.token);
    const { header, payload } = parseJws(headers["workload-proof-token"]);
    expect(header).toEqual({ alg: "ES256", typ: "wpt+jwt" });
    expect(payload).toEqual({
      aud: "https://api.test/a",
      exp: now + 60,
      jti: expect.any(String),
      wth: hashOf(svid.token),
    });
    expect(Buffer.from(String(payload["jti"]), "base64url")).toHaveLength(16);
    expect(parseJws((await sign())["workload-proof-token"]).payload["jti"]).not.toBe(payload["jti"]);
  });

  test("WIT-47 WITX-10 the published sample is read, and its hash is that of the draft", () => {
    const { header, payload, signature } = parseJws(SAMPLE);
    expect(header).toEqual({ alg: "ES256", kid: "lQSi3hZFnda2D-XJkj1zl7foJouiwI4nrAyhy4jZiJg", typ: "wit+jwt" });
    expect(payload).toMatchObject({ sub: "spiffe://example.com/my-workload", exp: 1765456503, iat: 1765452903 });
    expect(signature).toHaveLength(64);
    expect(confirmationOf(payload).algorithm).toBe("ES256");
    expect(hashOf(SAMPLE)).toBe("sYj-D9um3zdZdCqN2O9MOAK8sYtfWG28TLd-AcatS7w");
  });

  test.each(["http://api.test/a", "http://127.0.0.1.evil.test/"])("WIT-45 nothing is sent to %s", async (target) => {
    expect(await faultFrom(sign({}, target))).toMatchObject(refusal("invalid", "wit-plaintext"));
    await sign({ allowPlaintext: true }, target);
    await sign({}, "http://127.0.0.1:8080/");
  });

  test.each([0, -1, 300_001, Number.NaN])("WIT-43 a lifetime of %d ms is refused", async (lifetimeMs) => {
    expect(await faultFrom(sign({ lifetimeMs }))).toMatchObject(refusal("invalid", "proof-lifetime"));
  });

  test("WITX-03 the key signs with the algorithm that the token names", async () => {
    const token = wit({ cnf: { jwk: jwkOf(heldRsa, "PS256") } });
    const rsa = { token, privateKey: heldRsa.privateKey, algorithm: "PS256" } as const;
    const headers = await signProof({ svid: rsa, target: URL_A, at: NOW });
    expect((await verify(headers)).id).toBe(WEB);
    await refused(forged({ alg: "RS256" }, {}, { key: heldRsa, token }), "proof-alg");
  });

  test("WIT-34 WIT-35 a WIT-SVID is no bearer token, and no JWT-SVID", async () => {
    expect(faultOf(() => bearerHeader(svid, "https://api.test"))).toMatchObject(refusal("invalid", "bearer-wit"));
    const asJwt = validateJwtSvid({ token: svid.token, audience: ["a"], authorities, at: NOW });
    expect(await faultFrom(asJwt)).toMatchObject(refusal("denied", "token-typ"));
  });
});

describe("checking a proof", () => {
  test("WIT-32 WIT-36 WITX-07 a token and its proof: who it is, and the token's claims", async () => {
    expect(await verify(await sign())).toEqual({ id: WEB, claims: parseJws(svid.token).payload });
    expect(await verify(forged())).toMatchObject({ id: WEB });
  });

  test.each([
    {
      id: "WIT-32 WIT-33",
      what: "no proof",
      headers: () => ({ "workload-identity-token": svid.token }),
      code: "header-missing",
    },
    {
      id: "WITX-01",
      what: "no token",
      headers: () => ({ ...forged(), "workload-identity-token": undefined }),
      code: "header-missing",
    },
    {
      id: "WIT-32",
      what: "an empty proof",
      headers: () => ({ ...forged(), "workload-proof-token": "" }),
      code: "header-missing",
    },
    {
      id: "WITX-05",
      what: "two proofs",
      headers: () => ({ ...forged(), "workload-proof-token": ["a.b.c", "a.b.c"] }),
      code: "header-repeated",
    },
    {
      id: "WITX-01",
      what: "two tokens",
      headers: () => ({ ...forged(), "workload-identity-token": [svid.token, svid.token] }),
      code: "header-repeated",
    },
    {
      id: "WITX-01",
      what: "a list",
      headers: () => ({ ...forged(), "workload-identity-token": `${svid.token}, ${svid.token}` }),
      code: "jws-malformed",
    },
    {
      id: "WITX-01",
      what: "a scheme",
      headers: () => ({ ...forged(), "workload-identity-token": `Bearer ${svid.token}` }),
      code: "jws-malformed",
    },
    {
      id: "WITX-01",
      what: "quotes",
      headers: () => ({ ...forged(), "workload-identity-token": `"${svid.token}"` }),
      code: "jws-malformed",
    },
    {
      id: "WITX-05",
      what: "a malformed proof",
      headers: () => ({ ...forged(), "workload-proof-token": "x" }),
      code: "jws-malformed",
    },
    { id: "WITX-06", what: "typ JWT", headers: () => forged({ typ: "JWT" }), code: "proof-typ" },
    { id: "WITX-06", what: "no typ", headers: () => forged({ typ: undefined }), code: "proof-typ" },
    { id: "WITX-06", what: "typ wit+jwt", headers: () => forged({ typ: "wit+jwt" }), code: "proof-typ" },
    {
      id: "WIT-32 WITX-07",
      what: "another key's proof",
      headers: () => forged({}, {}, { key: testKey("x") }),
      code: "proof-signature",
    },
    {
      id: "WIT-32 WITX-10",
      what: "a proof for another token",
      headers: () => forged({}, { wth: hashOf(wit({ jti: "2" })) }),
      code: "proof-wth",
    },
    { id: "WITX-10", what: "no wth", headers: () => forged({}, { wth: undefined }), code: "proof-wth" },
    {
      id: "WITX-08",
      what: "another path",
      headers: () => forged({}, { aud: "https://api.test/b" }),
      code: "proof-aud",
    },
    {
      id: "WITX-08",
      what: "another host",
      headers: () => forged({}, { aud: "https://evil.test/a" }),
      code: "proof-aud",
    },
    {
      id: "WITX-08",
      what: "another scheme",
      headers: () => forged({}, { aud: "http://api.test/a" }),
      code: "proof-aud",
    },
    {
      id: "WITX-08",
      what: "a list of audiences",
      headers: () => forged({}, { aud: ["https://api.test/a"] }),
      code: "proof-aud",
    },
    { id: "WIT-42 WITX-09", what: "no exp", headers: () => forged({}, { exp: undefined }), code: "proof-exp" },
    { id: "WITX-09", what: "exp as text", headers: () => forged({}, { exp: `${now + 60}` }), code: "proof-exp" },
    { id: "WITX-09", what: "a past exp", headers: () => forged({}, { exp: now - 61 }), code: "proof-expired" },
    {
      id: "WIT-43 WITX-09",
      what: "an exp far ahead",
      headers: () => forged({}, { exp: now + 301 }),
      code: "proof-lifetime",
    },
    { id: "WITX-11", what: "no jti", headers: () => forged({}, { jti: undefined }), code: "proof-jti" },
    { id: "T-F4", what: "an endless jti", headers: () => forged({}, { jti: "j".repeat(257) }), code: "proof-jti" },
  ])("$id refused: $what", async ({ headers, code }) => {
    await refused(headers(), code);
  });

  test("WITX-07 with a token that is not valid the proof's key is not used", async () => {
    await refused(forged({ typ: "JWT" }, {}, { token: wit({}, testKey("x")) }), "token-signature");
    await refused(forged({ typ: "JWT" }, {}, { token: wit({ exp: now - 100 }) }), "token-expired");
  });

  test("WITX-02 WIT-25 an iss in the token leads nowhere", async () => {
    const token = wit({ iss: "https://evil.test" });
    expect((await verify(forged({}, {}, { token }))).id).toBe(WEB);
  });

  test("WITX-08 the address is the server's own, or an alias, and never the request's host", async () => {
    const headers = { ...(await sign({}, "https://edge.test/a")), host: "edge.test", "x-forwarded-host": "edge.test" };
    await refused(headers, "proof-aud");
    expect((await verify(headers, { aliases: ["https://edge.test/a"] })).id).toBe(WEB);
    expect((await verify(await sign({}, "https://API.test:443/a"))).id).toBe(WEB);
  });

  test("WIT-45 plaintext is refused, unless the way is confidential otherwise", async () => {
    const target = "http://api.test/a";
    const headers = await sign({ allowPlaintext: true }, target);
    await refused(headers, "wit-plaintext", { target });
    expect((await verify(headers, { target, allowPlaintext: true })).id).toBe(WEB);
  });

  test("WIT-35 a token in the authorization header is refused, proof or not", async () => {
    await refused({ ...(await sign()), authorization: `Bearer ${svid.token}` }, "wit-bearer");
    await refused(
      { ...forged(), "workload-identity-token": undefined, authorization: `Bearer ${svid.token}` },
      "header-missing",
    );
  });

  test("WIT-46 WITX-12 other tokens of the request are covered, and what is covered is there", async () => {
    const authorization = "Bearer abc";
    const headers = { authorization, "txn-token": "t.x.n", "x-user": "u" };
    const made = await sign({ headers: { Authorization: authorization, "Txn-Token": "t.x.n", "X-User": "u" } });
    expect(parseJws(made["workload-proof-token"]).payload).toMatchObject({
      ath: hashOf("abc"),
      tth: hashOf("t.x.n"),
      oth: { "x-user": hashOf("u") },
    });
    expect((await verify({ ...made, ...headers })).id).toBe(WEB);
    await refused({ ...(await sign()), authorization }, "proof-ath");
    await refused({ ...(await sign()), "txn-token": "t" }, "proof-tth");
    await refused({ ...made, ...headers, authorization: "Bearer other" }, "proof-ath");
    await refused({ ...made, ...headers, authorization: undefined }, "proof-ath");
    await refused({ ...made, ...headers, "x-user": "v" }, "proof-oth");
    await refused({ ...made, ...headers, "x-user": undefined }, "proof-oth");
    await refused(forged({}, { oth: { "x-u": hashOf("u") } }), "proof-oth");
    await refused(forged({}, { oth: JSON.parse('{"__proto__":"x"}') }), "proof-oth");
    await refused(forged({}, { oth: "x" }), "proof-oth");
  });

  test("WIT-16 WIT-44 WITX-11 a proof counts once where replays are watched; two proofs of one token both count", async () => {
    const replays = new ReplayCache();
    const once = await sign();
    expect((await verify(once)).id).toBe(WEB);
    expect((await verify(once)).id).toBe(WEB);
    expect((await verify(once, { replays })).id).toBe(WEB);
    await refused(once, "proof-replayed", { replays });
    expect((await verify(await sign(), { replays })).id).toBe(WEB);
  });

  test("WITX-13 an HTTP server answers 400 without a challenge, and 503 when it cannot tell", async () => {
    const server = createServer(async ({ headers, url = "" }, response) => {
      try {
        const { id } = await verifyProof(
          { headers, target: new URL(url, "http://127.0.0.1/") },
          { authorities, at: NOW },
        );
        response.end(id);
      } catch (error) {
        const { status, message } = proofRefusal(error);
        response.writeHead(status).end(message);
      }
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const at = `http://127.0.0.1:${(server.address() as AddressInfo).port}/a`;
    const sent = { ...(await sign({}, "http://127.0.0.1/a")) };
    expect(await (await fetch(at, { headers: sent })).text()).toBe(WEB);
    const refusals = [{}, { ...sent, "workload-proof-token": "x" }, { ...sent, authorization: "Bearer t" }];
    for (const headers of refusals) {
      const { status, headers: answered } = await fetch(at, { headers });
      expect([status, answered.get("www-authenticate")]).toEqual([400, null]);
    }
    expect(proofRefusal(new Error("disk full"))).toEqual({ status: 503, message: "the request cannot be checked now" });
    server.close();
  });

  test("WIT-44 a full memory forgets what has expired, and lets nothing in unseen", () => {
    const replays = new ReplayCache(2);
    const at = (second: number) => ({ at: new Date(second * 1000), until: new Date((second + 10) * 1000) });
    expect([replays.isNew("a", at(0)), replays.isNew("b", at(5))]).toEqual([true, true]);
    expect(faultOf(() => replays.isNew("c", at(6)))).toMatchObject(refusal("exhausted", "replay-cache-full"));
    expect(replays.isNew("c", at(11))).toBe(true);
    expect(replays.size).toBe(2);
    expect([replays.isNew("b", at(12)), replays.isNew("b", at(16))]).toEqual([false, true]);
  });
});

describe("WIT-37 a protocol of one's own", () => {
  const SIGNATURE = "x-signature";
  const context = { authorities, at: NOW };
  const asked: string[] = [];
  /** Signs the path with the key of the token. */
  const prove = async (wit: UnprovenWitSvid, { headers, target }: ReceivedRequest): Promise<void> => {
    asked.push(wit.id);
    const signature = Buffer.from(String(headers[SIGNATURE]), "base64");
    const signed = Buffer.from(new URL(target).pathname);
    const holds = await jwsHolds({ algorithm: wit.confirmation.algorithm, signed, signature }, wit.confirmation.key);
    if (!holds) throw new Fault("invalid", "the signature is wrong", { code: "proof-signature" });
  };
  const request = async (change: Members = {}, path = "/a") => {
    const signature = await jwsSignerOf("ES256", held.privateKey).sign(Buffer.from(path));
    const headers = { "workload-identity-token": svid.token, [SIGNATURE]: Buffer.from(signature).toString("base64") };
    return { headers: { ...headers, ...change } as ReceivedRequest["headers"], target: URL_A };
  };

  test("gets the token's claims, its key and the request, and decides", async () => {
    const found = await verifyPossession(await request(), context, prove);
    expect(found).toMatchObject({ id: WEB, claims: { sub: WEB } });
    expect(await faultFrom(verifyPossession(await request({}, "/b"), context, prove))).toMatchObject(
      refusal("invalid", "proof-signature"),
    );
  });

  test("is not asked about a token that is not valid, comes as a bearer token, or without TLS", async () => {
    asked.length = 0;
    const bad: readonly (readonly [Members, string?])[] = [
      [{ "workload-identity-token": wit({ exp: now - 3600 }) }],
      [{ "workload-identity-token": undefined }],
      [{ authorization: `Bearer ${svid.token}` }],
      [{}, "http://api.test/a"],
    ];
    for (const [change, target = URL_A] of bad) {
      const made = { ...(await request(change)), target };
      expect((await faultFrom(verifyPossession(made, context, prove))).kind).toBe("invalid");
    }
    expect(asked).toEqual([]);
  });
});
