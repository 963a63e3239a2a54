import { afterEach, describe, expect, test } from "vitest";
import {
  bearerHeader,
  bearerToken,
  fetchJwtBundles,
  fetchJwtSvid,
  fetchJwtSvids,
  validateJwtSvid,
} from "../../../src/client/jwt.ts";
import { JwtSource, type JwtSourceOptions } from "../../../src/client/jwt-source.ts";
import { structFromJson } from "../../../src/rpc/struct.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import type { Fault } from "../../../src/runtime/fault.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { byMethod, FakeAgent, hold, refuse, reply, type Step } from "../../support/fake-agent.ts";
import { faultFrom, faultOf, refusal } from "../../support/faults.ts";
import { forge, type Members, type TestKey, testKey } from "../../support/tokens.ts";

const WEB = parseSpiffeId("spiffe://example.org/web");
const A = parseTrustDomain("example.org");
const B = parseTrustDomain("partner.test");
const ja1 = testKey("ja1");
const jb1 = testKey("jb1");
const UNUSABLE = refusal("invalid", "workload-api-response");
const later = () => Math.floor(systemClock.now().getTime() / 1000) + 300;

function jwt(claims: Members = {}, key = ja1): string {
  const all = { sub: WEB, aud: ["reports"], exp: later(), ...claims };
  return forge({ alg: "ES256", kid: key.keyId, typ: "JWT" }, all, key.privateKey);
}

/** Public JWKs, with members added or, when undefined, left out. */
const jwks = (...keys: readonly (readonly [TestKey, Members?])[]): Buffer =>
  Buffer.from(
    JSON.stringify({
      keys: keys.map(([key, extra]) => ({ ...key.publicKey.export({ format: "jwk" }), kid: key.keyId, ...extra })),
    }),
  );
const bundleA = { bundles: { "spiffe://example.org": jwks([ja1]) } };
const bundleAB = { bundles: { ...bundleA.bundles, "spiffe://partner.test": jwks([jb1]) } };
const tokens = (...svids: readonly { spiffe_id?: string; svid?: string; hint?: string }[]) => ({
  svids: svids.map((svid) => ({ spiffe_id: WEB, svid: jwt(), hint: "", ...svid })),
});

const scope: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of scope.splice(0).reverse()) await each[Symbol.asyncDispose]();
});

async function agentWith(steps: Readonly<Record<string, Step>>): Promise<FakeAgent> {
  const agent = await FakeAgent.start(systemClock, byMethod(steps));
  scope.push(agent);
  return agent;
}

async function openSource(agent: FakeAgent, options: JwtSourceOptions = {}): Promise<JwtSource> {
  const source = await JwtSource.open({ socket: agent.socket, ...options });
  scope.push(source);
  return source;
}

describe("fetching", () => {
  test("JWT-31 WEP-07 one audience by default, more when asked for, each call with the security header", async () => {
    const agent = await agentWith({ FetchJWTSVID: reply(tokens({})) });
    const svid = await fetchJwtSvid("reports", { socket: agent.socket, metadata: { mine: "x" } });
    expect(svid).toMatchObject({ id: WEB, hint: "", audience: ["reports"], claims: { sub: WEB } });
    expect(svid.expiresAt > systemClock.now()).toBe(true);
    await fetchJwtSvid("reports", { socket: agent.socket, otherAudiences: ["billing"], id: WEB });
    expect(agent.calls.map(({ headers }) => [headers["workload.spiffe.io"], headers["mine"]])).toEqual([
      ["true", "x"],
      ["true", undefined],
    ]);
  });

  test("WAPI-42 of a repeated hint the first counts; empty ones do not clash", async () => {
    const other = "spiffe://example.org/b";
    const message = tokens(
      { hint: "h" },
      { hint: "h", spiffe_id: other, svid: jwt({ sub: other }) },
      {},
      { spiffe_id: other, svid: jwt({ sub: other }) },
    );
    const agent = await agentWith({ FetchJWTSVID: reply(message), FetchJWTBundles: hold(bundleA) });
    const svids = await fetchJwtSvids("reports", { socket: agent.socket });
    expect(svids.map(({ id, hint }) => [id.slice(21), hint])).toEqual([
      ["web", "h"],
      ["web", ""],
      ["b", ""],
    ]);
    const source = await openSource(agent);
    expect((await source.fetchByHint("reports", "h")).id).toBe(WEB);
    expect(await faultFrom(source.fetchByHint("reports", "x"))).toMatchObject(refusal("not_found", "no-such-hint"));
    expect((await source.fetch("reports")).hint).toBe("h");
  });

  test.each([
    { what: "no token at all", message: { svids: [] } },
    { what: "an ID that is not set", message: tokens({ spiffe_id: "" }) },
    { what: "a token that is not set", message: tokens({ svid: "" }) },
    { what: "a token of another ID", message: tokens({ svid: jwt({ sub: "spiffe://example.org/b" }) }) },
    { what: "a token that does not expire", message: tokens({ svid: jwt({ exp: undefined }) }) },
  ])("WAPI-18 an answer with $what is refused", async ({ message }) => {
    const agent = await agentWith({ FetchJWTSVID: reply(message) });
    expect(await faultFrom(fetchJwtSvid("reports", { socket: agent.socket }))).toMatchObject(UNUSABLE);
  });

  test.each([
    { code: 3, kind: "invalid" },
    { code: 7, kind: "denied" },
    { code: 12, kind: "unimplemented" },
    { code: 14, kind: "unavailable" },
  ])("WEP-22 WEP-27 status $code is reported as it is, after one call", async ({ code, kind }) => {
    const agent = await agentWith({ FetchJWTSVID: refuse(code, "because") });
    const fault = await faultFrom(fetchJwtSvid("reports", { socket: agent.socket }));
    expect(fault).toMatchObject({ kind, message: "because" });
    expect(agent.calls).toHaveLength(1);
  });
});

