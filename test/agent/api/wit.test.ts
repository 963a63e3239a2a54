import { createPrivateKey, createPublicKey } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { parseJws } from "../../../src/crypto/jws.ts";
import type { ClientOf } from "../../../src/rpc/client.ts";
import { type Channel, dialUnix } from "../../../src/rpc/dial.ts";
import type { WITSVIDResponse__Output } from "../../../src/rpc/gen/WITSVIDResponse.ts";
import { type Service, WorkloadApi } from "../../../src/rpc/protos.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { validateWitSvid } from "../../../src/spiffe/wit-svid.ts";
import { OWN_SELECTOR, startAgent, type TestAgent } from "../../support/agent.ts";
import { faultFrom } from "../../support/faults.ts";
import { type AgentEntry, startTokenServer, type TestTokenServer } from "../../support/token-server.ts";
import { testKey } from "../../support/tokens.ts";

type Methods<S> = S extends Service<infer M> ? ClientOf<M> : never;

const MD = { metadata: { "workload.spiffe.io": "true" }, deadlineMs: 20_000 } as const;
const mine = [OWN_SELECTOR];
const web = { id: "web", spiffeId: "spiffe://example.org/web", selectors: mine, hint: "internal" };
const ext = { id: "ext", spiffeId: "spiffe://example.org/web-ext", selectors: mine, hint: "external" };
const other = { id: "other", spiffeId: "spiffe://example.org/other", selectors: ["unix:uid:4242"] };
const [wa1, wa2, wb1] = [testKey("wa1"), testKey("wa2"), testKey("wb1")];
const NO_IDENTITY = { kind: "denied", message: "no identity issued" };

let server: TestTokenServer;
let agent: TestAgent;
let channel: Channel;
let api: Methods<typeof WorkloadApi>;
beforeAll(async () => {
  server = await startTokenServer();
  const experimental = { sync_interval: "100ms", feature_flags: ["wit-svid"] };
  agent = await startAgent(server, { agent: { experimental } });
  channel = dialUnix(agent.socketPath);
  api = channel.client(WorkloadApi);
});
afterAll(async () => {
  channel?.[Symbol.dispose]();
  await agent?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
});
beforeEach(() => {
  Object.assign(server.state, { witKeys: [wa1], tainted: new Set(), away: false, alterWit: (it: unknown) => it });
});

async function grant(...entries: readonly AgentEntry[]): Promise<void> {
  server.entries(...entries);
  await server.synced();
}

/** One open stream, ended with the test. */
function open<T>(call: (options: typeof MD & { readonly signal: AbortSignal }) => AsyncIterable<T>) {
  const stop = new AbortController();
  const stream = call({ ...MD, signal: stop.signal })[Symbol.asyncIterator]();
  return {
    next: async (): Promise<T> => (await stream.next()).value,
    [Symbol.dispose]: () => stop.abort(),
  };
}

const svids = (spiffe_id = "") => open((options) => api.FetchWITSVID({ spiffe_id }, options));
const bundles = () => open((options) => api.FetchWITBundles({}, options));
const authorities = () => server.state.witKeys.map(({ authority }) => authority);
const validate = (token: string) => validateWitSvid({ token, authorities, at: systemClock.now() });

async function checked({ svids: all }: WITSVIDResponse__Output): Promise<readonly string[]> {
  for (const { spiffe_id, wit_svid, wit_svid_key } of all) {
    const { id, confirmation } = await validate(wit_svid);
    expect(id).toBe(spiffe_id);
    const jwk = JSON.parse(wit_svid_key);
    expect(jwk).toMatchObject({ kty: "EC", d: expect.any(String), alg: "ES256" });
    const held = createPrivateKey({ key: jwk, format: "jwk" });
    expect(createPublicKey(held).equals(confirmation.key)).toBe(true);
  }
  return all.map(({ spiffe_id }) => spiffe_id);
}

