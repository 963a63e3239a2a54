import { beforeAll, describe, expect, test } from "vitest";
import { X509Source, type X509SourceOptions } from "../../../src/client/x509-source.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import type { Fault } from "../../../src/runtime/fault.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { FakeClock, SteppedClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { FakeAgent, type FakeStream, hold, refuse, type Step } from "../../support/fake-agent.ts";
import { createCa } from "../../support/pki.ts";
import { makeCrl } from "./crl-fixture.ts";
import { makeWorld, svidMessage, svidPart, type World } from "./fixtures.ts";

const A = parseTrustDomain("example.org");
const B = parseTrustDomain("partner.test");
const HOUR = 3_600_000;

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});

interface Opened extends AsyncDisposable {
  readonly source: X509Source;
  readonly agent: FakeAgent;
  readonly errors: readonly Fault[];
  readonly stream: FakeStream;
}

async function opened(step: Step, options: Partial<X509SourceOptions> = {}): Promise<Opened> {
  await using scope = new AsyncDisposableStack();
  const clock = options.clock ?? systemClock;
  const agent = scope.use(await FakeAgent.start(clock, step));
  const errors: Fault[] = [];
  const onError = (fault: Fault): void => void errors.push(fault);
  const source = scope.use(await X509Source.open({ socket: agent.socket, onError, ...options }));
  const held = scope.move();
  return { source, agent, errors, stream: agent.calls[0]!.stream, [Symbol.asyncDispose]: () => held.disposeAsync() };
}

const withB = () => svidMessage(world, { federated_bundles: { "spiffe://partner.test": world.rootB.der } });

describe("an X.509 source", () => {
  test("opens with the first update, and reads one snapshot that does not change", async () => {
    await using at = await opened(hold(svidMessage(world)));
    const before = at.source.context;
    expect(at.source.svid.id).toBe("spiffe://example.org/web");
    expect(at.source.bundle(A)?.authorities).toHaveLength(1);
    at.stream.send(withB());
    await eventually("the update", () => at.source.bundle(B));
    expect(before.bundles.has(B)).toBe(false);
    expect(Object.isFrozen(before)).toBe(true);
  });

  test("WEP-22 does not open when the endpoint refuses for good", async () => {
    await using agent = await FakeAgent.start(systemClock, refuse(3, "security header missing from request"));
    const open = X509Source.open({ socket: agent.socket });
    await expect(open).rejects.toMatchObject({ kind: "invalid", message: "security header missing from request" });
  });

  test("stops opening with its signal", async () => {
    await using agent = await FakeAgent.start(systemClock, refuse(14));
    await expect(X509Source.open({ socket: agent.socket, signal: AbortSignal.timeout(50) })).rejects.toMatchObject({
      name: "TimeoutError",
    });
  });

  test("ends its stream when it is disposed", async () => {
    await using at = await opened(hold(svidMessage(world)));
    await at.source[Symbol.asyncDispose]();
    await at.stream.closed;
    expect(at.agent.calls).toHaveLength(1);
  });

  test("watchers see every change, and its end", async () => {
    await using at = await opened(hold(svidMessage(world)));
    const seen: (number | undefined)[] = [];
    const watching = (async () => {
      for await (const context of at.source.watch(new AbortController().signal)) seen.push(context?.bundles.size);
    })();
    at.stream.send(withB());
    await eventually("the second update", () => seen.length === 2);
    at.agent.script(refuse(7));
    at.stream.end(7);
    await eventually("the withdrawal", () => seen.length === 3);
    await at.source[Symbol.asyncDispose]();
    await watching;
    expect(seen).toEqual([1, 2, undefined]);
  });
});