test("WEP-12 WEP-16 an endpoint over TCP is reached by its address", async () => {
  const agent = await FakeAgent.absent(systemClock, reply(tokens({})));
  scope.push(agent);
  const socket = await agent.listenTcp();
  expect(socket).toMatch(/^tcp:\/\/127\.0\.0\.1:\d+$/);
  expect((await fetchJwtSvid("reports", { socket })).id).toBe(WEB);
  expect(agent.calls[0]?.headers["workload.spiffe.io"]).toBe("true");
});

describe("bundles", () => {
  test("WAPI-46 TDB-16 TDB-17 JWT-26 JWT-27 keys without use count, those for something else or without kid do not", async () => {
    const [plain, named, sig, wit, upper, nameless] = ["a", "b", "c", "d", "e", "f"].map((kid) => testKey(kid));
    const document = jwks(
      [plain!],
      [named!, { use: "jwt-svid" }],
      [sig!, { use: "sig" }],
      [wit!, { use: "wit-svid" }],
      [upper!, { use: "JWT-SVID" }],
      [nameless!, { kid: undefined }],
    );
    const agent = await agentWith({ FetchJWTBundles: hold({ bundles: { "spiffe://example.org": document } }) });
    const { bundles } = await fetchJwtBundles({ socket: agent.socket });
    expect(bundles.get(A)?.authorities.map(({ keyId }) => keyId)).toEqual(["a", "b"]);
  });

  test.each(["partner.test", "spiffe://partner.test/x", ""])(
    "WAPI-23 the key %j is no trust domain ID",
    async (key) => {
      const agent = await agentWith({ FetchJWTBundles: hold({ bundles: { [key]: jwks([ja1]) } }) });
      expect((await faultFrom(fetchJwtBundles({ socket: agent.socket }))).kind).toBe("invalid");
    },
  );

  test.each(["[]", "{}", "x", '{"keys":{}}'])("TDB-12 the document %s is no JWK Set", async (text) => {
    const agent = await agentWith({
      FetchJWTBundles: hold({ bundles: { "spiffe://example.org": Buffer.from(text) } }),
    });
    expect(await faultFrom(fetchJwtBundles({ socket: agent.socket }))).toMatchObject({ kind: "invalid" });
  });
});

