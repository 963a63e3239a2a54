import { beforeAll, describe, expect, test } from "vitest";
import { IdentityCache } from "../../../agent/cache/entries.ts";
import type { CachedEntry } from "../../../agent/cache/entry.ts";
import { SvidSigner } from "../../../agent/cache/signer.ts";
import type { SignedX509, SigningParam } from "../../../agent/node/upstream.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { parseCertificateRequest, verifyCertificateRequest } from "../../../src/crypto/csr.ts";
import { type KeyType, localSigner, privateKeyFromPkcs8 } from "../../../src/crypto/key.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { type CertificateOptions, createCa, type TestCa } from "../../support/pki.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { bundles, entry, entryMap, Reader, selectors } from "./support.ts";

const MINUTE = 60_000;
let ca: TestCa;

beforeAll(async () => {
  const start = new Date("2025-01-01T00:00:00Z");
  ca = await createCa({ trustDomain: "home.test", notBefore: start, notAfter: new Date("2036-01-01T00:00:00Z") });
});

interface Batch {
  readonly ids: readonly string[];
  readonly keys: readonly string[];
}

/** The server as the signer sees it: signs what the CSR asks for, until told otherwise. */
class Server {
  readonly batches: Batch[] = [];
  ttlMs = 10 * MINUTE;
  /** Changes what is signed for an entry. */
  change: (id: string) => CertificateOptions = () => ({});
  refuse: (id: string) => SignedX509 | undefined = () => undefined;
  down: Fault | undefined;
  readonly #clock: FakeClock;

  constructor(clock: FakeClock) {
    this.#clock = clock;
  }

  signX509 = async (params: readonly SigningParam[]): Promise<readonly SignedX509[]> => {
    const requests = params.map(({ csr }) => parseCertificateRequest(csr));
    this.batches.push({
      ids: params.map(({ entryId }) => entryId),
      keys: requests.map(({ publicKey }) => Buffer.from(publicKey).toString("base64")),
    });
    if (this.down !== undefined) throw this.down;
    return Promise.all(params.map(async ({ entryId, csr }) => this.refuse(entryId) ?? this.#sign(entryId, csr)));
  };

  get ids(): readonly (readonly string[])[] {
    return this.batches.map(({ ids }) => ids);
  }

  async #sign(entryId: string, csr: Uint8Array): Promise<SignedX509> {
    const request = parseCertificateRequest(csr);
    await verifyCertificateRequest(request);
    const now = this.#clock.now().getTime();
    const [id] = request.uris;
    const times = { notBefore: new Date(now - 10_000), notAfter: new Date(now + this.ttlMs) };
    const { chain } = await ca.issue({ id: id ?? "", publicKey: request.publicKey, ...times, ...this.change(entryId) });
    return { kind: "signed", chain };
  }
}

function setUp({ keyType = "ec-p256", chance = 0.5 }: { keyType?: KeyType; chance?: number } = {}) {
  const clock = new FakeClock("2026-01-01T00:00:00Z", chance);
  const log = new RecordingLog();
  const server = new Server(clock);
  const cache = new IdentityCache({ clock, log, maxSvids: 1000, bundles: bundles() });
  const signer = new SvidSigner({ cache, upstream: server, keyType, clock, log });
  const stop = new AbortController();
  const running = signer.run(stop.signal).catch((error: unknown) => {
    if (!stop.signal.aborted) throw error;
  });
  const logged = (message: string) => log.lines.filter((line) => line.message === message).map(({ fields }) => fields);
  const signed = (count: number) => eventually(`${count} batches`, () => server.batches.length >= count);
  /** Until nothing moves without the clock. */
  const rest = async () => {
    await eventually("rest", () => clock.advance(0).then(() => clock.sleeping > 0));
  };
  const sync = (...entries: readonly CachedEntry[]) => cache.replace(entryMap(...entries), bundles());
  return {
    ...{ clock, server, cache, logged, signed, sync },
    rest,
    /** Time goes on in steps small enough for the signer to act in between. */
    async pass(ms: number) {
      for (let left = ms; left > 0; left -= 500) {
        await rest();
        await clock.advance(Math.min(left, 500));
      }
      await rest();
    },
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
    },
  };
}

