import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { taintAuthority } from "../../../server/ca/bundle-edits.ts";
import { BundleLinks } from "../../../server/ca/continuity.ts";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import { eventually } from "../../support/eventually.ts";
import { DAY, Fleet, openTokens, openX509, type TestServer } from "./fleet.ts";
import { messagesOf } from "./support.ts";

let fleet: Fleet;

beforeAll(async () => {
  fleet = await Fleet.open();
});
afterAll(() => fleet[Symbol.asyncDispose]());
beforeEach(() => fleet.nextTrustDomain());

describe("a restart", () => {
  test("keeps the authority when the keys are on disk", async () => {
    const before = await openX509(await fleet.server());
    const options = await fleet.server();
    const after = await openX509(options);
    expect(after.signing().id).toBe(before.signing().id);
    expect(await fleet.roots()).toEqual([before.signing().id]);
    expect(messagesOf(options.log, "info")).toEqual(["X509 CA activated"]);
    await fleet.expectIssues(after, options);
  });

  test("T-N12 without the keys of before it is nobody it was: a new authority of its own is added, and what is there stays", async () => {
    const before = await openX509(await fleet.server({ keys: openMemoryKeys() }));
    const options = await fleet.server({ keys: openMemoryKeys() });
    const after = await openX509(options);
    expect(after.signing().id).not.toBe(before.signing().id);
    expect(await fleet.roots()).toEqual([before.signing().id, after.signing().id]);
    await fleet.expectIssues(after, options);
  });

  test.each([
    { title: "after the authority expired makes a new one at once", seconds: 3 * DAY, reason: "expired" },
    {
      title: "with a clock before the authority's start says so and makes a new one",
      seconds: -30 * DAY,
      reason: "not yet valid",
    },
  ])("$title", async ({ seconds, reason }) => {
    const before = await openX509(await fleet.server());
    const options = await fleet.server();
    options.clock.move(seconds);
    const after = await openX509(options);
    expect(options.log.lines).toContainEqual(
      expect.objectContaining({
        level: "warn",
        message: "X509CA slot unusable",
        fields: expect.objectContaining({ slot: "A", reason }),
      }),
    );
    expect(after.signing().id).not.toBe(before.signing().id);
    expect(after.slots.current.name).toBe("B");
    await fleet.expectIssues(after, options);
  });

  test("FED-04 does not use an authority that the stored bundle lacks: publish, then use", async () => {
    const before = await openX509(await fleet.server());
    const lost = before.signing().id;
    await fleet.emptyBundle();
    const options = await fleet.server();
    const after = await openX509(options);
    expect(await fleet.roots()).toEqual([after.signing().id]);
    expect(after.signing().id).not.toBe(lost);
    await fleet.expectIssues(after, options);
  });

  test("two servers on one database each find their own again", async () => {
    const one = await openX509(await fleet.server({ keysFile: "one.json" }));
    const two = await openX509(await fleet.server({ keysFile: "two.json" }));
    expect(new Set(await fleet.roots()).size).toBe(2);
    const again = [
      await openX509(await fleet.server({ keysFile: "one.json" })),
      await openX509(await fleet.server({ keysFile: "two.json" })),
    ];
    expect(again.map((found) => found.signing().id)).toEqual([one.signing().id, two.signing().id]);
    expect(await fleet.roots()).toHaveLength(2);
  });
});

test("a bundle that goes back, as a restored database's does, gets what the server signs with again, and nothing new is made", async () => {
  const { bundles } = fleet.store;
  const options = await fleet.server();
  const x509 = await openX509(options);
  const old = x509.signing().id;
  const backup = await bundles.find(fleet.trustDomain);
  const jwt = await openTokens("jwt", options);
  const key = jwt.signing().id;
  const prepared = await x509.prepare();
  const activated = x509.activate(prepared.id);
  await eventually("it gives agents time to learn of it", () => options.clock.sleepers > 0);
  options.clock.move(DAY / 100);
  await activated;
  await bundles.changeForeign(fleet.trustDomain, () => backup ?? expect.fail("no bundle"));
  expect(await fleet.roots()).toEqual([old]);

  await x509.catchUp();
  await jwt.catchUp();
  expect([x509.signing().id, jwt.signing().id]).toEqual([prepared.id, key]);
  expect(await fleet.roots()).toEqual([old, prepared.id]);
  expect((await bundles.find(fleet.trustDomain))?.jwtAuthorities.map(({ keyId }) => keyId)).toEqual([key]);
  expect(messagesOf(options.log, "warn")).toHaveLength(2);
  await fleet.expectIssues(x509, options);
});