describe("what a later message leaves out is gone", () => {
  test("WAPI-14 WAPI-15 WAPI-19 WAPI-35 a federated bundle: its peers are refused", async () => {
    await using at = await opened(hold(withB()));
    expect(at.source.verify(world.leafB.certificates)).toBe("spiffe://partner.test/web");
    at.stream.send(svidMessage(world));
    await eventually("the update", () => at.source.bundle(B) === undefined);
    const verify = () => at.source.verify(world.leafB.certificates);
    expect(verify).toThrow(expect.objectContaining({ kind: "denied", code: "no-bundle" }));
    expect(at.source.verify(world.leafA.certificates)).toBe("spiffe://example.org/web");
  });

  test("WAPI-14 a hint", async () => {
    const hinted = svidMessage(world, { svids: [svidPart(world, world.leafA, { hint: "internal" })] });
    await using at = await opened(hold(hinted));
    expect(at.source.svidByHint("internal").id).toBe("spiffe://example.org/web");
    at.stream.send(svidMessage(world));
    await eventually("the update", () => at.source.svid.hint === "");
    expect(() => at.source.svidByHint("internal")).toThrow(expect.objectContaining({ code: "no-such-hint" }));
  });

  test("WAPI-14 a revocation list", async () => {
    const crl = await makeCrl(world.intA, [1n]);
    await using at = await opened(hold(svidMessage(world, { crl: [crl] })));
    expect(at.source.context.crls).toHaveLength(1);
    at.stream.send(svidMessage(world));
    await eventually("the update", () => at.source.context.crls.length === 0);
  });

  test("WAPI-16 an SVID", async () => {
    const ext = await world.intA.issue({ id: "spiffe://example.org/web-ext" });
    const both = { svids: [svidPart(world, world.leafA), svidPart(world, ext, { hint: "external" })] };
    await using at = await opened(hold(both));
    expect(at.source.svidByHint("external").id).toBe("spiffe://example.org/web-ext");
    at.stream.send(svidMessage(world));
    await eventually("the update", () => at.source.context.svids.length === 1);
    expect(() => at.source.svidByHint("external")).toThrow(expect.objectContaining({ kind: "not_found" }));
  });

  test("WAPI-18 an unusable message changes nothing", async () => {
    await using at = await opened(hold(withB()));
    at.stream.send({ svids: [svidPart(world, world.leafA, { spiffe_id: "" })] });
    await eventually("the complaint", () => at.errors.length === 1);
    expect(at.source.bundle(B)).toBeDefined();
    expect(at.stream.isOpen).toBe(true);
  });
});

describe("an ended stream", () => {
  test("WAPI-31 with PermissionDenied withdraws every identity, until one is issued again", async () => {
    const clock = new FakeClock(systemClock.now().toISOString());
    await using at = await opened(hold(svidMessage(world)), { clock });
    expect(at.source.svid.id).toBe("spiffe://example.org/web");
    at.agent.script(refuse(7, "no identity issued"), hold(svidMessage(world)));
    at.stream.end(7, "no identity issued");
    const withdrawn = { kind: "denied", message: "no identity issued" };
    await eventually("the withdrawal", () => at.errors.length > 0);
    expect(() => at.source.svid).toThrow(expect.objectContaining(withdrawn));
    expect(() => at.source.verify(world.leafA.certificates)).toThrow(expect.objectContaining(withdrawn));
    await eventually("the new identity", async () => {
      if (clock.sleeping > 0) await clock.advance(1_000);
      return at.agent.calls.length >= 3 && at.source.context;
    });
    expect(at.source.svid.id).toBe("spiffe://example.org/web");
  });

  test("WAPI-31 WAPI-08 with Unavailable keeps what was issued until it expires", async () => {
    const clock = new SteppedClock();
    await using at = await opened(hold(svidMessage(world)), { clock });
    await at.agent.stop();
    await eventually("the loss", () => at.errors.length > 0);
    expect(at.source.svid.id).toBe("spiffe://example.org/web");
    expect(at.source.verify(world.leafA.certificates)).toBe("spiffe://example.org/web");
    clock.step(HOUR);
    expect(() => at.source.svid).toThrow(expect.objectContaining({ kind: "unavailable", code: "svid-expired" }));
  });
});

describe("what a source proves", () => {
  test("WAPI-19 a peer counts under the bundle of its own trust domain only", async () => {
    const rootC = await createCa({ trustDomain: "third.test" });
    const leafC = await rootC.issue();
    const forged = await world.rootB.issue({ id: "spiffe://example.org/web" });
    await using at = await opened(hold(withB()));
    expect(at.source.verify(world.leafB.certificates)).toBe("spiffe://partner.test/web");
    for (const chain of [leafC.certificates, forged.certificates]) {
      expect(() => at.source.verify(chain)).toThrow(expect.objectContaining({ kind: "denied" }));
    }
  });

  test("WAPI-62 the default identity is the first", async () => {
    const ext = await world.intA.issue({ id: "spiffe://example.org/web-ext" });
    await using at = await opened(hold({ svids: [svidPart(world, ext), svidPart(world, world.leafA)] }));
    expect(at.source.svid.id).toBe("spiffe://example.org/web-ext");
  });

  test("WAPI-64 a hint that nobody has is an error, not the default", async () => {
    await using at = await opened(hold(svidMessage(world)));
    expect(() => at.source.svidByHint("internal")).toThrow(
      expect.objectContaining({ kind: "not_found", code: "no-such-hint" }),
    );
  });

  test.each([true, false])(
    "WAPI-65 a revoked peer is refused when lists are enforced: %s",
    async (enforceRevocation) => {
      const crl = await makeCrl(world.intA, [BigInt(world.leafA.certificate.serialNumber)]);
      await using at = await opened(hold(svidMessage(world, { crl: [crl] })), { enforceRevocation });
      const verify = () => at.source.verify(world.leafA.certificates);
      if (enforceRevocation) expect(verify).toThrow(expect.objectContaining({ code: "certificate-revoked" }));
      else expect(verify()).toBe("spiffe://example.org/web");
      expect(at.source.context.crls).toHaveLength(1);
    },
  );
});