describe("signing", () => {
  test("keys are made here, each for itself, and fit the certificates that are served", async () => {
    await using all = setUp();
    all.sync(entry("a"), entry("b"));
    await eventually("both SVIDs", () => all.cache.svidCount === 2);
    const { identities } = all.cache.current(selectors("unix:uid:1000"));
    const publicKeys = identities.map(({ privateKey }) =>
      Buffer.from(localSigner(privateKeyFromPkcs8(privateKey)).publicKey),
    );
    const certified = identities.map(({ chain }) => Buffer.from(parseCertificate(chain[0]!).publicKey));
    expect(publicKeys).toEqual(certified);
    expect(new Set(all.server.batches[0]?.keys).size).toBe(2);
    expect(all.logged("Creating X509-SVID")).toEqual([
      { entry_id: "a", spiffe_id: "spiffe://home.test/a" },
      { entry_id: "b", spiffe_id: "spiffe://home.test/b" },
    ]);
  });

  test.each<KeyType>(["ec-p256", "ec-p384", "rsa-2048"])("keys are of the configured type: %s", async (keyType) => {
    await using all = setUp({ keyType });
    all.sync(entry("a"));
    await eventually("the SVID", () => all.cache.svidCount === 1);
    const [identity] = all.cache.current(selectors("unix:uid:1000")).identities;
    expect(localSigner(privateKeyFromPkcs8(identity!.privateKey)).keyType).toBe(keyType);
  });

  test("SVIDs are renewed around half of their lifetime, with a new key", async () => {
    await using all = setUp();
    all.sync(entry("a"));
    await all.signed(1);
    await all.rest();
    await all.clock.advance(4 * MINUTE);
    expect(all.server.batches).toHaveLength(1);
    await all.clock.advance(MINUTE);
    await all.signed(2);
    const [first, second] = all.server.batches;
    expect(first?.keys).not.toEqual(second?.keys);
    expect(all.logged("Renewing X509-SVID")).toEqual([
      { entry_id: "a", spiffe_id: "spiffe://home.test/a", expires_at: "2026-01-01T00:10:00Z" },
    ]);
  });

  test("an SVID of ten seconds is renewed again and again before it expires", async () => {
    await using all = setUp();
    all.server.ttlMs = 10_000;
    all.sync(entry("a"));
    for (let round = 1; round <= 5; round += 1) {
      await all.signed(round);
      await all.rest();
      const [identity] = all.cache.current(selectors("unix:uid:1000")).identities;
      expect(identity!.expiresAt.getTime() - all.clock.now().getTime()).toBeGreaterThan(5_000);
      await all.clock.advance(4_000);
    }
  });

  test("a new revision is signed at once", async () => {
    await using all = setUp();
    all.sync(entry("a"));
    await eventually("the SVID", () => all.cache.svidCount === 1);
    all.sync(entry("a", { revisionNumber: 1 }));
    await all.signed(2);
  });

  test("a caller that waits is served at once, before what is fetched ahead", async () => {
    await using all = setUp();
    all.server.down = new Fault("unavailable", "away");
    all.sync(entry("ahead", { selectors: ["unix:uid:5"] }), entry("waited", { disableX509SvidPrefetch: true }));
    await all.signed(1);
    await all.rest();
    expect(all.server.ids).toEqual([["ahead"]]);
    all.server.down = undefined;
    const reader = new Reader((signal) => all.cache.subscribe(selectors("unix:uid:1000"), signal));
    await reader.news();
    await all.clock.advance(1_000);
    await all.signed(2);
    expect(all.server.ids[1]).toEqual(["waited", "ahead"]);
    await eventually("the identity", async () => (await reader.news()).includes("waited"));
    await reader.stop();
  });
});

