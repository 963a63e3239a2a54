import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { parseJws } from "../../../src/crypto/jws.ts";
import type { ClientOf } from "../../../src/rpc/client.ts";
import { type Channel, dialUnix } from "../../../src/rpc/dial.ts";
import { type Service, WorkloadApi } from "../../../src/rpc/protos.ts";
import { jsonFromStruct } from "../../../src/rpc/struct.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../../support/agent.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { type AgentEntry, startTokenServer, type TestTokenServer } from "../../support/token-server.ts";
import { flipBit, forge, type Members, testKey } from "../../support/tokens.ts";

type Methods<S> = S extends Service<infer M> ? ClientOf<M> : never;

const MD = { metadata: { "workload.spiffe.io": "true" }, deadlineMs: 20_000 } as const;
const mine = [OWN_SELECTOR];
const web = { id: "web", spiffeId: "spiffe://example.org/web", selectors: mine, hint: "internal" };
const ext = { id: "ext", spiffeId: "spiffe://example.org/web-ext", selectors: mine, hint: "external" };
const other = { id: "other", spiffeId: "spiffe://example.org/other", selectors: ["unix:uid:4242"] };
const ja1 = testKey("ja1");
const ja2 = testKey("ja2", "RSA");
const jb1 = testKey("jb1");

let server: TestTokenServer;
let agent: TestAgent;
let channel: Channel;
let api: Methods<typeof WorkloadApi>;
beforeAll(async () => {
  server = await startTokenServer();
  const keys = { allowed_foreign_jwt_claims: ["team"], jwt_svid_cache_max_size: 3 };
  agent = await startAgent(server, { agent: { ...keys, experimental: { sync_interval: "100ms" } } });
  channel = dialUnix(agent.socketPath);
  api = channel.client(WorkloadApi);
});
afterAll(async () => {
  channel?.[Symbol.dispose]();
  await agent?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
});
beforeEach(() => {
  Object.assign(server.state, {
    keys: [ja1, ja2],
    tainted: new Set(),
    away: false,
    lifetime: 300,
    alter: (it: unknown) => it,
  });
  server.state.federated.clear();
  server.state.asked.length = 0;
});

/** Makes these the entries, and waits until the agent serves them. */
async function grant(...entries: readonly AgentEntry[]): Promise<void> {
  server.entries(...entries);
  await server.synced();
}

const fetchJwt = (audience: readonly string[], spiffe_id = "") =>
  api.FetchJWTSVID({ audience: [...audience], spiffe_id }, MD);
const claimsOf = (token: string | undefined) => parseJws(token ?? "").payload;

