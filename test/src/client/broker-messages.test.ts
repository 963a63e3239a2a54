import { beforeAll, describe, expect, test } from "vitest";
import { pidReference } from "../../../src/client/broker-reference.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { byMethod, hold, reply } from "../../support/fake-agent.ts";
import { faultFrom, faultOf, refusal } from "../../support/faults.ts";
import { brokerAt, jwks, tokens, WatchedWorkload } from "./broker-fixture.ts";
import { makeWorld, svidMessage, svidPart, type World } from "./fixtures.ts";

const A = parseTrustDomain("example.org");
const B = parseTrustDomain("partner.test");
const REFERENCE = pidReference(7);

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});

const withB = () => svidMessage(world, { federated_bundles: { "spiffe://partner.test": world.rootB.der } });
const bundles = () => ({ bundles: { "spiffe://example.org": world.rootA.der } });

describe("what a later message leaves out is gone", () => {
  test("BRK-44 BRK-47 a federated bundle, and with it its peers", async () => {
    await using at = await brokerAt(world, {}, hold(withB()));
    await using source = await at.client.workload(REFERENCE).x509Source();
    expect(source.verify(world.leafB.certificates)).toBe("spiffe://partner.test/web");
    at.endpoint.calls[0]?.stream.send(svidMessage(world));
    await eventually("the update", () => source.bundle(B) === undefined);
    expect(faultOf(() => source.verify(world.leafB.certificates))).toMatchObject(refusal("denied", "no-bundle"));
    expect(source.verify(world.leafA.certificates)).toBe("spiffe://example.org/web");
  });

  test("BRK-44 a hint, and an SVID", async () => {
    const ext = await world.intA.issue({ id: "spiffe://example.org/web-ext" });
    const svids = [svidPart(world, world.leafA, { hint: "internal" }), svidPart(world, ext, { hint: "external" })];
    await using at = await brokerAt(world, {}, hold({ svids }));
    await using source = await at.client.workload(REFERENCE).x509Source();
    expect(source.svidByHint("internal").id).toBe("spiffe://example.org/web");
    expect(source.svidByHint("external").id).toBe("spiffe://example.org/web-ext");
    at.endpoint.calls[0]?.stream.send(svidMessage(world));
    await eventually("the update", () => source.svid.hint === "");
    for (const hint of ["internal", "external"])
      expect(faultOf(() => source.svidByHint(hint))).toMatchObject(refusal("not_found", "no-such-hint"));
  });

  test("BRK-47 a peer counts under the bundle of its own trust domain only", async () => {
    const forged = await world.rootB.issue({ id: "spiffe://example.org/web" });
    await using at = await brokerAt(world, {}, hold(withB()));
    await using source = await at.client.workload(REFERENCE).x509Source();
    expect(faultOf(() => source.verify(forged.certificates)).kind).toBe("denied");
    expect(source.bundle(A)?.authorities).toHaveLength(1);
  });
});

describe("BRK-46 a message with an unset mandatory field", () => {
  test.each([
    { what: "no SVIDs", message: () => ({ svids: [] }) },
    ...(["spiffe_id", "x509_svid", "x509_svid_key", "bundle"] as const).map((field) => ({
      what: `no ${field}`,
      message: () => ({
        svids: [svidPart(world, world.leafA, { [field]: field === "spiffe_id" ? "" : Buffer.alloc(0) })],
      }),
    })),
  ])("$what: is reported and dropped, and the stream stays", async ({ message }) => {
    const clock = new FakeClock();
    await using at = await brokerAt(world, { clock }, hold(svidMessage(world), message(), svidMessage(world)));
    await using watching = new WatchedWorkload(at.client, { clock });
    await eventually("both good messages", () => watching.updates.length === 2);
    expect(watching.errors).toMatchObject([{ kind: "invalid", code: "unusable-answer" }]);
    expect(at.endpoint.calls).toHaveLength(1);
  });

  test("no token: the fetch fails", async () => {
    const empty = { svids: [{ spiffe_id: "spiffe://example.org/web", svid: "", hint: "" }] };
    await using at = await brokerAt(world, {}, reply(empty), reply({ svids: [] }));
    const workload = at.client.workload(REFERENCE);
    for (let round = 0; round < 2; round += 1)
      expect(await faultFrom(workload.fetchJwtSvids("reports"))).toMatchObject(
        refusal("invalid", "workload-api-response"),
      );
  });

  test("no bundles: reported and dropped, for both kinds", async () => {
    const steps = byMethod({
      SubscribeToX509Bundles: hold({ bundles: {} }, bundles()),
      SubscribeToJWTBundles: hold({ bundles: {} }, { bundles: { "spiffe://example.org": jwks() } }),
    });
    await using at = await brokerAt(world, {}, steps);
    const workload = at.client.workload(REFERENCE);
    const told: string[] = [];
    const options = {
      signal: new AbortController().signal,
      onError: ({ code }: { code: string }) => void told.push(code),
    };
    for await (const found of workload.watchX509Bundles(options)) {
      expect([...found.bundles.keys()]).toEqual(["example.org"]);
      break;
    }
    for await (const found of workload.watchJwtBundles(options)) {
      expect([...found.bundles.keys()]).toEqual(["example.org"]);
      break;
    }
    expect(told).toEqual(["unusable-answer", "unusable-answer"]);
  });
});

describe("of repeated hints the first counts", () => {
  test("BRK-62b of X.509-SVIDs; empty ones are no hints", async () => {
    const ids = ["a", "b", "c", "d"].map((name) => parseSpiffeId(`spiffe://example.org/${name}`));
    const issued = await Promise.all(ids.map((id) => world.intA.issue({ id })));
    const hints = ["h", "h", "", ""];
    const svids = issued.map((svid, index) => svidPart(world, svid, { hint: hints[index] ?? "" }));
    await using at = await brokerAt(world, {}, hold({ svids }));
    await using source = await at.client.workload(REFERENCE).x509Source();
    expect(source.svidByHint("h").id).toBe(ids[0]);
    expect(source.context.svids.map(({ id }) => id)).toEqual([ids[0], ids[2], ids[3]]);
  });

  test("BRK-71c of JWT-SVIDs", async () => {
    const both = tokens(
      { spiffe_id: "spiffe://example.org/a", hint: "h" },
      { spiffe_id: "spiffe://example.org/b", hint: "h" },
      { spiffe_id: "spiffe://example.org/c" },
    );
    const steps = { SubscribeToJWTBundles: hold({ bundles: { "spiffe://example.org": jwks() } }) };
    await using at = await brokerAt(world, {}, byMethod({ ...steps, FetchJWTSVID: reply(both) }));
    await using source = await at.client.workload(REFERENCE).jwtSource();
    expect((await source.fetchByHint("reports", "h")).id).toBe("spiffe://example.org/a");
    const all = await at.client.workload(REFERENCE).fetchJwtSvids("reports");
    expect(all.map(({ id }) => id)).toEqual(["spiffe://example.org/a", "spiffe://example.org/c"]);
  });
});
