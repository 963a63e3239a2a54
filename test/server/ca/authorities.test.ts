import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Issuer } from "../../../server/ca/issue.ts";
import { type Certificate, parseCertificate } from "../../../src/crypto/certificate.ts";
import { generateKey, KEY_TYPES } from "../../../src/crypto/key.ts";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { type Bundle, encodeBundleDocument } from "../../../src/spiffe/bundle.ts";
import type { TrustDomain } from "../../../src/spiffe/id.ts";
import { validateX509Svid } from "../../../src/spiffe/x509-svid.ts";
import { eventually } from "../../support/eventually.ts";
import { faultOf } from "../../support/faults.ts";
import { DAY, Fleet, HOUR, openX509, pass, ticking } from "./fleet.ts";
import { messagesOf, START } from "./support.ts";

let fleet: Fleet;

beforeAll(async () => {
  fleet = await Fleet.open();
});
afterAll(() => fleet[Symbol.asyncDispose]());
beforeEach(() => fleet.nextTrustDomain());

describe("the first start", () => {
  test("makes an authority in slot A: published, in the journal, active", async () => {
    const options = await fleet.server();
    const authorities = await openX509(options);
    const { id } = authorities.signing();
    expect(authorities.active.value?.id).toBe(id);
    expect(authorities.slots.current).toMatchObject({ state: "active", name: "A" });
    expect(await options.keys.find("x509-CA-A")).toMatchObject({ keyType: "ec-p256" });
    expect([await fleet.roots(), await fleet.journal()]).toEqual([[id], { [id]: "active" }]);
    await fleet.expectIssues(authorities, options);
  });

  test("logs with SPIRE's words and fields", async () => {
    const options = await fleet.server();
    const authorities = await openX509(options);
    const { id, notAfter } = authorities.signing();
    const fields = {
      slot: "A",
      issued_at: START,
      expiration: notAfter,
      local_authority_id: id,
      upstream_authority_id: "",
    };
    expect(options.log.lines.filter(({ level }) => level === "info")).toEqual([
      { level: "info", message: "X509 CA prepared", fields: { ...fields, self_signed: true } },
      { level: "info", message: "X509 CA activated", fields },
    ]);
  });

  test.each(KEY_TYPES)("with a key of type %s", async (keyType) => {
    const options = await fleet.server({ keyType });
    const authorities = await openX509(options);
    expect(authorities.signing().key.keyType).toBe(keyType);
    await fleet.expectIssues(authorities, options);
  });

  test("X509-35 X509-36 X509-37 X509-38 publishes entries of one certificate each, with its use and without kid", async () => {
    const first = await openX509(await fleet.server());
    const second = await openX509(await fleet.server({ keys: openMemoryKeys() }));
    const document = JSON.parse(encodeBundleDocument((await fleet.store.bundles.find(fleet.trustDomain)) as Bundle));
    const keys = document.keys as readonly { readonly use: string; readonly x5c: readonly string[] }[];
    expect(keys.map(({ use, x5c }) => [use, x5c.length])).toEqual([
      ["x509-svid", 1],
      ["x509-svid", 1],
    ]);
    expect(keys.some((key) => "kid" in key)).toBe(false);
    const published = keys.map(({ x5c }) => x5c[0]);
    const expected = [first, second].map((made) => Buffer.from(made.signing().certificate.raw).toString("base64"));
    expect(published).toEqual(expected);
  });
});