describe("FetchJWTSVID", () => {
  test("WAPI-01 WAPI-36 WAPI-40 the audience asked for is the token's, and every field is set", async () => {
    await grant(web);
    const { svids } = await fetchJwt(["b", "a", "b", ""]);
    expect(svids).toEqual([{ spiffe_id: web.spiffeId, svid: expect.any(String), hint: "internal" }]);
    expect(claimsOf(svids[0]?.svid)).toMatchObject({ sub: web.spiffeId, aud: ["b", "a"] });
    expect(server.state.asked).toEqual([{ entry: "web", audience: ["b", "a"] }]);
  });

  test("WAPI-37 WAPI-39 WAPI-62 tokens for all identities, the oldest entry's first", async () => {
    await grant(ext, web);
    const { svids } = await fetchJwt(["all"]);
    expect(svids.map(({ spiffe_id, svid, hint }) => [spiffe_id, claimsOf(svid)["sub"], hint])).toEqual([
      [ext.spiffeId, ext.spiffeId, "external"],
      [web.spiffeId, web.spiffeId, "internal"],
    ]);
  });

  test("WAPI-38 one identity when it is asked for", async () => {
    await grant(web, ext);
    const { svids } = await fetchJwt(["one"], ext.spiffeId);
    expect(svids.map(({ spiffe_id }) => spiffe_id)).toEqual([ext.spiffeId]);
    expect(await faultFrom(fetchJwt(["one"], "not an ID"))).toMatchObject({
      kind: "invalid",
      message: expect.stringContaining("invalid requested SPIFFE ID: "),
    });
  });

  test("WAPI-41 WAPI-27 of two entries with one hint the older is delivered", async () => {
    await grant(web, { ...ext, hint: "internal" });
    expect((await fetchJwt(["hints"])).svids.map(({ spiffe_id }) => spiffe_id)).toEqual([web.spiffeId]);
  });

  test("WAPI-43 WEP-25 not entitled, whether the ID exists or not: one answer", async () => {
    await grant(web, other);
    for (const id of [other.spiffeId, "spiffe://example.org/nobody"]) {
      expect(await faultFrom(fetchJwt(["x"], id))).toMatchObject({ kind: "denied", message: "no identity issued" });
    }
    await grant(other);
    expect(await faultFrom(fetchJwt(["x"]))).toMatchObject({ kind: "denied", message: "no identity issued" });
  });

  test.each([[], [""]].map((audience) => ({ audience })))(
    "WAPI-17 T-J2 an audience of $audience is refused",
    async ({ audience }) => {
      expect(await faultFrom(fetchJwt(audience))).toMatchObject({
        kind: "invalid",
        message: "audience must be specified",
      });
    },
  );

  test("T-J4 more audience than a token can hold is refused", async () => {
    expect(await faultFrom(fetchJwt(["a".repeat(9000)]))).toMatchObject(refusal("invalid", "audience-too-long"));
  });

  test("T-J6 a token is kept for the same set of audiences, and for no other", async () => {
    await grant(web);
    const first = await fetchJwt(["a", "b"]);
    expect(await fetchJwt(["b", "a"])).toEqual(first);
    for (const audience of [["a"], ["b"], ["a", "b", "c"]]) {
      const { svids } = await fetchJwt(audience);
      expect(claimsOf(svids[0]?.svid)["aud"]).toEqual(audience);
    }
    expect(server.state.asked).toHaveLength(4);
  });

  test("T-J6 a token is not kept beyond the version of its entry", async () => {
    await grant(web);
    const [first] = (await fetchJwt(["v"])).svids;
    await grant({ ...web, hint: "renamed" });
    const [second] = (await fetchJwt(["v"])).svids;
    expect(second?.hint).toBe("renamed");
    expect(second?.svid).not.toBe(first?.svid);
  });

  test("JWT-12 an entry whose tokens carry a jti gets a new one every time", async () => {
    await grant({ ...web, additional_attributes: { jwt_svid_include_jti: true } });
    const seen = new Set<unknown>();
    for (let time = 0; time < 3; time += 1) seen.add(claimsOf((await fetchJwt(["j"])).svids[0]?.svid)["jti"]);
    expect([...seen]).toEqual(["jti-1", "jti-2", "jti-3"]);
  });

  test("T-C4 what the server signed for another identity or audience is not handed out", async () => {
    await grant(web);
    server.state.alter = (template) => ({ ...template, audience: ["evil"] });
    expect(await faultFrom(fetchJwt(["wrong"]))).toMatchObject({
      kind: "unavailable",
      message: "could not fetch JWT-SVID: the server signed a JWT-SVID for another audience",
    });
  });

  test("while the server is away a token at hand is served at once, and a missing one is said to be unavailable", async () => {
    await grant(web);
    // Past the middle of its life, with six seconds to go.
    server.state.alter = (template) => {
      const issued = template.issuedAt.getTime();
      return { ...template, issuedAt: new Date(issued - 94_000), expiresAt: new Date(issued + 6_000) };
    };
    const [svid] = (await fetchJwt(["kept"])).svids;
    server.state.away = true;
    await eventually("a renewal that failed", async () => {
      expect((await fetchJwt(["kept"])).svids[0]?.svid).toBe(svid?.svid);
      return agent.logged("Unable to renew JWT; returning cached copy", { spiffe_id: web.spiffeId }).length > 0;
    });
    const missing = await faultFrom(api.FetchJWTSVID({ audience: ["missing"] }, { ...MD, deadlineMs: 500 }));
    expect(["timeout", "unavailable"]).toContain(missing.kind);
  });

  test("T-J8 no token is in the log", async () => {
    await grant(web);
    const [svid] = (await fetchJwt(["quiet"])).svids;
    await api.ValidateJWTSVID({ audience: "quiet", svid: svid?.svid ?? "" }, MD);
    await agent.untilLogged("Successfully validated JWT");
    expect(agent.output()).not.toContain(svid?.svid.split(".")[2]);
  });

  test("tokens of a tainted key are dropped and replaced", async () => {
    await grant(web);
    const [first] = (await fetchJwt(["taint"])).svids;
    Object.assign(server.state, { keys: [ja2, ja1], tainted: new Set(["ja1"]) });
    await server.synced();
    const [second] = (await fetchJwt(["taint"])).svids;
    expect(second?.svid).not.toBe(first?.svid);
    expect(parseJws(second?.svid ?? "").header["kid"]).toBe("ja2");
    await agent.untilLogged(
      "JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority",
      {
        jwt_authority_key_ids: "ja1",
      },
    );
  });
});

