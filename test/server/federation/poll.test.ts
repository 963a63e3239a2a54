import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Directory } from "../../../server/directory/authorized.ts";
import { Follower } from "../../../server/directory/follow.ts";
import { BundlePoller } from "../../../server/federation/poll.ts";
import type { SqlStore } from "../../../server/store/database.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { MetricNaming, type Metrics, noMetrics } from "../../../src/runtime/metrics.ts";
import { PrometheusRegistry } from "../../../src/runtime/prometheus.ts";
import { type Bundle, encodeBundleDocument } from "../../../src/spiffe/bundle.ts";
import type { FederationRelationship } from "../../../src/spiffe/federation.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { validateX509Svid } from "../../../src/spiffe/x509-svid.ts";
import { document, type ForeignEndpoint, startForeignEndpoint } from "../../support/bundle-endpoint.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom, faultOf } from "../../support/faults.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { RecordingLog } from "../../support/recording-log.ts";

import { emptyStore, openTestStore } from "../../support/store-data.ts";

const PARTNER = parseTrustDomain("partner.test");
const HOME = parseTrustDomain("home.test");
const forever = new AbortController().signal;

let folder: string;
let store: SqlStore;
let ca: TestCa;
let endpoint: ForeignEndpoint;
let relationship: FederationRelationship;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "steeple-poll-"));
  store = await openTestStore({ kind: "embedded", directory: join(folder, "store") });
  ca = await createCa({ trustDomain: PARTNER });
  const endpointSpiffeId = parseSpiffeId("spiffe://partner.test/spire/server");
  endpoint = await startForeignEndpoint(await ca.issue({ id: endpointSpiffeId }), document(""));
  const profile = { type: "https_spiffe", endpointSpiffeId } as const;
  relationship = { trustDomain: PARTNER, bundleEndpointUrl: endpoint.url, profile };
});
afterAll(async () => {
  await endpoint[Symbol.asyncDispose]();
  await store[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});
beforeEach(async () => {
  await emptyStore(store);
  endpoint.requests.length = 0;
});

const bundle = (sequenceNumber: bigint, refreshHint = 300, ...more: readonly TestCa[]): Bundle => ({
  trustDomain: PARTNER,
  x509Authorities: [ca, ...more].map(({ der }) => ({ asn1: Uint8Array.from(der), tainted: false })),
  jwtAuthorities: [],
  witAuthorities: [],
  refreshHint,
  sequenceNumber,
});
const serve = (served: Bundle): void => {
  endpoint.answer = document(encodeBundleDocument(served));
};

async function setUp(relationships: readonly FederationRelationship[] = [], metrics: Metrics = noMetrics) {
  const clock = new FakeClock(new Date().toISOString());
  const log = new RecordingLog([], {}, metrics);
  const directory = new Directory({ trustDomain: HOME, clock: systemClock });
  const follower = new Follower({ changes: store.changes, directory, clock: systemClock, log });
  await follower.load(forever);
  const poller = new BundlePoller({
    ...{ federation: store.federation, bundles: store.bundles },
    directory,
    relationships,
    clock,
    log,
  });
  const held = async (): Promise<Bundle | undefined> => {
    await follower.caughtUp();
    return directory.bundle(PARTNER);
  };
  return { clock, log, poller, directory, held, caughtUp: () => follower.caughtUp() };
}

describe("one refresh", () => {
  test("FED-08 stores what it fetched, and tells when there is no relationship", async () => {
    const { poller, held } = await setUp();
    expect(await poller.refresh(PARTNER, forever)).toBe(false);
    await store.federation.create(relationship, bundle(1n));
    const { poller: second, held: now } = await setUp();
    serve(bundle(2n, 60));
    expect(await second.refresh(PARTNER, forever)).toBe(true);
    expect(await now()).toEqual(bundle(2n, 60));
    expect(await held()).toEqual(bundle(2n, 60));
  });

  test("counts fetches and updates under SPIRE's names", async () => {
    await store.federation.create(relationship, bundle(1n));
    const metrics = new PrometheusRegistry(new MetricNaming({ prefix: "spire_server" }), systemClock);
    const { poller } = await setUp([], metrics);
    serve(bundle(2n));
    await poller.refresh(PARTNER, forever);
    await poller.refresh(PARTNER, forever);
    serve(bundle(1n));
    await poller.refresh(PARTNER, forever);
    const label = PARTNER.replace(/\W/g, "_");
    const lines = metrics.text().split("\n");
    expect(lines).toContain(`spire_server_bundle_manager_update_federated_bundle{trust_domain_id="${label}"} 1`);
    expect(lines).toContain(
      `spire_server_bundle_manager_fetch_federated_bundle{status="OK",trust_domain_id="${label}"} 3`,
    );
  });

  const other = createCa({ trustDomain: PARTNER });

  test.each<{ what: string; held: bigint; fetched: bigint; applied: boolean; says: string }>([
    { what: "FED-09 a greater number is newer", held: 7n, fetched: 8n, applied: true, says: "Bundle refreshed" },
    {
      what: "FED-09 a smaller number is held off",
      held: 7n,
      fetched: 6n,
      applied: false,
      says: "Bundle endpoint answers with an older bundle than the one held, which stays",
    },
    {
      what: "FED-09 the same number with other keys is applied",
      held: 7n,
      fetched: 7n,
      applied: true,
      says: "Bundle endpoint changed a bundle without a new sequence number",
    },
    {
      what: "FED-10 FED-11 no number at all is applied",
      held: 7n,
      fetched: 0n,
      applied: true,
      says: "Bundle refreshed",
    },
    {
      what: "FED-11 what was set by hand without a number gives way",
      held: 0n,
      fetched: 5n,
      applied: true,
      says: "Bundle refreshed",
    },
  ])("$what", async ({ held, fetched, applied, says }) => {
    await store.federation.create(relationship, bundle(held));
    const { poller, log, held: now } = await setUp();
    const next = bundle(fetched, 300, await other);
    serve(next);
    expect(await poller.refresh(PARTNER, forever)).toBe(true);
    expect(await now()).toEqual(applied ? next : bundle(held));
    expect(log.lines.map(({ message }) => message)).toContain(says);
  });

  test("T-F1 a bundle that was deleted while it was fetched does not come back", async () => {
    await store.federation.create(relationship, bundle(1n));
    const { poller, held } = await setUp();
    const asked = Promise.withResolvers<() => void>();
    endpoint.answer = (_, response) =>
      asked.resolve(() => void response.writeHead(200).end(encodeBundleDocument(bundle(2n))));
    const refresh = faultFrom(poller.refresh(PARTNER, forever));
    const answer = await asked.promise;
    await store.federation.delete(PARTNER);
    await store.bundles.delete(PARTNER, "delete");
    answer();
    expect(await refresh).toMatchObject({ kind: "aborted", code: "relationship-changed" });
    expect(await held()).toBeUndefined();
  });

  test("TDB-14 an empty bundle is taken as what it says", async () => {
    await store.federation.create(relationship, bundle(8n));
    const { poller, held } = await setUp();
    serve({ ...bundle(9n), x509Authorities: [] });
    await poller.refresh(PARTNER, forever);
    expect((await held())?.x509Authorities).toEqual([]);
  });

  test("FED-54 T-F1 what is held stays when the endpoint answers nonsense, and the caller is told", async () => {
    await store.federation.create(relationship, bundle(1n));
    const { poller, held } = await setUp();
    endpoint.answer = document("{}", 500);
    expect((await faultFrom(poller.refresh(PARTNER, forever))).message).toBe("unexpected status 500 fetching bundle");
    expect(await held()).toEqual(bundle(1n));
  });

  test.each([301, 308])(
    "FED-35b a redirect with status %i leaves the relationship as it was, after a restart too",
    async (status) => {
      await store.federation.create(relationship, bundle(1n));
      endpoint.answer = (request, response) =>
        (request.url === "/"
          ? document("", status, { location: "/moved" })
          : document(encodeBundleDocument(bundle(2n))))(request, response);
      for (let start = 0; start < 2; start += 1)
        expect(await (await setUp()).poller.refresh(PARTNER, forever)).toBe(true);
      expect(endpoint.requests).toEqual(["/", "/moved", "/", "/moved"]);
      expect((await store.federation.find(PARTNER))?.bundleEndpointUrl).toBe(endpoint.url);
    },
  );

  test("FED-53 a fetch is logged with its URL, the endpoint's ID, the sequence number and what came of it", async () => {
    await store.federation.create(relationship, bundle(1n));
    const { poller, log } = await setUp();
    const about = {
      trust_domain: PARTNER,
      bundle_endpoint_url: endpoint.url,
      endpoint_spiffe_id: "spiffe://partner.test/spire/server",
    };
    serve(bundle(2n));
    await poller.refresh(PARTNER, forever);
    await poller.refresh(PARTNER, forever);
    for (const message of ["Bundle refreshed", "Bundle is unchanged"]) {
      const line = log.lines.find((each) => each.message === message);
      expect(line?.fields).toMatchObject({ ...about, sequence_number: 2n });
    }
  });

  test("FED-12 bundles of two trust domains stay apart, and one's authority vouches for nobody of the other", async () => {
    const third = parseTrustDomain("third.test");
    const thirdCa = await createCa({ trustDomain: third });
    await store.federation.create(relationship, bundle(1n));
    await store.federation.create({ ...relationship, trustDomain: third }, { ...bundle(1n), trustDomain: third });
    const { poller, caughtUp, directory } = await setUp();
    serve(bundle(2n));
    await poller.refresh(PARTNER, forever);
    serve({ ...bundle(2n), x509Authorities: [{ asn1: Uint8Array.from(thirdCa.der), tainted: false }] });
    await poller.refresh(third, forever);
    await caughtUp();
    const roots = async (name: typeof third) =>
      (await store.bundles.find(name))?.x509Authorities.map(({ asn1 }) => [...asn1]);
    expect(await roots(PARTNER)).toEqual([[...ca.der]]);
    expect(await roots(third)).toEqual([[...thirdCa.der]]);
    const authorities = (name: typeof third) =>
      directory.bundle(name)?.x509Authorities.map(({ asn1 }) => parseCertificate(asn1));
    const check = (issued: Issued) =>
      validateX509Svid({ chain: issued.certificates, authorities, at: systemClock.now() });
    expect(check(await ca.issue())).toBe("spiffe://partner.test/web");
    expect(check(await thirdCa.issue())).toBe("spiffe://third.test/web");
    for (const forged of [
      await ca.issue({ id: "spiffe://third.test/x" }),
      await thirdCa.issue({ id: "spiffe://partner.test/x" }),
    ])
      expect(faultOf(() => check(forged)).kind).toBe("denied");
  });

  test("a relationship of the configuration goes before one of the store", async () => {
    await store.federation.create({ ...relationship, bundleEndpointUrl: "https://127.0.0.1:1/" }, bundle(1n));
    const { poller, held } = await setUp([relationship]);
    serve(bundle(2n));
    expect(await poller.refresh(PARTNER, forever)).toBe(true);
    expect(await held()).toEqual(bundle(2n));
  });
});

describe("polling", () => {
  async function running() {
    const parts = await setUp();
    const stop = new AbortController();
    const done = parts.poller.run(stop.signal);
    const logged = (text: RegExp) => parts.log.lines.filter(({ message }) => text.test(message)).length;
    /** Waits until that many polls are over and everything waits for time to pass: the poller, and the next poll. */
    const polled = (count: number) =>
      eventually(
        `poll ${count}`,
        () =>
          logged(/^(Bundle (refreshed|is unchanged)|Error updating bundle)$/) === count && parts.clock.sleeping === 2,
      );
    const end = async (): Promise<void> => {
      stop.abort();
      await done;
    };
    return { ...parts, polled, logged, end };
  }

  test("FED-06 FED-07 FED-48 TDB-28 the hint of the bundle is the interval, also after a failure, with a floor and a default", async () => {
    serve(bundle(2n, 60));
    await store.federation.create(relationship, bundle(1n));
    const { clock, polled, caughtUp, end } = await running();
    await polled(1);
    await caughtUp();
    await clock.advance(59_999);
    await polled(1);
    endpoint.answer = document("", 500);
    await clock.advance(1);
    await polled(2);
    serve(bundle(3n, 1));
    await clock.advance(59_999);
    await polled(2);
    await clock.advance(1);
    await polled(3);
    serve(bundle(4n, 0));
    await clock.advance(9_999);
    await polled(3);
    await clock.advance(1);
    await polled(4);
    await clock.advance(299_999);
    await polled(4);
    await clock.advance(1);
    await polled(5);
    await end();
  });

  test("FED-50 a relationship that is made is polled at once, changed anew, and deleted no more", async () => {
    serve(bundle(2n));
    const { clock, poller, logged, polled, caughtUp, end } = await running();
    await eventually("the poller waits", () => clock.sleeping === 1);
    await store.federation.create(relationship, bundle(1n));
    await caughtUp();
    poller.reload();
    await polled(1);
    await store.federation.update(PARTNER, { bundleEndpointUrl: `${endpoint.url}?changed` });
    poller.reload();
    await eventually("the changed URL is asked", () => endpoint.requests.includes("/?changed"));
    await store.federation.delete(PARTNER);
    poller.reload();
    await eventually("the trust domain is not managed", () => logged(/^Trust domain no longer managed$/) === 1);
    expect([logged(/^Trust domain is now managed$/), logged(/^Updated configuration/)]).toEqual([1, 1]);
    await eventually("only the poller waits", () => clock.sleeping === 1);
    const count = endpoint.requests.length;
    await clock.advance(3_600_000);
    expect(endpoint.requests).toHaveLength(count);
    await end();
    expect(await store.bundles.find(PARTNER)).toEqual(bundle(2n));
  });
});
