import { describe, expect, test } from "vitest";
import { JwtCache } from "../../../agent/cache/jwt.ts";
import type { JwtRequest, SignedToken } from "../../../agent/node/upstream.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { FakeClock } from "../../support/clock.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { forge, testKey } from "../../support/tokens.ts";
import { entry } from "./support.ts";

const forever = new AbortController().signal;
const key = testKey("k1");
const SECOND = 1000;
const web = entry("web");

/** A cache whose server answers when, and as, the test says. */
function setUp({ maxSvids = 10, hitTimeoutMs = 30_000 } = {}) {
  const clock = new FakeClock();
  const log = new RecordingLog();
  const server = {
    kid: "k1",
    lifetime: 300,
    down: undefined as Fault | undefined,
    /** Requests wait for it. */
    hold: undefined as Promise<void> | undefined,
    requests: [] as JwtRequest[],
    aborted: 0,
  };
  const signJwt = async (request: JwtRequest, signal: AbortSignal): Promise<SignedToken> => {
    server.requests.push(request);
    signal.addEventListener("abort", () => {
      server.aborted += 1;
    });
    await server.hold;
    if (server.down !== undefined) throw server.down;
    const now = clock.now().getTime();
    const expiresAt = new Date(now + server.lifetime * SECOND);
    const sub = `spiffe://home.test/${request.entryId}`;
    const claims = { sub, aud: request.audience, exp: expiresAt.getTime() / SECOND, n: server.requests.length };
    const token = forge({ alg: "ES256", kid: server.kid }, claims, key.privateKey);
    return { token, id: parseSpiffeId(sub), issuedAt: new Date(now), expiresAt };
  };
  const cache = new JwtCache({ upstream: { signJwt }, clock, log, maxSvids, hitTimeoutMs, signal: forever });
  const fetch = (audience = "a", signal = forever) => cache.fetch(web, [audience], signal).then(({ token }) => token);
  return { clock, log, server, cache, fetch };
}

