import { beforeAll, describe, expect, test } from "vitest";
import { BrokerClient } from "../../../src/client/broker.ts";
import { kubernetesReference, pidReference } from "../../../src/client/broker-reference.ts";
import { authorizeId } from "../../../src/client/tls.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { byMethod, hold, refuse, reply, type Step } from "../../support/fake-agent.ts";
import { faultFrom, faultOf, refusal } from "../../support/faults.ts";
import { brokerAt, jwks, PROVIDER_ID, reasonDetails, tokens, WatchedWorkload } from "./broker-fixture.ts";
import { makeWorld, svidMessage, type World } from "./fixtures.ts";
import { gaps, pass } from "./retries.ts";

const REFERENCE = pidReference(7);

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});

const bundles = () => ({ bundles: { "spiffe://example.org": world.rootA.der } });

async function callAll({ client }: { readonly client: BrokerClient }): Promise<void> {
  const stop = new AbortController();
  const workload = client.workload(REFERENCE);
  for await (const _ of workload.watchX509Svids({ signal: stop.signal })) break;
  for await (const _ of workload.watchX509Bundles({ signal: stop.signal })) break;
  for await (const _ of workload.watchJwtBundles({ signal: stop.signal })) break;
  await workload.fetchJwtSvids("reports");
  stop.abort();
}

const everything = (): Step =>
  byMethod({
    SubscribeToX509SVID: hold(svidMessage(world)),
    SubscribeToX509Bundles: hold(bundles()),
    SubscribeToJWTBundles: hold({ bundles: { "spiffe://example.org": jwks() } }),
    FetchJWTSVID: reply(tokens({ spiffe_id: "spiffe://example.org/web" })),
  });

describe("what a broker sends", () => {
  test("BEP-03 BEP-05 on all four RPCs and every retry the header once, beside its own metadata, over mutual TLS", async () => {
    const clock = new FakeClock();
    const metadata = { "x-mine": "kept", "broker.spiffe.io": "False" };
    await using at = await brokerAt(
      world,
      { clock, metadata },
      everything(),
      everything(),
      everything(),
      everything(),
      refuse(14),
      refuse(13),
      everything(),
    );
    await callAll(at);
    await using watching = new WatchedWorkload(at.client, { clock });
    await pass(clock, () => watching.updates.length === 1);
    expect(at.endpoint.calls.map(({ method }) => method)).toEqual([
      "/spiffe.broker.API/SubscribeToX509SVID",
      "/spiffe.broker.API/SubscribeToX509Bundles",
      "/spiffe.broker.API/SubscribeToJWTBundles",
      "/spiffe.broker.API/FetchJWTSVID",
      ...Array(3).fill("/spiffe.broker.API/SubscribeToX509SVID"),
    ]);
    for (const { headers, serialNumber } of at.endpoint.calls) {
      expect(headers["broker.spiffe.io"]).toBe("true");
      expect(headers["workload.spiffe.io"]).toBeUndefined();
      expect(headers["x-mine"]).toBe("kept");
      expect(BigInt(`0x${serialNumber}`)).toBe(BigInt(at.source.svid.chain[0]!.serialNumber));
    }
  });

  test.each([
    { what: "a process", given: pidReference(1234) },
    { what: "an object", given: kubernetesReference({ plural: "pods", group: "core", namespace: "shop", name: "a" }) },
  ])("BRK-11 exactly the reference that it was given: $what", async ({ given }) => {
    await using at = await brokerAt(world, {}, hold(svidMessage(world)));
    await using source = await at.client.workload(given).x509Source();
    const [call] = at.endpoint.calls;
    expect(call?.request().includes(Buffer.from(given.value))).toBe(true);
    expect(call?.request().toString("latin1").split(given.typeUrl)).toHaveLength(2);
    expect(source.svid.id).toBe("spiffe://example.org/web");
  });

  test("BEP-16 nothing, to an endpoint with another SPIFFE ID, of another authority, or of its own making", async () => {
    const strangers = [{ id: "spiffe://example.org/web" }, { signedBy: world.rootB.signer }];
    for (const certificate of strangers) {
      await using at = await brokerAt(world, { certificate }, everything());
      const found = await faultFrom(at.client.workload(REFERENCE).fetchJwtSvids("reports"));
      expect(found.kind).toBe("unavailable");
      expect(at.endpoint.calls).toEqual([]);
    }
    await using sound = await brokerAt(world, {}, everything());
    await sound.client.workload(REFERENCE).fetchJwtSvids("reports");
  });
});

