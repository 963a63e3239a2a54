import { afterEach, describe, expect, test } from "vitest";
import { WitSource } from "../../../src/client/wit-source.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { eventually } from "../../support/eventually.ts";
import { byMethod, FakeAgent, hold, refuse } from "../../support/fake-agent.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { forge, type Members, testKey } from "../../support/tokens.ts";

const A = parseTrustDomain("example.org");
const WEB = "spiffe://example.org/web";
const wa1 = testKey("wa1");
const held = testKey("held");
const later = () => Math.floor(systemClock.now().getTime() / 1000) + 3600;

function wit(claims: Members = {}): string {
  const cnf = { jwk: { ...held.publicKey.export({ format: "jwk" }), alg: "ES256" } };
  const header = { alg: "ES256", kid: "wa1", typ: "wit+jwt" };
  return forge(header, { sub: WEB, exp: later(), cnf, ...claims }, wa1.privateKey);
}

describe("a WIT source", () => {
  const scope: AsyncDisposable[] = [];
  afterEach(async () => {
    for (const each of scope.splice(0).reverse()) await each[Symbol.asyncDispose]();
  });
  const privateJwk = JSON.stringify({ ...held.privateKey.export({ format: "jwk" }), alg: "ES256" });
  const part = (change: Members = {}) => ({
    ...{ spiffe_id: WEB, wit_svid: wit(), wit_svid_key: privateJwk, hint: "" },
    ...change,
  });
  const bundle = {
    bundles: {
      "spiffe://example.org": JSON.stringify({ keys: [{ ...wa1.publicKey.export({ format: "jwk" }), kid: "wa1" }] }),
    },
  };

  async function open(...svids: readonly object[]): Promise<{ agent: FakeAgent; source: WitSource }> {
    const agent = await FakeAgent.start(
      systemClock,
      byMethod({ FetchWITSVID: hold({ svids: [...svids] }), FetchWITBundles: hold(bundle) }),
    );
    scope.push(agent);
    const source = await WitSource.open({ socket: agent.socket });
    scope.push(source);
    return { agent, source };
  }

  test("WIT-32 WAPI-59 WAPI-61 WAPI-62 shows itself and checks others", async () => {
    const { source, agent } = await open(part(), part({ hint: "second" }));
    expect(source.svid.hint).toBe("");
    expect(source.bundle(A)?.authorities).toHaveLength(1);
    const headers = await source.headersFor("https://api.test/a");
    expect(await source.verify({ headers: { ...headers }, target: "https://api.test/a" })).toMatchObject({ id: WEB });
    expect(agent.calls.map(({ headers: sent }) => sent["workload.spiffe.io"])).toEqual(["true", "true"]);
  });

  test("WAPI-57b WAPI-64 of a repeated hint the first counts, and a hint nobody has is an error", async () => {
    const other = "spiffe://example.org/b";
    const { source } = await open(
      part({ hint: "h" }),
      part({ hint: "h", spiffe_id: other, wit_svid: wit({ sub: other }) }),
    );
    expect(source.svidByHint("h").id).toBe(WEB);
    expect(faultOf(() => source.svidByHint("x"))).toMatchObject(refusal("not_found", "no-such-hint"));
  });

  test("WAPI-58b PermissionDenied withdraws the identity", async () => {
    const { source, agent } = await open(part());
    agent.script(refuse(7, "no identity issued"));
    agent.calls.find(({ method }) => method.endsWith("FetchWITSVID"))?.stream.end(7, "no identity issued");
    await eventually("the withdrawal", () => {
      try {
        return source.svid === undefined;
      } catch (error) {
        return String(error).includes("no identity issued");
      }
    });
  });

  test.each([
    { what: "no SVID", parts: [] },
    { what: "no ID", parts: [part({ spiffe_id: "" })] },
    { what: "no token", parts: [part({ wit_svid: "" })] },
    { what: "no key", parts: [part({ wit_svid_key: "" })] },
    { what: "a public key", parts: [part({ wit_svid_key: JSON.stringify(held.publicKey.export({ format: "jwk" })) })] },
    {
      what: "another key",
      parts: [part({ wit_svid_key: JSON.stringify(testKey("o").privateKey.export({ format: "jwk" })) })],
    },
    { what: "another ID's token", parts: [part({ wit_svid: wit({ sub: "spiffe://example.org/b" }) })] },
  ])("WAPI-56 a message with $what is reported, and never used", async ({ parts }) => {
    const agent = await FakeAgent.start(
      systemClock,
      byMethod({ FetchWITSVID: hold({ svids: parts }), FetchWITBundles: hold(bundle) }),
    );
    scope.push(agent);
    const heard: string[] = [];
    const stop = new AbortController();
    const opening = WitSource.open({
      socket: agent.socket,
      signal: stop.signal,
      onError: ({ message }) => void heard.push(message),
    });
    opening.catch(() => {});
    await eventually("the complaint", () => heard.some((message) => message.startsWith("unusable answer")));
    expect(heard.join()).not.toContain(String(JSON.parse(privateJwk).d));
    stop.abort();
    await expect(opening).rejects.toMatchObject({ name: "AbortError" });
  });

  test("WAPI-53 WEP-27 Unimplemented is the end: one call", async () => {
    const agent = await FakeAgent.start(systemClock, refuse(12, "WIT-SVIDs are switched off"));
    scope.push(agent);
    await expect(WitSource.open({ socket: agent.socket })).rejects.toMatchObject({ kind: "unimplemented" });
    expect(agent.calls).toHaveLength(1);
  });
});