describe("a JWT source", () => {
  test("WAPI-44 WAPI-51b WAPI-19 JWT-23 checks tokens by the bundle of their own domain, whose absence means no trust", async () => {
    const agent = await agentWith({ FetchJWTBundles: hold(bundleA) });
    const source = await openSource(agent);
    expect((await source.validate(jwt(), "reports")).id).toBe(WEB);
    expect(await faultFrom(source.validate(jwt(), ["x"]))).toMatchObject(refusal("denied", "token-audience"));
    const foreign = jwt({ sub: "spiffe://partner.test/x" }, jb1);
    expect(await faultFrom(source.validate(foreign, "reports"))).toMatchObject(refusal("denied", "no-bundle"));
    expect(await faultFrom(source.validate(jwt({}, jb1), "reports"))).toMatchObject(refusal("denied", "token-kid"));
    expect(await faultFrom(source.validate(jwt(), ""))).toMatchObject(refusal("invalid", "audience-missing"));
  });

  test("WAPI-14 WAPI-48b a bundle that a later message leaves out is gone", async () => {
    const agent = await agentWith({ FetchJWTBundles: hold(bundleAB) });
    const source = await openSource(agent);
    const foreign = jwt({ sub: "spiffe://partner.test/x" }, jb1);
    expect((await source.validate(foreign, "reports")).id).toBe("spiffe://partner.test/x");
    agent.calls[0]!.stream.send(bundleA);
    await eventually("the update", () => source.bundle(B) === undefined);
    expect(await faultFrom(source.validate(foreign, "reports"))).toMatchObject(refusal("denied", "no-bundle"));
  });

  test("WAPI-18 a message that cannot be used changes nothing", async () => {
    const errors: Fault[] = [];
    const agent = await agentWith({ FetchJWTBundles: hold(bundleA) });
    const source = await openSource(agent, { onError: (fault) => void errors.push(fault) });
    agent.calls[0]!.stream.send({ bundles: {} });
    await eventually("the complaint", () => errors.length === 1);
    expect(source.bundle(A)?.authorities).toHaveLength(1);
    expect(agent.calls[0]!.stream.isOpen).toBe(true);
  });

  test("WAPI-31 WAPI-48b PermissionDenied withdraws the bundles; a lost agent does not", async () => {
    const agent = await FakeAgent.start(systemClock, hold(bundleA), hold(bundleA), refuse(7, "no identity issued"));
    scope.push(agent);
    const source = await openSource(agent);
    agent.calls[0]!.stream.dropConnection();
    await eventually("the second stream", () => agent.calls.length === 2);
    expect((await source.validate(jwt(), "reports")).id).toBe(WEB);
    agent.calls[1]!.stream.end(7, "no identity issued");
    await eventually("the withdrawal", async () => {
      const fault = await faultFrom(Promise.resolve().then(() => source.bundle(A)));
      return fault.message === "no identity issued";
    });
    await expect(async () => source.validate(jwt(), "reports")).rejects.toMatchObject({ kind: "denied" });
  });

  test("WEP-22 does not open when the endpoint refuses for good", async () => {
    const agent = await agentWith({ FetchJWTBundles: refuse(12, "no") });
    await expect(JwtSource.open({ socket: agent.socket })).rejects.toMatchObject({ kind: "unimplemented" });
    expect(agent.calls).toHaveLength(1);
  });
});

describe("validating through the agent", () => {
  const claims = { sub: WEB, aud: ["reports"], exp: 4102444800, x: { y: [1, null] } };
  test("WAPI-51a ID and claims come back as the agent says", async () => {
    const agent = await agentWith({ ValidateJWTSVID: reply({ spiffe_id: WEB, claims: structFromJson(claims) }) });
    const svid = await validateJwtSvid({ token: "t", audience: "reports", socket: agent.socket });
    expect(svid).toEqual({
      id: WEB,
      token: "t",
      audience: ["reports"],
      expiresAt: new Date("2100-01-01T00:00:00Z"),
      claims,
    });
  });

  test.each([
    { spiffe_id: "", claims: structFromJson(claims) },
    { spiffe_id: WEB, claims: null },
    { spiffe_id: WEB, claims: structFromJson({}) },
  ])("WAPI-50c an answer without ID, claims or expiry is refused: %j", async (message) => {
    const agent = await agentWith({ ValidateJWTSVID: reply(message) });
    const answer = validateJwtSvid({ token: "t", audience: "reports", socket: agent.socket });
    expect(await faultFrom(answer)).toMatchObject(UNUSABLE);
  });

  test("T-J5 a token that is not good is an error, and never claims", async () => {
    const agent = await agentWith({ ValidateJWTSVID: refuse(3, "token has expired") });
    const answer = validateJwtSvid({ token: "t", audience: "reports", socket: agent.socket });
    expect(await faultFrom(answer)).toMatchObject({ kind: "invalid", message: "token has expired" });
  });
});

describe("carrying", () => {
  test.each(["https://api.test/x", "http://localhost:8080", "http://127.0.0.1/", "http://[::1]:80/", "wss://x.test"])(
    "JWT-24 JWT-25 JWT-32 a token goes to %s",
    (url) => {
      expect(bearerHeader({ token: "a.b.c" }, url)).toEqual({ authorization: "Bearer a.b.c" });
    },
  );

  test.each(["http://api.test/x", "http://127.0.0.1.evil.test/", "ws://x.test", "ftp://x.test"])(
    "JWT-32 no token goes to %s",
    (url) => {
      expect(faultOf(() => bearerHeader({ token: "t" }, url))).toMatchObject(refusal("invalid", "bearer-plaintext"));
      expect(bearerHeader({ token: "t" }, url, { allowPlaintext: true })).toEqual({ authorization: "Bearer t" });
    },
  );

  test.each(["Bearer a.b.c", "bearer a.b.c", "BEARER a.b.c", ["Bearer a.b.c"]])(
    "JWT-24 the token is taken from %j",
    (values) => {
      expect(bearerToken(values)).toBe("a.b.c");
    },
  );

  test.each([
    undefined,
    [],
    "",
    "Bearer",
    "Bearer ",
    "Bearer  x",
    "Basic eA==",
    "a.b.c",
    ["Bearer a", "Bearer b"],
    "Bearer a, Bearer b",
  ])("JWT-24 JWT-25 %j is no bearer token", (values) => {
    expect(faultOf(() => bearerToken(values))).toMatchObject(refusal("unauthenticated", "bearer-missing"));
  });
});
