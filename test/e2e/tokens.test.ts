import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { fetchJwtSvid, validateJwtSvid } from "../../src/client/jwt.ts";
import { JwtSource } from "../../src/client/jwt-source.ts";
import { parseJws } from "../../src/crypto/jws.ts";
import { dialUnix } from "../../src/rpc/dial.ts";
import { LocalAuthorityApi, WorkloadApi } from "../../src/rpc/protos.ts";
import { systemClock } from "../../src/runtime/clock.ts";
import { parseTokenKeys } from "../../src/spiffe/bundle.ts";
import { parseSpiffeId, parseTrustDomain } from "../../src/spiffe/id.ts";
import { validateWitSvid } from "../../src/spiffe/wit-svid.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../support/agent.ts";
import { eventually } from "../support/eventually.ts";
import { faultFrom } from "../support/faults.ts";
import { startServer, type TestServer } from "../support/server.ts";

const WEB = parseSpiffeId("spiffe://example.org/web");
const API = parseSpiffeId("spiffe://example.org/api");
const HOME = parseTrustDomain("example.org");
const flags = { feature_flags: ["wit-svid"] };

let folder: string;
let server: TestServer;
let agent: TestAgent;
let source: JwtSource;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-tokens-"));
  server = await startServer({ folder, server: { jwt_issuer: "https://idp.example.org", experimental: flags } });
  agent = await startAgent(server, { agent: { experimental: { sync_interval: "200ms", ...flags } } });
  const common = { parentId: agent.id(), selectors: [OWN_SELECTOR] };
  await server.createEntry({ id: "1-web", spiffeId: WEB, hint: "web", ...common });
  const jti = { additional_attributes: { jwt_svid_include_jti: true } };
  await server.createEntry({ id: "2-api", spiffeId: API, jwt_svid_ttl: 60, ...jti, ...common });
  await eventually("both identities", async () => (await agent.fetch()).svids.length === 2);
  source = await JwtSource.open({ socket: agent.socket });
});
afterAll(async () => {
  await source?.[Symbol.asyncDispose]();
  await agent?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

const kidOf = (token: string) => String(parseJws(token).header["kid"]);

describe("tokens from the server to a workload and its peers", () => {
  test("JWT-13 JWT-14 JWT-18 WAPI-36 WAPI-49 WAPI-51a fetched, and validated by the agent and by the bundles alike", async () => {
    const svid = await source.fetch("reports");
    expect(svid).toMatchObject({ id: WEB, hint: "web", audience: ["reports"] });
    expect(svid.claims).toMatchObject({ iss: "https://idp.example.org", sub: WEB, aud: ["reports"] });
    const lifetime = Number(svid.claims["exp"]) - Number(svid.claims["iat"]);
    expect(lifetime).toBe(300);
    const local = await source.validate(svid.token, "reports");
    const remote = await validateJwtSvid({ token: svid.token, audience: "reports", socket: agent.socket });
    expect(remote).toEqual(local);
    expect(source.bundle(HOME)?.authorities.map(({ keyId }) => keyId)).toContain(kidOf(svid.token));
    for (const bad of [{ audience: "other" }, { audience: "reports", token: `${svid.token}x` }])
      expect(await faultFrom(validateJwtSvid({ token: svid.token, socket: agent.socket, ...bad }))).toMatchObject({
        kind: "invalid",
      });
  });

  test("JWT-12 JWT-30 the entry's own lifetime and jti are honoured", async () => {
    const one = await source.fetch("reports", { id: API });
    const two = await source.fetch("reports", { id: API });
    expect(Number(one.claims["exp"]) - Number(one.claims["iat"])).toBe(60);
    expect(Buffer.from(String(one.claims["jti"]), "base64url").length).toBeGreaterThanOrEqual(16);
    expect(one.claims["jti"]).not.toBe(two.claims["jti"]);
    expect((await source.fetch("reports")).token).toBe((await source.fetch("reports")).token);
  });

  test("WAPI-54 WAPI-56 WAPI-60 WIT-07 WIT-30 a WIT-SVID, its key and the bundle that proves it", async () => {
    using channel = dialUnix(agent.socketPath);
    const stop = new AbortController();
    const call = { metadata: { "workload.spiffe.io": "true" }, signal: stop.signal };
    const first = async <T>(stream: AsyncIterable<T>): Promise<T> =>
      (await stream[Symbol.asyncIterator]().next()).value;
    const api = channel.client(WorkloadApi);
    const { svids } = await first(api.FetchWITSVID({}, call));
    const { bundles } = await first(api.FetchWITBundles({}, call));
    const authorities = parseTokenKeys(bundles["spiffe://example.org"] ?? "", "wit-svid");
    expect(svids.map(({ spiffe_id }) => spiffe_id)).toEqual([WEB, API]);
    for (const { wit_svid: token, spiffe_id } of svids) {
      expect(Object.keys(parseJws(token).header).sort()).toEqual(["alg", "kid", "typ"]);
      const { id, claims } = await validateWitSvid({ token, authorities: () => authorities, at: systemClock.now() });
      expect(id).toBe(spiffe_id);
      expect(claims["aud"]).toBeUndefined();
    }
    const jwtKeys = source.bundle(HOME)?.authorities.map(({ keyId }) => keyId) ?? [];
    expect(authorities.filter(({ keyId }) => jwtKeys.includes(keyId))).toEqual([]);
    stop.abort();
  });

  test("rotation of the key is not noticed; a tainted key's tokens are replaced", async () => {
    const authority = server.admin.channel.client(LocalAuthorityApi);
    const before = await source.fetch("rotation");
    const prepared = await authority.PrepareJWTAuthority({});
    const authority_id = prepared.prepared_authority?.authority_id ?? "";
    await authority.ActivateJWTAuthority({ authority_id });
    const after = await source.fetch("rotated");
    expect(kidOf(after.token)).toBe(authority_id);
    await eventually("both keys", () => (source.bundle(HOME)?.authorities.length ?? 0) >= 2);
    for (const [{ token }, audience] of [
      [before, "rotation"],
      [after, "rotated"],
    ] as const)
      expect((await source.validate(token, audience)).id).toBe(WEB);
    expect((await source.fetch("rotation")).token).toBe(before.token);

    await authority.TaintJWTAuthority({ authority_id: kidOf(before.token) });
    await eventually("another token", async () => (await source.fetch("rotation")).token !== before.token);
    expect(kidOf((await source.fetch("rotation")).token)).toBe(authority_id);
  });

  test("while the server is away a kept token is served at once, and others are when it is back", async () => {
    const kept = await source.fetch("kept", { id: WEB });
    const { port } = server;
    await server.stop();
    const started = performance.now();
    for (let time = 0; time < 10; time += 1) expect((await source.fetch("kept", { id: WEB })).token).toBe(kept.token);
    expect(performance.now() - started).toBeLessThan(5_000);
    expect((await source.validate(kept.token, "kept")).id).toBe(WEB);
    const missing = fetchJwtSvid("missing", { socket: agent.socket, deadlineMs: 1_500, id: WEB });
    expect(["timeout", "unavailable"]).toContain((await faultFrom(missing)).kind);
    await server[Symbol.asyncDispose]();
    server = await startServer({ folder, server: { bind_port: port, experimental: flags } });
    const again = await eventually("a new token", () => source.fetch("missing", { id: WEB }), 30_000);
    expect((await eventually("its key", () => source.validate(again.token, "missing"))).id).toBe(WEB);
  });
});

test("a workload is told why the server gives no JWT-SVIDs, with the server's code", async () => {
  await using quiet = await startServer({ server: { disable_jwt_svids: true }, keyManager: "memory" });
  await using node = await startAgent(quiet);
  await quiet.createEntry({ spiffeId: WEB, parentId: node.id(), selectors: [OWN_SELECTOR] });
  await eventually("the identity", async () => (await node.fetch()).svids.length === 1);
  const why = "failed to fetch JWT SVID: rpc error: code = Unimplemented desc = JWT functionality is disabled";
  expect(await faultFrom(fetchJwtSvid("reports", { socket: node.socket }))).toMatchObject({
    kind: "unavailable",
    message: expect.stringContaining(`could not fetch JWT-SVID: ${why}`),
  });
});