describe("when signing fails", () => {
  test("batches are cut in half and doubled again", async () => {
    await using all = setUp();
    all.server.down = new Fault("exhausted", "too much");
    all.sync(
      ...Array.from({ length: 600 }, (_, at) =>
        entry(`e${String(at).padStart(3, "0")}`, { selectors: [`unix:uid:${at}`] }),
      ),
    );
    for (let failures = 1; failures <= 3; failures += 1) {
      while (all.server.batches.length < failures) await all.pass(500);
    }
    all.server.down = undefined;
    while (all.cache.svidCount < 600) await all.pass(500);
    expect(all.server.ids.map(({ length }) => length)).toEqual([500, 250, 125, 62, 124, 248, 166]);
    expect(all.logged("SVID sync failed")[0]).toEqual({ error: "too much" });
  });

  test("attempts grow apart, and what is held stays", async () => {
    await using all = setUp();
    all.sync(entry("a"));
    await all.signed(1);
    all.server.down = new Fault("unavailable", "away");
    await all.pass(5 * MINUTE);
    const attempts: number[] = [];
    for (let minute = 0; minute < 3; minute += 1) {
      const before = all.server.batches.length;
      await all.pass(MINUTE);
      attempts.push(all.server.batches.length - before);
    }
    expect(attempts[0]).toBeGreaterThan(attempts[2]!);
    expect(attempts[2]).toBeGreaterThan(0);
    expect(all.cache.current(selectors("unix:uid:1000")).identities).toHaveLength(1);
    all.server.down = undefined;
    await all.pass(MINUTE);
    expect(
      all.cache.current(selectors("unix:uid:1000")).identities[0]!.expiresAt > new Date("2026-01-01T00:12:00Z"),
    ).toBe(true);
  });

  test("an entry that the server refuses is asked for again without a sync, and the others are signed", async () => {
    await using all = setUp();
    all.server.refuse = (id) =>
      id === "lagging" ? { kind: "refused", status: 5, error: "entry not found or not authorized" } : undefined;
    const entries = [entry("lagging"), entry("sound", { createdAt: 2000 })];
    all.sync(...entries);
    await eventually("the other", () => all.cache.svidCount === 1);
    await all.rest();
    expect(all.server.batches).toHaveLength(1);
    expect(all.logged("Failed to mint X509 SVID")).toEqual([
      { entry_id: "lagging", status: 5, error: "entry not found or not authorized" },
    ]);
    all.server.refuse = () => undefined;
    await all.clock.advance(500);
    await eventually("both", () => all.cache.svidCount === 2);
  });

  test.each([4, 8, 10, 14])(
    "status %i of an entry is a failure to try again soon, and the others are signed",
    async (status) => {
      await using all = setUp();
      all.server.refuse = (id) => (id === "a" ? { kind: "refused", status, error: "too much to do" } : undefined);
      all.sync(entry("a"), entry("b", { createdAt: 2000 }));
      await eventually("the other", () => all.cache.svidCount === 1);
      await all.rest();
      expect(all.logged("Failed to mint X509 SVID")).toEqual([]);
      expect(String(all.logged("SVID sync failed")[0]?.["error"])).toContain("too much to do");
      all.server.refuse = () => undefined;
      await all.clock.advance(5000);
      await eventually("both", () => all.cache.svidCount === 2);
    },
  );

  test.each<{ what: string; change: CertificateOptions; reason: string }>([
    {
      what: "another ID",
      change: { id: "spiffe://home.test/admin" },
      reason: "signed spiffe://home.test/admin instead of",
    },
    {
      what: "two IDs",
      change: { uris: ["spiffe://home.test/a", "spiffe://home.test/b"] },
      reason: "more than one URI SAN",
    },
    { what: "no ID", change: { uris: [] }, reason: "no URI SAN" },
  ])("T-C4 a certificate with $what is not served", async ({ change, reason }) => {
    await using all = setUp();
    all.server.change = () => change;
    all.sync(entry("a"));
    await eventually("the refusal", () => all.logged("Failed to mint X509 SVID").length > 0);
    expect(String(all.logged("Failed to mint X509 SVID")[0]?.["error"])).toContain(reason);
    expect(all.cache.svidCount).toBe(0);
  });

  describe("a server that signs for an entry as it was before", () => {
    const [web, api] = [entry("web"), entry("api", { createdAt: 2000 })];

    async function renaming() {
      const all = setUp();
      all.sync(web, api);
      await eventually("both SVIDs", () => all.cache.svidCount === 2);
      const reader = new Reader((signal) => all.cache.subscribe(selectors("unix:uid:1000"), signal));
      await reader.news();
      all.server.change = (id) => (id === "web" ? { id: web.spiffeId } : {});
      all.sync(entry("web", { path: "/renamed", revisionNumber: 1 }), api);
      await eventually("the refusal", () => all.logged("Failed to mint X509 SVID").length > 0);
      await all.rest();
      return { all, reader };
    }

    test("is asked again soon, and nobody is told of a moment without the identity", async () => {
      const { all, reader } = await renaming();
      expect(await reader.news()).toEqual([]);
      all.server.change = () => ({});
      await all.clock.advance(100);
      await eventually("the new one", () => all.cache.svidCount === 2);
      expect(await reader.news()).toEqual(["web,api"]);
      expect(reader.last?.identities.map(({ entry: { spiffeId } }) => spiffeId)).toContain(
        "spiffe://home.test/renamed",
      );
      await reader.stop();
      await all[Symbol.asyncDispose]();
    });

    test("and goes on doing so holds up the others for no more than a second", async () => {
      const { all, reader } = await renaming();
      for (const [at, ms] of [100, 200, 400].entries()) {
        expect(await reader.news()).toEqual([]);
        await all.clock.advance(ms);
        await eventually("one more refusal", () => all.logged("Failed to mint X509 SVID").length === at + 2);
        await all.rest();
      }
      expect(await reader.news()).toEqual(["api"]);
      await reader.stop();
      await all[Symbol.asyncDispose]();
    });
  });

  test("T-C4 a certificate for another key is not served", async () => {
    await using all = setUp();
    const { signer } = await createCa();
    all.server.change = () => ({ publicKey: signer.publicKey });
    all.sync(entry("a"));
    await eventually("the refusal", () => all.logged("Failed to mint X509 SVID").length > 0);
    expect(all.cache.svidCount).toBe(0);
  });

  test("T-F7 a certificate that starts in the future says that the clock is early, and is served", async () => {
    await using all = setUp();
    all.server.change = () => ({
      notBefore: new Date("2026-01-01T01:00:00Z"),
      notAfter: new Date("2026-01-01T02:00:00Z"),
    });
    all.sync(entry("a"));
    await eventually("the SVID", () => all.cache.svidCount === 1);
    expect(
      all.logged("The clock of this machine is earlier than the start of the X509-SVID of spiffe://home.test/a"),
    ).toEqual([{ not_before: "2026-01-01T01:00:00Z" }]);
  });
});