describe("FetchWITSVID", () => {
  test("WAPI-54 WAPI-55 WAPI-56 WAPI-62 WIT-30 a token and its key for every identity, the oldest first", async () => {
    await grant(web, ext);
    using stream = svids();
    const first = await stream.next();
    expect(await checked(first)).toEqual([web.spiffeId, ext.spiffeId]);
    expect(first.svids.map(({ hint }) => hint)).toEqual(["internal", "external"]);
    expect(new Set(first.svids.map(({ wit_svid_key }) => JSON.parse(wit_svid_key).d)).size).toBe(2);
  });

  test("WAPI-54 WAPI-58a one when it is asked for, none that is not the caller's", async () => {
    await grant(web, ext, other);
    using one = svids(ext.spiffeId);
    expect(await checked(await one.next())).toEqual([ext.spiffeId]);
    using foreign = svids(other.spiffeId);
    expect(await faultFrom(foreign.next())).toMatchObject(NO_IDENTITY);
    using malformed = svids("nope");
    expect(await faultFrom(malformed.next())).toMatchObject({ kind: "invalid" });
  });

  test("WAPI-57a of two entries with one hint the older is delivered", async () => {
    await grant(web, { ...ext, hint: "internal" });
    using stream = svids();
    expect(await checked(await stream.next())).toEqual([web.spiffeId]);
  });

  test("WIT-15 WIT-31 two processes of one workload may get the same; two identities never do", async () => {
    await grant(web);
    using one = svids();
    using two = svids();
    expect(await one.next()).toEqual(await two.next());
  });

  test("WAPI-09 an identity that comes or goes gives a new, whole message; the last that goes ends the stream", async () => {
    await grant(web);
    using stream = svids();
    await stream.next();
    await grant(web, ext);
    expect(await checked(await stream.next())).toEqual([web.spiffeId, ext.spiffeId]);
    server.entries(other);
    expect(await faultFrom(stream.next())).toMatchObject(NO_IDENTITY);
  });

  test("an identity that goes does so at once, also while another's token cannot be had", async () => {
    const late = { id: "late", spiffeId: "spiffe://example.org/late", selectors: mine, hint: "late" };
    await grant(web, ext);
    using stream = svids();
    await stream.next();
    server.state.alterWit = (template) => {
      if (template.subject === late.spiffeId) throw new Fault("unavailable", "not now");
      return template;
    };
    server.entries(ext, late);
    expect(await checked(await stream.next())).toEqual([ext.spiffeId]);
    server.state.alterWit = (template) => template;
    expect(await checked(await stream.next())).toEqual([ext.spiffeId, late.spiffeId]);
  });

  test("a token past the middle of its life is renewed with a new key, pushed on the open stream", async () => {
    server.state.alterWit = (template) => ({ ...template, expiresAt: new Date(template.issuedAt.getTime() + 4_000) });
    await grant({ ...web, hint: "short" });
    using stream = svids();
    const first = await stream.next();
    const second = await stream.next();
    expect(await checked(second)).toEqual([web.spiffeId]);
    expect(second.svids[0]?.wit_svid).not.toBe(first.svids[0]?.wit_svid);
    expect(second.svids[0]?.wit_svid_key).not.toBe(first.svids[0]?.wit_svid_key);
  });

  test("tokens of a tainted key are replaced on the open stream", async () => {
    await grant({ ...web, hint: "taint" });
    using stream = svids();
    await stream.next();
    Object.assign(server.state, { witKeys: [wa2, wa1], tainted: new Set(["wa1"]) });
    const second = await stream.next();
    expect(parseJws(second.svids[0]?.wit_svid ?? "").header["kid"]).toBe("wa2");
    await checked(second);
  });

  test("T-C4 what the server signed for another key is not handed out", async () => {
    const stolen = testKey("stolen").authority.publicKey;
    server.state.alterWit = (template) => ({ ...template, publicKey: stolen });
    await grant({ ...web, hint: "stolen" });
    using stream = svids();
    expect(await faultFrom(stream.next())).toMatchObject({
      kind: "unavailable",
      message: "could not fetch WIT-SVID: the server signed a WIT-SVID for another key",
    });
  });

  test("T-J8 neither token nor key is in the log", async () => {
    await grant(web);
    using stream = svids();
    const [svid] = (await stream.next()).svids;
    expect(agent.output()).not.toContain(svid?.wit_svid.split(".")[2]);
    expect(agent.output()).not.toContain(JSON.parse(svid?.wit_svid_key ?? "{}").d);
  });
});

describe("FetchWITBundles", () => {
  test("WAPI-58a WAPI-60 WAPI-61 WIT-38 JWK Sets of WIT keys alone, again at each change", async () => {
    await grant(web);
    using stream = bundles();
    const kids = async () => {
      const { bundles: sets } = await stream.next();
      return Object.entries(sets).map(([id, text]) => [
        id,
        JSON.parse(text).keys.map(({ kid }: { kid: string }) => kid),
      ]);
    };
    expect(await kids()).toEqual([["spiffe://example.org", ["wa1"]]]);
    server.state.witKeys = [wa1, wb1];
    expect(await kids()).toEqual([["spiffe://example.org", ["wa1", "wb1"]]]);
    server.entries(other);
    expect(await faultFrom(stream.next())).toMatchObject(NO_IDENTITY);
  });
});