/** Until nothing but a timer can change anything. */
async function rest(): Promise<void> {
  for (let turn = 0; turn < 5; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

describe("a token", () => {
  test("is kept until the middle of its life, then renewed", async () => {
    const { clock, server, fetch } = setUp();
    const first = await fetch();
    await clock.advance(149 * SECOND);
    expect(await fetch()).toBe(first);
    await clock.advance(2 * SECOND);
    expect(await fetch()).not.toBe(first);
    expect(server.requests.length).toBe(2);
  });

  test("is asked for once, however many ask at the same time", async () => {
    const { server, fetch } = setUp();
    const all = await Promise.all(Array.from({ length: 20 }, () => fetch()));
    expect(new Set(all).size).toBe(1);
    expect(server.requests).toHaveLength(1);
  });

  test("is asked for until the last who waits has gone, and no longer", async () => {
    const { server, fetch } = setUp();
    const { promise, resolve } = Promise.withResolvers<void>();
    server.hold = promise;
    const [one, two] = [new AbortController(), new AbortController()];
    const gone = faultFrom(fetch("a", one.signal).catch((error) => Promise.reject(Fault.from(error))));
    const stays = fetch("a", two.signal);
    await rest();
    one.abort();
    expect((await gone).kind).toBe("cancelled");
    expect(server.aborted).toBe(0);
    resolve();
    expect(await stays).toMatch(/^ey/);

    const left = new AbortController();
    const alone = fetch("b", left.signal).catch(() => "gone");
    left.abort();
    expect(await alone).toBe("gone");
    expect(await fetch("b")).toMatch(/^ey/);
  });

  test("that is at hand is handed out at once while the server is away, until it expires", async () => {
    const { clock, log, server, fetch } = setUp();
    const first = await fetch();
    server.down = new Fault("unavailable", "connection refused");
    await clock.advance(200 * SECOND);
    for (let time = 0; time < 5; time += 1) expect(await fetch()).toBe(first);
    expect(server.requests).toHaveLength(2);
    expect(log.lines.at(-1)).toMatchObject({ level: "warn", message: "Unable to renew JWT; returning cached copy" });
    await clock.advance(99 * SECOND);
    expect(await fetch()).toBe(first);
    await clock.advance(SECOND);
    const late = faultFrom(fetch());
    for (let second = 0; second < 31; second += 1) await clock.advance(SECOND);
    expect(await late).toMatchObject({ kind: "unavailable" });
  });

  test("is renewed as soon as the server is back", async () => {
    const { clock, server, fetch } = setUp();
    const first = await fetch();
    server.down = new Fault("unavailable", "connection refused");
    await clock.advance(200 * SECOND);
    expect(await fetch()).toBe(first);
    server.down = undefined;
    await clock.advance(SECOND);
    expect(await fetch()).not.toBe(first);
  });

  test("is not waited for longer than a second when there is one at hand, and by nobody else after that", async () => {
    const { clock, server, fetch } = setUp();
    const first = await fetch();
    const { promise, resolve } = Promise.withResolvers<void>();
    server.hold = promise;
    await clock.advance(200 * SECOND);
    const waiting = fetch();
    await rest();
    await clock.advance(SECOND);
    expect(await waiting).toBe(first);
    expect(await fetch()).toBe(first);
    resolve();
    await rest();
    expect(await fetch()).not.toBe(first);
    expect(server.requests).toHaveLength(2);
  });

  test("takes no longer to renew than the configuration says", async () => {
    const { clock, server, fetch } = setUp({ hitTimeoutMs: 7_000 });
    await fetch();
    await clock.advance(200 * SECOND);
    await fetch();
    expect(server.requests.map(({ deadlineMs }) => deadlineMs)).toEqual([30_000, 7_000]);
  });
});

describe("the cache", () => {
  test("has a hard limit: what was used longest ago makes room", async () => {
    const { server, cache, fetch } = setUp({ maxSvids: 2 });
    const a = await fetch("a");
    await fetch("b");
    expect(await fetch("a")).toBe(a);
    await fetch("c");
    expect(cache.size).toBe(2);
    expect(await fetch("a")).toBe(a);
    expect(server.requests).toHaveLength(3);
    await fetch("b");
    expect(server.requests).toHaveLength(4);
  });

  test("T-J6 tells entries, their versions and audiences apart", async () => {
    const { server, cache } = setUp();
    const versions = [
      entry("web"),
      entry("web", { revisionNumber: 1 }),
      entry("web", { createdAt: 2000 }),
      entry("api"),
    ];
    for (const version of versions) await cache.fetch(version, ["a"], forever);
    for (const audience of [["a", "b"], ["b", "a"], ["ab"], ["a,b"]]) await cache.fetch(web, audience, forever);
    expect(server.requests).toHaveLength(versions.length + 3);
  });

  test("WIT-16 does not keep tokens with a jti", async () => {
    const { server, cache } = setUp();
    const jti = entry("web", { jwtSvidIncludeJti: true });
    await cache.fetch(jti, ["a"], forever);
    await cache.fetch(jti, ["a"], forever);
    expect(server.requests).toHaveLength(2);
    expect(cache.size).toBe(0);
  });

  test("drops what refused keys have signed, and keeps nothing of them", async () => {
    const { log, server, cache, fetch } = setUp();
    await fetch("a");
    server.kid = "k2";
    const kept = await fetch("b");
    cache.refuseKeys(new Set(["k1"]));
    expect(cache.size).toBe(1);
    expect(await fetch("b")).toBe(kept);
    expect(log.lines.at(-1)?.fields).toMatchObject({ jwt_authority_key_ids: "k1", tainted_jwt_svids: 1 });
    server.kid = "k1";
    await fetch("a");
    expect(cache.size).toBe(1);
  });

  test("a renewal that fails brings back no token that was dropped meanwhile", async () => {
    const { clock, server, cache, fetch } = setUp();
    const first = await fetch();
    const { promise, resolve } = Promise.withResolvers<void>();
    server.hold = promise;
    await clock.advance(200 * SECOND);
    const waiting = fetch();
    await rest();
    cache.refuseKeys(new Set(["k1"]));
    server.kid = "k2";
    server.down = new Fault("unavailable", "gone");
    resolve();
    await rest();
    server.down = undefined;
    await clock.advance(SECOND);
    expect(await waiting).not.toBe(first);
  });

  test.each([
    { kind: "invalid", requests: 1 },
    { kind: "unimplemented", requests: 1 },
    { kind: "unavailable", requests: 30 },
    { kind: "not_found", requests: 30 },
  ] as const)("a first token is asked for $requests times when the answer is $kind", async ({ kind, requests }) => {
    const { clock, server, fetch } = setUp();
    server.down = new Fault(kind, "no");
    const refused = faultFrom(fetch());
    for (let second = 0; second < 31; second += 1) {
      await rest();
      await clock.advance(SECOND);
    }
    expect(await refused).toMatchObject(refusal(kind, kind));
    expect(server.requests.length).toBeGreaterThanOrEqual(requests);
    expect(server.requests.length).toBeLessThanOrEqual(requests + 1);
  });
});