describe("a database that was restored", () => {
  const EMPTY = { x509Authorities: [], jwtAuthorities: [], witAuthorities: [], refreshHint: 0, sequenceNumber: 0n };

  /** The copy of before, in which other servers have published more since than there ever was. */
  async function restore(backup: Omit<Bundle, "trustDomain"> | undefined): Promise<void> {
    const last = await fleet.store.bundles.find(fleet.trustDomain);
    if (backup === undefined || last === undefined) throw new Error("no bundle");
    const sequenceNumber = last.sequenceNumber + 10n;
    await fleet.store.bundles.changeForeign(fleet.trustDomain, () => ({ ...backup, sequenceNumber }));
    fleet.replaced += 1;
  }

  test("gets the authorities again also when another server has published in it first", async () => {
    const { bundles } = fleet.store;
    await openX509(await fleet.server({ keysFile: "other.json" }));
    const backup = await bundles.find(fleet.trustDomain);
    const options = await fleet.server();
    const links = new BundleLinks(fleet.store.links, options.clock);
    const linked = { ...options, links };
    const x509 = await openX509(linked);
    const jwt = await openTokens("jwt", options);
    const [id, key] = [x509.signing().id, jwt.signing().id];
    await x509.prepare();
    await restore(backup);
    await links.withdraw(id);

    await x509.catchUp();
    await jwt.catchUp();
    expect([x509.signing().id, jwt.signing().id]).toEqual([id, key]);
    expect(await fleet.roots()).toContain(id);
    expect((await bundles.find(fleet.trustDomain))?.jwtAuthorities.map(({ keyId }) => keyId)).toEqual([key]);
    expect(await links.of([id])).toHaveLength(1);
  });

  test("gets them again also when a new one was asked for and published before anybody looked", async () => {
    const backup = await fleet.store.bundles.find(fleet.trustDomain);
    const x509 = await openX509(await fleet.server());
    const { id } = x509.signing();
    await restore(backup ?? EMPTY);
    await x509.prepare();
    await x509.catchUp();
    expect(x509.signing().id).toBe(id);
    expect(await fleet.roots()).toContain(id);
  });

  test("does not bring trust back to an authority that was tainted since", async () => {
    const { bundles } = fleet.store;
    const { trustDomain } = fleet;
    const options = await fleet.server();
    const jwt = await openTokens("jwt", options);
    const old = jwt.signing().id;
    const prepared = await jwt.prepare();
    const activated = jwt.activate(prepared.id);
    await eventually("it gives agents time to learn of it", () => options.clock.sleepers > 0);
    options.clock.move(DAY / 100);
    await activated;
    const backup = await bundles.find(trustDomain);
    await jwt.taint(old, () => taintAuthority(bundles, { trustDomain, authority: { kind: "jwt", keyId: old } }));
    await restore(backup);

    await jwt.catchUp();
    const keys = (await bundles.find(trustDomain))?.jwtAuthorities.map(({ keyId, tainted }) => [keyId, tainted]);
    expect(keys).toEqual([
      [old, true],
      [prepared.id, false],
    ]);
    expect(messagesOf(options.log, "warn")).toEqual([
      "The bundle in the datastore is older than before; JWT key tainted again",
    ]);
  });
});

describe("a crash at any point of the first start", () => {
  const crash = (): never => {
    throw new Error("power cut");
  };
  /** The process ends when the work is done, before anybody learns of it. */
  const thenCrash = async (work: Promise<unknown>): Promise<never> => {
    await work;
    return crash();
  };
  type Wrap = (options: TestServer) => Partial<TestServer>;
  const POINTS: readonly { readonly point: string; readonly wrap: Wrap }[] = [
    {
      point: "after the key",
      wrap: ({ keys }) => ({
        keys: { ...keys, generate: (id, type) => thenCrash(keys.generate(id, type)) },
      }),
    },
    {
      point: "before the bundle",
      wrap: ({ bundles }) => ({ bundles: { find: (td) => bundles.find(td), change: async () => crash() } }),
    },
    {
      point: "after the bundle",
      wrap: ({ bundles }) => ({
        bundles: {
          find: (td) => bundles.find(td),
          change: (td, change) => thenCrash(bundles.change(td, change)),
        },
      }),
    },
    {
      point: "after the journal says prepared",
      wrap: ({ journal: real }) => ({
        journal: {
          list: (kind) => real.list(kind),
          save: async (records) => {
            if (records.some(({ status }) => status === "active")) crash();
            await real.save(records);
          },
        },
      }),
    },
    {
      point: "before the journal",
      wrap: ({ journal: real }) => ({ journal: { list: (kind) => real.list(kind), save: async () => crash() } }),
    },
  ];

  test.each(POINTS)("$point leaves a sound next start, and one after it that changes nothing", async ({ wrap }) => {
    const options = await fleet.server();
    await openX509({ ...options, ...wrap(options) }).catch((error: unknown) =>
      expect(String(error)).toContain("power cut"),
    );
    const next = await fleet.server();
    const authorities = await openX509(next);
    expect(await fleet.journal()).toEqual({ [authorities.signing().id]: "active" });
    expect((await fleet.roots()).length).toBeLessThanOrEqual(2);
    await fleet.expectIssues(authorities, next);
    const settled = await fleet.roots();
    const again = await openX509(await fleet.server());
    expect([again.signing().id, await fleet.roots()]).toEqual([authorities.signing().id, settled]);
  });
});