describe("BRK-15 a reference to a local process", () => {
  const remote = ["tcp://192.0.2.1:8443", "tcp://broker.example.com:8443", "tcp://[2001:db8::1]:8443"];
  const near = ["unix:///run/broker.sock", "tcp://127.0.0.1:8443", "tcp://[::1]:8443", "tcp://localhost:8443"];
  const object = kubernetesReference({ plural: "pods", group: "core", uid: "a1b2c3d4-e5f6-7890-abcd-ef1234567890" });

  test("does not go to another node unless forced; an object's does", async () => {
    await using at = await brokerAt(world, {}, everything());
    const client = (socket: string, allowRemote = false): BrokerClient =>
      new BrokerClient({ socket, source: at.source, authorize: authorizeId(PROVIDER_ID), allowRemote });
    for (const socket of remote) {
      using strict = client(socket);
      expect(faultOf(() => strict.workload(REFERENCE))).toMatchObject(refusal("invalid", "workload-reference-local"));
      expect(strict.workload(object).reference).toBe(object);
      using forced = client(socket, true);
      expect(forced.workload(REFERENCE).reference).toBe(REFERENCE);
    }
    for (const socket of near) {
      using strict = client(socket);
      expect(strict.workload(REFERENCE).reference).toBe(REFERENCE);
    }
  });
});

describe("answers after which asking again is of no use", () => {
  test.each([
    { id: "BEP-17", what: "InvalidArgument", code: 3, kind: "invalid", retryRefused: true },
    { id: "BEP-26", what: "Unimplemented", code: 12, kind: "unimplemented", retryRefused: true },
    { id: "BEP-22 BRK-63b", what: "PermissionDenied, by default", code: 7, kind: "denied", retryRefused: false },
    { id: "BRK-63b", what: "NotFound, by default", code: 5, kind: "not_found", retryRefused: false },
  ] as const)("$id $what is reported once, after one call", async ({ code, kind, retryRefused }) => {
    const clock = new FakeClock();
    await using at = await brokerAt(world, { clock }, refuse(code, "no"), hold(svidMessage(world)));
    await using watching = new WatchedWorkload(at.client, { clock, retryRefused });
    await eventually("the watch ends", () => watching.ended);
    await clock.advance(3_600_000);
    expect(watching.ended?.error).toMatchObject({ kind, message: "no" });
    expect(at.endpoint.calls).toHaveLength(1);
    expect(watching.updates).toHaveLength(0);
  });
});