describe("FetchJWTBundles", () => {
  const bundlesOf = (stream: AsyncIterator<{ bundles: Record<string, Buffer> }>) =>
    stream
      .next()
      .then(({ value }) =>
        Object.fromEntries(
          Object.entries(value.bundles as Record<string, Buffer>).map(([id, json]) => [
            id,
            JSON.parse(json.toString()),
          ]),
        ),
      );
  const kidsOf = (document: { keys: { kid: string }[] }) => document.keys.map(({ kid }) => kid).sort();

  test("WAPI-23 WAPI-45 WAPI-46 WAPI-47 standard JWK Sets by trust domain ID, of JWT keys alone, again at each change", async () => {
    server.state.federated.set("partner.test", [jb1]);
    await grant({ ...web, federates_with: ["partner.test"] });
    const stop = new AbortController();
    const stream = api.FetchJWTBundles({}, { ...MD, signal: stop.signal })[Symbol.asyncIterator]();
    const first = await bundlesOf(stream);
    expect(Object.keys(first)).toEqual(["spiffe://example.org", "spiffe://partner.test"]);
    expect(first["spiffe://example.org"]).toEqual({
      keys: [
        { kty: "EC", kid: "ja1", ...publicMembers(ja1) },
        { kty: "RSA", kid: "ja2", ...publicMembers(ja2) },
      ],
    });
    expect(kidsOf(first["spiffe://partner.test"])).toEqual(["jb1"]);
    server.state.keys = [ja1];
    expect(kidsOf((await bundlesOf(stream))["spiffe://example.org"])).toEqual(["ja1"]);
    server.state.federated.delete("partner.test");
    expect(Object.keys(await bundlesOf(stream))).toEqual(["spiffe://example.org"]);
    server.entries(other);
    await expect(stream.next()).rejects.toMatchObject({ kind: "denied", message: "no identity issued" });
    stop.abort();
  });

  test("WAPI-48a no identity, no bundle", async () => {
    await grant(other);
    const stream = api.FetchJWTBundles({}, MD)[Symbol.asyncIterator]();
    expect(await faultFrom(stream.next())).toMatchObject({ kind: "denied", message: "no identity issued" });
  });
});

function publicMembers({ publicKey }: typeof ja1): Members {
  const { kty: _, ...members } = publicKey.export({ format: "jwk" });
  return members as Members;
}

