import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { taintAuthority } from "../../../server/ca/bundle-edits.ts";
import { BundleLinks } from "../../../server/ca/continuity.ts";
import type { BundleLinkStore } from "../../../server/store/store.ts";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { parseJws } from "../../../src/crypto/jws.ts";
import { openMemoryKeys } from "../../../src/keys/memory.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { followBundleLink } from "../../../src/spiffe/bundle-link.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { DAY, Fleet, openX509 } from "./fleet.ts";
import { ManualClock, messagesOf } from "./support.ts";

let fleet: Fleet;
beforeAll(async () => {
  fleet = await Fleet.open();
});
afterAll(() => fleet[Symbol.asyncDispose]());
beforeEach(() => fleet.nextTrustDomain());

async function scene(store: BundleLinkStore = fleet.store.links) {
  const clock = new ManualClock();
  const links = new BundleLinks(store, clock);
  const options = { ...(await fleet.server({ clock })), links };
  return { clock, links, options };
}

describe("T-N12 the outgoing authority says which bundle comes next", () => {
  test("once a successor is prepared, and not before there is one", async () => {
    const { clock, links, options } = await scene();
    const authorities = await openX509(options);
    const first = authorities.signing();
    expect(await links.of([first.id])).toEqual([]);
    const next = await authorities.prepare();
    const [link] = await links.of([first.id, next.id, "unknown"]);
    const named = link?.x509Authorities.map((der) => parseCertificate(der).subjectKeyId);
    expect(named).toEqual([first.id, next.id]);
    const trusted = { trustDomain: fleet.trustDomain, x509Authorities: [first.certificate.raw], sequenceNumber: 0n };
    const bundle = await fleet.store.bundles.find(fleet.trustDomain);
    expect(link && (await followBundleLink(link, trusted, clock.now())).sequenceNumber).toBe(bundle?.sequenceNumber);
  });

  test("also when it ended while the server was off", async () => {
    const { clock, links, options } = await scene();
    const { id } = (await openX509(options)).signing();
    clock.move(3 * DAY);
    const authorities = await openX509(options);
    expect(authorities.signing().id).not.toBe(id);
    const [link] = await links.of([id]);
    expect(parseJws(link?.statement ?? "").header).toMatchObject({ kid: id, typ: "steeple-bundle-link" });
    const held = (await fleet.store.links.list()).find(({ signerId }) => signerId === id);
    expect(held?.authorityIds).toContain(authorities.signing().id);
  });

  test("later, when the store cannot take it at once", async () => {
    let isAway = true;
    const save: BundleLinkStore["save"] = async (link) => {
      if (isAway) throw new Fault("unavailable", "away");
      await fleet.store.links.save(link);
    };
    const { links: real } = fleet.store;
    const store = {
      save,
      list: () => real.list(),
      delete: (id: string) => real.delete(id),
      prune: (now: Date) => real.prune(now),
    };
    const { links, options } = await scene(store);
    const authorities = await openX509(options);
    const { id } = authorities.signing();
    await authorities.prepare();
    expect(messagesOf(options.log, "warn")).toEqual(["X509 CA could not vouch for its successor"]);
    isAway = false;
    await authorities.catchUp();
    expect(await links.of([id])).toHaveLength(1);
  });

  test("and nothing when it is tainted or was revoked; what names such an authority is gone too", async () => {
    const { links, options } = await scene();
    const other = await openX509(await fleet.server({ keys: openMemoryKeys() }));
    const authorities = await openX509(options);
    const first = authorities.signing();
    await authorities.prepare();
    expect(await links.of([first.id])).toHaveLength(1);
    await links.withdraw(other.signing().id);
    expect(await links.of([first.id])).toEqual([]);
    const bundle = await fleet.store.bundles.find(fleet.trustDomain);
    if (bundle === undefined) throw new Error("no bundle");
    const { x509Authorities } = bundle;
    const tainted = x509Authorities.map((authority) => ({ ...authority, tainted: true }));
    await links.vouch(first, { ...bundle, x509Authorities: tainted });
    await links.vouch(first, { ...bundle, x509Authorities: x509Authorities.slice(0, 0) });
    expect(await links.of([first.id])).toEqual([]);
    await links.vouch(first, bundle);
    expect(await links.of([first.id])).toHaveLength(1);
    await links.withdraw(first.id);
    expect(await links.of([first.id])).toEqual([]);
  });

  test("again when an authority of another server was tainted, which took with it what named that one", async () => {
    const { links, options } = await scene();
    const other = await openX509(await fleet.server({ keys: openMemoryKeys() }));
    const authorities = await openX509(options);
    const first = authorities.signing();
    const next = await authorities.prepare();
    const { trustDomain } = fleet;
    const named = { kind: "x509", subjectKeyId: other.signing().id } as const;
    await links.withdraw(named.subjectKeyId);
    await taintAuthority(fleet.store.bundles, { trustDomain, authority: named });
    expect(await links.of([first.id])).toEqual([]);
    await authorities.catchUp();
    const [link] = await links.of([first.id]);
    const ids = link?.x509Authorities.map((der) => parseCertificate(der).subjectKeyId);
    expect(ids).toEqual([first.id, next.id]);
  });

  test("but never with another key than its own", async () => {
    const { links, options } = await scene();
    const authorities = await openX509(options);
    const first = authorities.signing();
    await authorities.prepare();
    const said = await links.of([first.id]);
    const { key } = (await openX509(await fleet.server({ keys: openMemoryKeys() }))).signing();
    const bundle = (await fleet.store.bundles.find(fleet.trustDomain)) ?? expect.fail("no bundle");
    expect(await faultFrom(links.vouch({ ...first, key }, bundle))).toMatchObject(
      refusal("precondition", "bundle-link-key"),
    );
    expect(await links.of([first.id])).toEqual(said);
  });

  test("strangers who ask again and again do not reach the store", async () => {
    let reads = 0;
    const { links: real } = fleet.store;
    const list = () => {
      reads += 1;
      return real.list();
    };
    const store = { list, save: real.save.bind(real), delete: real.delete.bind(real), prune: real.prune.bind(real) };
    const { clock, links } = await scene(store);
    await Promise.all(Array.from({ length: 1000 }, () => links.of(["a"])));
    expect(reads).toBe(1);
    clock.move(6);
    await links.of(["a"]);
    expect(reads).toBe(2);
  });
});