describe("while it runs", () => {
  test("FED-03 the next authority is published at half of the lifetime, hours of refresh hints before it signs, at five sixths", async () => {
    const options = await fleet.server();
    const authorities = await openX509(options);
    const first = authorities.signing().id;
    await using _ = ticking(authorities);
    await pass(options, 12 * HOUR + 60);
    await eventually("two roots are published", async () => (await fleet.roots()).length === 2);
    await eventually("the second is prepared", () => authorities.slots.next.state === "prepared");
    expect(authorities.signing().id).toBe(first);
    // Five refresh hints of five minutes, and more: whoever polls has it by then.
    await pass(options, 7 * HOUR);
    expect(authorities.signing().id).toBe(first);
    await pass(options, HOUR);
    await eventually("the second signs", () => authorities.signing().id !== first);
    expect(await fleet.roots()).toEqual([first, authorities.signing().id]);
    await eventually("the journal follows", async () => (await fleet.journal())[first] === "old");
    expect(authorities.slots).toMatchObject({
      current: { state: "active", name: "B" },
      next: { state: "old", name: "A" },
    });
    await fleet.expectIssues(authorities, options);
  });

  test("FED-04 a server that outlives its CA many times goes on issuing, never with an unpublished authority", async () => {
    const options = await fleet.server({ ttlSeconds: 6 * HOUR });
    const authorities = await openX509(options);
    await using _ = ticking(authorities);
    const seen = new Set<string>();
    for (let hour = 0; hour < 30; hour += 1) {
      await pass(options, HOUR);
      const { id } = await eventually("something signs", () => authorities.signing());
      seen.add(id);
      expect(await fleet.roots()).toContain(id);
    }
    expect(seen.size).toBeGreaterThanOrEqual(5);
    await fleet.expectIssues(authorities, options);
  });

  test("a jump past the end is no dead end: a new authority is made with the next tick", async () => {
    const options = await fleet.server();
    const authorities = await openX509(options);
    const first = authorities.signing().id;
    await eventually("nothing is due", () => options.clock.sleepers === 0);
    options.clock.move(40 * DAY);
    expect(faultOf(() => authorities.signing())).toMatchObject({
      kind: "unavailable",
      message: "X509 CA is expired",
      code: "x509-ca-expired",
    });
    await using _ = ticking(authorities);
    await eventually("a new one signs", () => authorities.signing().id !== first);
    await fleet.expectIssues(authorities, options);
  });

  test("a clock set back before the start refuses to sign, and says so, until a new authority is made", async () => {
    const options = await fleet.server();
    const authorities = await openX509(options);
    options.clock.move(-HOUR);
    expect(faultOf(() => authorities.signing())).toMatchObject({
      code: "x509-ca-not-yet-valid",
      message: "X509 CA is not yet valid",
    });
    await using _ = ticking(authorities);
    await eventually("a new one signs", () => authorities.signing().id);
    await fleet.expectIssues(authorities, options);
  });

  test("a clock that is set right again brings back the authority it had taken away", async () => {
    const options = await fleet.server();
    let away = false;
    const change: typeof options.bundles.change = async (td, work) => {
      if (away) throw new Fault("unavailable", "database is away");
      return fleet.store.bundles.change(td, work);
    };
    const bundles = { find: (td: TrustDomain) => fleet.store.bundles.find(td), change };
    const authorities = await openX509({ ...options, bundles });
    const first = authorities.active.value;
    away = true;
    await using _ = ticking(authorities);
    await eventually("the first tick is over", () => options.clock.sleepers > 0);
    options.clock.move(10);
    options.clock.move(-HOUR);
    await eventually("it is withdrawn", () => authorities.active.value === undefined);
    await eventually("the tick is over", () => options.clock.sleepers > 0);
    options.clock.move(HOUR + 10);
    await eventually("it is back", () => authorities.active.value === first);
    expect(await fleet.roots()).toEqual([first?.id]);
    await fleet.expectIssues(authorities, options);
  });

  test("an authority that was taken out of the stored bundle is withdrawn and replaced", async () => {
    const options = await fleet.server();
    const authorities = await openX509(options);
    const first = authorities.signing().id;
    await using _ = ticking(authorities);
    await eventually("the first tick is over", () => options.clock.sleepers > 0);
    await fleet.emptyBundle();
    options.clock.move(10);
    await eventually("another signs", () => authorities.signing().id !== first);
    expect(options.log.lines).toContainEqual(
      expect.objectContaining({
        message: "X509 CA withdrawn",
        fields: expect.objectContaining({ reason: "not published" }),
      }),
    );
    expect(await fleet.roots()).toEqual([authorities.signing().id]);
  });

  test("while the store is away nothing is lost: it goes on signing, a prepared authority takes over, and later all is written", async () => {
    const options = await fleet.server();
    let away = false;
    const gate = <T>(work: () => Promise<T>): Promise<T> =>
      away ? Promise.reject(new Fault("unavailable", "database is away")) : work();
    const authorities = await openX509({
      ...options,
      bundles: {
        find: (td) => gate(() => fleet.store.bundles.find(td)),
        change: (td, change) => gate(() => fleet.store.bundles.change(td, change)),
      },
      journal: {
        list: (kind) => gate(() => fleet.store.authorities.list(kind)),
        save: (records) => gate(() => fleet.store.authorities.save(records)),
      },
    });
    const first = authorities.signing().id;
    await using _ = ticking(authorities);
    await eventually("the first tick is over", () => options.clock.sleepers > 0);
    away = true;
    await pass(options, 12 * HOUR + 60);
    await eventually("preparing failed", () => messagesOf(options.log, "error").includes("Unable to rotate X509 CA"));
    expect(authorities.signing().id).toBe(first);
    away = false;
    await pass(options, 10);
    await eventually("the next one is prepared", () => authorities.slots.next.state === "prepared");
    away = true;
    await pass(options, 8 * HOUR);
    await eventually("it took over without the store", () => authorities.signing().id !== first);
    expect((await fleet.journal())[first]).toBe("active");
    away = false;
    await pass(options, 10);
    await eventually("the journal is put right", async () => (await fleet.journal())[first] === "old");
    expect((await fleet.journal())[authorities.signing().id]).toBe("active");
    await fleet.expectIssues(authorities, options);
  });

  test("FED-04 of a thousand certificates signed around an activation by force, each verifies by the bundle of before it", async () => {
    const options = await fleet.server();
    const authorities = await openX509(options);
    const lifetimes = { defaultTtlSeconds: HOUR, agentTtlSeconds: HOUR, caTtlSeconds: DAY };
    const issuer = new Issuer({ trustDomain: fleet.trustDomain, authorities, clock: options.clock, ...lifetimes });
    const { publicKey } = await generateKey("ec-p256");
    const signers = new Set<string>();
    let force: Promise<unknown> = Promise.resolve();
    for (let round = 0; round < 100; round += 1) {
      if (round === 30) force = authorities.prepare().then(({ id }) => authorities.activate(id));
      if (round === 60) await eventually("it waits until agents hold the new one", () => options.clock.sleepers === 1);
      if (round === 60) options.clock.move(6);
      if (round === 90) await force;
      const held = (await fleet.store.bundles.find(fleet.trustDomain))?.x509Authorities ?? [];
      const roots = held.map(({ asn1 }) => parseCertificate(asn1));
      for (const { chain } of await Promise.all(Array.from({ length: 10 }, () => issuer.issueServer({ publicKey })))) {
        const signer = roots.find((root) => validates(chain.map(parseCertificate), root, options.clock.now()));
        expect(signer).toBeDefined();
        signers.add(signer?.subjectKeyId ?? "");
      }
    }
    expect(signers.size).toBe(2);
  });
});

function validates(chain: readonly Certificate[], root: Certificate, at: Date): boolean {
  try {
    validateX509Svid({ chain, authorities: () => [root], at });
    return true;
  } catch {
    return false;
  }
}