describe("ValidateJWTSVID", () => {
  const now = (): number => Math.floor(systemClock.now().getTime() / 1000);
  const jwt = (header: Members = {}, claims: Members = {}, key = ja1) =>
    forge(
      { alg: "ES256", kid: "ja1", typ: "JWT", ...header },
      { sub: web.spiffeId, aud: ["reports"], exp: now() + 300, iat: now(), ...claims },
      key.privateKey,
    );
  const validate = async (svid: string, audience = "reports") => {
    const { spiffe_id, claims } = await api.ValidateJWTSVID({ audience, svid }, MD);
    return { spiffe_id, claims: claims === null ? null : jsonFromStruct(claims) };
  };
  beforeEach(async () => {
    server.state.federated.set("partner.test", [jb1]);
    await grant({ ...web, federates_with: ["partner.test"] });
  });
  const foreign = () => jwt({ kid: "jb1" }, { sub: "spiffe://partner.test/w", team: "x", secret: "y" }, jb1);

  test("WAPI-49 WAPI-50a WAPI-50c a good token's ID and claims come back, aud as a list", async () => {
    const exp = now() + 300;
    const nested = { list: [1, "a", null, true, { b: 2 }] };
    expect(await validate(jwt({}, { aud: "reports", exp, iat: exp - 300, nested }))).toEqual({
      spiffe_id: web.spiffeId,
      claims: { sub: web.spiffeId, aud: ["reports"], exp, iat: exp - 300, nested },
    });
  });

  test("WAPI-50b of a foreign token only the standard's claims and the allowed ones come back", async () => {
    const { spiffe_id, claims } = await validate(foreign());
    expect(spiffe_id).toBe("spiffe://partner.test/w");
    expect(Object.keys(claims ?? {}).sort()).toEqual(["aud", "exp", "sub", "team"]);
  });

  test("JWT-06 JWT-10 JWT-11 JWT-15 JWT-16 JWT-19 JWT-20 JWT-22 JWT-23 T-J1 T-J2 T-J3 T-J5 bad tokens are refused with their reason", async () => {
    const bad: readonly (readonly [string, string])[] = [
      [jwt({ alg: "none" }), "unexpected signature algorithm"],
      [jwt({ alg: "HS256" }), "unexpected signature algorithm"],
      [jwt({ typ: "wit+jwt" }), "unexpected type"],
      [jwt({ crit: ["x"] }), "critical"],
      [jwt({ kid: "zzz" }), 'public key "zzz" not found in trust domain "example.org"'],
      [jwt({ kid: "jb1" }, {}, jb1), "not found in trust domain"],
      [jwt({}, {}, jb1), "signature"],
      [flipBit(jwt(), 2, 9), "signature"],
      [jwt({}, { sub: undefined }), "token missing subject claim"],
      [jwt({}, { aud: undefined }), "aud"],
      [jwt({}, { aud: ["other"] }), 'expected audience in ["reports"] (audience=["other"])'],
      [jwt({}, { exp: undefined }), "token missing exp claim"],
      [jwt({}, { exp: "1999999999" }), "exp"],
      [jwt({}, { exp: now() - 61 }), "token has expired"],
      [jwt({}, { sub: "spiffe://third.test/x" }), 'no keys found for trust domain "third.test"'],
      ["x", "unable to parse JWT token"],
      [".".repeat(100_000), "16 KiB"],
    ];
    for (const [token, reason] of bad) {
      const fault = await faultFrom(validate(token));
      expect(fault.kind, reason).toBe("invalid");
      expect(fault.message).toContain(reason);
    }
  });

  test("WAPI-17 an audience or a token that is not set is refused", async () => {
    expect(await faultFrom(validate(jwt(), ""))).toMatchObject({
      kind: "invalid",
      message: "audience must be specified",
    });
    expect(await faultFrom(validate(""))).toMatchObject({ kind: "invalid", message: "svid must be specified" });
  });

  test("JWT-29 TDB-19 keys that leave the bundle verify nothing any more", async () => {
    await validate(jwt());
    server.state.keys = [ja2];
    await server.synced();
    expect((await faultFrom(validate(jwt()))).message).toContain("not found");
    server.state.keys = [];
    await server.synced();
    expect((await faultFrom(validate(jwt()))).message).toContain("does not support");
  });
});