describe("answers after which a broker asks again", () => {
  test.each([
    { id: "BEP-18", what: "Unavailable", code: 14, kind: "unavailable", retryRefused: false },
    { id: "BEP-22 BRK-63b", what: "PermissionDenied, when asked to", code: 7, kind: "denied", retryRefused: true },
    {
      id: "BRK-63b",
      what: "NotFound before anything else, when asked to",
      code: 5,
      kind: "not_found",
      retryRefused: true,
    },
  ] as const)("$id $what: with growing gaps up to 30 s, until it recovers", async ({ code, kind, retryRefused }) => {
    const clock = new FakeClock();
    await using at = await brokerAt(world, { clock }, ...Array<Step>(7).fill(refuse(code)), hold(svidMessage(world)));
    await using watching = new WatchedWorkload(at.client, { clock, retryRefused });
    await pass(clock, () => watching.updates.length === 1);
    expect(gaps(at.endpoint)).toEqual([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    expect(watching.errors.map((fault) => fault.kind)).toEqual(Array(7).fill(kind));
  });

  test("BEP-18 a socket that is not there yet", async () => {
    const clock = new FakeClock();
    await using at = await brokerAt(world, { clock }, hold(svidMessage(world)));
    await at.endpoint.stop();
    await using watching = new WatchedWorkload(at.client, { clock });
    await pass(clock, () => watching.errors.length === 3);
    expect(watching.errors.map((fault) => fault.kind)).toEqual(["unavailable", "unavailable", "unavailable"]);
    await at.endpoint.listen();
    await pass(clock, () => watching.updates.length === 1);
  });

  test("BEP-20 Unauthenticated: not with the same certificate, but with the next one", async () => {
    const clock = new FakeClock();
    const token = reply(tokens({ spiffe_id: "spiffe://example.org/web" }));
    await using at = await brokerAt(world, { clock }, refuse(16), token, hold(svidMessage(world)));
    await using watching = new WatchedWorkload(at.client, { clock });
    await eventually("the refusal", () => watching.errors.length === 1);
    await eventually("the back-off", () => clock.sleeping === 1);
    await clock.advance(600_000);
    // A whole handshake and call of somebody else: one of ours would have come before it.
    using other = new BrokerClient({
      socket: at.endpoint.socket,
      source: at.source,
      authorize: authorizeId(PROVIDER_ID),
    });
    await other.workload(REFERENCE).fetchJwtSvids("reports");
    const impatient = await faultFrom(at.client.workload(REFERENCE).fetchJwtSvids("reports"));
    expect(impatient).toMatchObject(refusal("unauthenticated", "broker-identity-refused"));
    expect(at.endpoint.calls).toHaveLength(2);
    const refused = at.endpoint.calls[0]?.serialNumber;
    await at.renew();
    await pass(clock, () => watching.updates.length === 1);
    expect(at.endpoint.calls).toHaveLength(3);
    expect(at.endpoint.calls[2]?.serialNumber).not.toBe(refused);
  });
});

describe("a stream that had delivered", () => {
  test("BRK-37 is held open through an idle hour", async () => {
    const clock = new FakeClock();
    await using at = await brokerAt(world, { clock }, hold(svidMessage(world)));
    await using watching = new WatchedWorkload(at.client, { clock });
    await eventually("the first message", () => watching.updates.length === 1);
    await clock.advance(3_600_000);
    expect(at.endpoint.calls[0]?.stream.isOpen).toBe(true);
    at.endpoint.calls[0]?.stream.send(svidMessage(world));
    await eventually("the next message", () => watching.updates.length === 2);
    expect(at.endpoint.calls).toHaveLength(1);
  });

  test.each<{ what: string; drop: Step }>([
    { what: "status 0", drop: (stream) => stream.end(0) },
    { what: "Unavailable", drop: (stream) => stream.end(14) },
    { what: "a connection reset", drop: (stream) => stream.dropConnection() },
    {
      what: "GOAWAY and an end",
      drop: (stream) => {
        stream.goaway();
        stream.end(14);
      },
    },
  ])("BRK-38 that ends with $what is opened again at once, then with back-off", async ({ drop }) => {
    const clock = new FakeClock();
    await using at = await brokerAt(world, { clock }, hold(svidMessage(world)), refuse(14), hold(svidMessage(world)));
    await using watching = new WatchedWorkload(at.client, { clock });
    await eventually("the first message", () => watching.updates.length === 1);
    drop(at.endpoint.calls[0]!.stream);
    await eventually("a call without any time passing", () => at.endpoint.calls.length === 2);
    await pass(clock, () => watching.updates.length === 2);
    expect(gaps(at.endpoint)).toEqual([0, 1_000]);
  });

  test("BRK-58 BRK-56 that ends with NotFound is not opened again: the workload has stopped", async () => {
    const clock = new FakeClock();
    const once: Step = (stream) => {
      stream.send(svidMessage(world));
      stream.end(14);
    };
    await using at = await brokerAt(world, { clock }, once, refuse(5), hold(svidMessage(world)));
    await using watching = new WatchedWorkload(at.client, { clock, retryRefused: true });
    await eventually("the watch ends", () => watching.ended);
    await clock.advance(3_600_000);
    expect(watching.ended?.error).toMatchObject(refusal("not_found", "workload-not-found"));
    expect(at.endpoint.calls).toHaveLength(2);
  });
});

describe("connections", () => {
  test("many streams share one, beyond a hundred there is a second, and a new identity gets its own", async () => {
    await using scope = new AsyncDisposableStack();
    await using at = await brokerAt(world, {}, hold(svidMessage(world)));
    const open = async (count: number): Promise<void> => {
      const sources = Array.from({ length: count }, () => at.client.workload(REFERENCE).x509Source());
      for (const source of await Promise.all(sources)) scope.use(source);
    };
    await open(100);
    expect(at.endpoint.connections).toBe(1);
    await open(1);
    expect(at.endpoint.connections).toBe(2);
    await at.renew();
    await open(1);
    expect(at.endpoint.connections).toBe(3);
  });

  test("BRK-38 that failed leave no delay behind: the next call finds an endpoint that is back", async () => {
    await using at = await brokerAt(world, {}, everything());
    const fetch = () => at.client.workload(REFERENCE).fetchJwtSvids("reports");
    await fetch();
    await at.endpoint.stop();
    for (let round = 0; round < 3; round += 1) expect((await faultFrom(fetch())).kind).toBe("unavailable");
    await at.endpoint.listen();
    await fetch();
  });

  test("closing the client ends its sources, which hold nothing from then on", async () => {
    await using at = await brokerAt(world, {}, hold(svidMessage(world)));
    await using source = await at.client.workload(REFERENCE).x509Source();
    at.client[Symbol.dispose]();
    await eventually("the source is empty", () => faultOf(() => source.context).code === "source-closed");
    await eventually("no connection is left", () => at.endpoint.connections === 0);
  });
});

describe("errors of the Broker API", () => {
  const situations = [
    { code: 3, kind: "invalid", reason: "WORKLOAD_REFERENCE_INVALID", expected: "workload-reference-invalid" },
    { code: 5, kind: "not_found", reason: "WORKLOAD_NOT_FOUND", expected: "workload-not-found" },
    { code: 7, kind: "denied", reason: "WORKLOAD_NOT_ENTITLED", expected: "workload-not-entitled" },
  ];

  test.each(situations)(
    "BRK-54 $reason is an error with the code $expected",
    async ({ code, kind, reason, expected }) => {
      await using at = await brokerAt(world, {}, refuse(code, "no", reasonDetails(code, reason)));
      const found = await faultFrom(at.client.workload(REFERENCE).fetchJwtSvids("reports"));
      expect(found).toMatchObject({ kind, code: expected, message: "no" });
      expect(found.hint).toBeDefined();
    },
  );

  test.each(situations)("BRK-55 so is its status $code alone: $expected", async ({ code, kind, expected }) => {
    await using at = await brokerAt(world, {}, refuse(code, "no"));
    const found = await faultFrom(at.client.workload(REFERENCE).fetchJwtSvids("reports"));
    expect(found).toMatchObject({ kind, code: expected, message: "no" });
  });

  test.each([
    { what: "a reason of another domain", details: reasonDetails(7, "WORKLOAD_NOT_FOUND", "example.org") },
    { what: "garbage", details: Buffer.from([0xff, 0xff, 0xff]) },
  ])("BRK-55 $what does not change what the status says", async ({ details }) => {
    await using at = await brokerAt(world, {}, refuse(7, "no", details));
    const found = await faultFrom(at.client.workload(REFERENCE).fetchJwtSvids("reports"));
    expect(found).toMatchObject(refusal("denied", "workload-not-entitled"));
  });

  test("BRK-54 an endpoint's own code stays", async () => {
    await using at = await brokerAt(world, {}, refuse(7, "no", reasonDetails(7, "broker-not-authorized", "steeple")));
    const found = await faultFrom(at.client.workload(REFERENCE).fetchJwtSvids("reports"));
    expect(found).toMatchObject(refusal("denied", "broker-not-authorized"));
  });
});

describe("BEP-26 services", () => {
  test("an endpoint without reflection offers the Broker API and nothing else", async () => {
    await using at = await brokerAt(world, {}, refuse(12));
    expect(await at.client.listServices()).toEqual(["spiffe.broker.API"]);
    expect(at.endpoint.calls[0]?.headers["broker.spiffe.io"]).toBe("true");
  });

  test.each([
    { code: 3, kind: "invalid" },
    { code: 14, kind: "unavailable" },
  ])("one that answers $kind is not taken for one without reflection", async ({ code, kind }) => {
    await using at = await brokerAt(world, {}, refuse(code));
    expect((await faultFrom(at.client.listServices())).kind).toBe(kind);
  });
});
