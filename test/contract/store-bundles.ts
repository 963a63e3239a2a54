import { beforeEach, expect, test } from "vitest";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { faultFrom, refusal } from "../support/faults.ts";
import { type BundleContent, bundleOf, draftOf, emptyStore } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

const B = parseTrustDomain("b.test");
const C = parseTrustDomain("c.test");
const NOTHING: BundleContent = bundleOf();

export function bundleContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));
  const bundles = () => current().store.bundles;
  const append = (byte: number) => (now: Bundle | undefined) => {
    const before = now ?? NOTHING;
    return { ...before, x509Authorities: [...before.x509Authorities, { asn1: Uint8Array.of(byte), tainted: false }] };
  };

  test("a bundle comes back as it went in", async () => {
    const token = { publicKey: Uint8Array.of(0, 128, 255), keyId: 'key "1"', expiresAt: 1_900_000_000, tainted: true };
    const content: BundleContent = {
      x509Authorities: [{ asn1: Uint8Array.from({ length: 900 }, (_, index) => index % 256), tainted: true }],
      jwtAuthorities: [token],
      witAuthorities: [{ ...token, keyId: "wit", tainted: false }],
      refreshHint: 3600,
    };
    const made = await bundles().change(B, (now) => {
      expect(now).toBeUndefined();
      return content;
    });
    expect(made).toEqual({ ...content, trustDomain: B, sequenceNumber: expect.any(BigInt) });
    expect(await bundles().find(B)).toEqual(made);
    expect(await bundles().find(C)).toBeUndefined();
    expect(await bundles().count()).toBe(1);
  });

  test("TDB-07 the sequence number grows with each of 100 changes, through a restart and a clock set back", async () => {
    let last = 0n;
    for (let step = 0; step < 100; step += 1) {
      if (step === 50) await current().reopen();
      if (step === 75) current().clock.step(-365 * 86_400_000);
      const { sequenceNumber } = await bundles().change(B, () => bundleOf(step % 7, step % 5));
      expect(sequenceNumber).toBeGreaterThan(last);
      last = sequenceNumber;
    }
    current().clock.step(365 * 86_400_000);
  });

  test.each<{ what: string; change: (now: BundleContent) => BundleContent }>([
    {
      what: "a key added",
      change: (now) => ({ ...now, x509Authorities: [...now.x509Authorities, ...bundleOf(9).x509Authorities] }),
    },
    { what: "a key removed", change: (now) => ({ ...now, x509Authorities: now.x509Authorities.slice(1) }) },
    {
      what: "a key tainted",
      change: (now) => ({ ...now, x509Authorities: now.x509Authorities.map((key) => ({ ...key, tainted: true })) }),
    },
    { what: "another refresh hint", change: (now) => ({ ...now, refreshHint: 60 }) },
    {
      what: "a token key added",
      change: (now) => ({
        ...now,
        jwtAuthorities: [{ publicKey: Uint8Array.of(1), keyId: "k", expiresAt: 0, tainted: false }],
      }),
    },
  ])("TDB-08 $what changes the sequence number", async ({ change }) => {
    const before = await bundles().change(B, () => bundleOf(1, 2));
    const after = await bundles().change(B, (now) => change(now ?? NOTHING));
    expect(after.sequenceNumber).toBeGreaterThan(before.sequenceNumber);
  });

  test("TDB-08 a change that changes nothing keeps the sequence number and writes nothing", async () => {
    const before = await bundles().change(B, () => bundleOf(1, 2));
    const cursor = await current().store.changes.load(async (snapshot) => snapshot.cursor);
    expect(await bundles().change(B, () => bundleOf(1, 2))).toEqual(before);
    expect(await current().store.changes.since(cursor)).toMatchObject({ bundles: new Map() });
  });

  test("changes at the same time all count, also the first ones", async () => {
    const made = await Promise.all(Array.from({ length: 20 }, (_, index) => bundles().change(B, append(index))));
    const stored = await bundles().find(B);
    expect(stored?.x509Authorities.map(({ asn1 }) => asn1[0]).sort((a = 0, b = 0) => a - b)).toEqual(
      Array.from({ length: 20 }, (_, index) => index),
    );
    expect(new Set(made.map(({ sequenceNumber }) => sequenceNumber)).size).toBe(20);
  });

  test("a change that throws leaves the bundle as it was", async () => {
    const before = await bundles().change(B, () => bundleOf(1));
    const refuse = new Error("refused");
    const failing = bundles().change(B, () => {
      throw refuse;
    });
    await expect(failing).rejects.toMatchObject({ cause: refuse });
    expect(await bundles().find(B)).toEqual(before);
  });

  const federated = async (): Promise<void> => {
    for (const name of [B, C]) await bundles().change(name, () => bundleOf(1));
    await current().store.entries.create(draftOf("one", { federatesWith: [B, C] }));
    await current().store.entries.create(draftOf("two", { federatesWith: [C] }));
  };
  const associations = async (): Promise<readonly (readonly string[])[]> =>
    (await current().store.entries.list({})).items.map(({ federatesWith }) => federatesWith);

  test("restrict refuses while entries federate with the bundle", async () => {
    await federated();
    const fault = await faultFrom(bundles().delete(C, "restrict"));
    expect(fault).toMatchObject(refusal("precondition", "bundle-in-use"));
    expect(fault.message).toBe("cannot delete bundle; federated with 2 registration entries");
    expect(await bundles().count()).toBe(2);
    await current().store.entries.prune(new Date(0), 1);
    for (const { id } of (await current().store.entries.list({})).items) await current().store.entries.delete(id);
    await bundles().delete(C, "restrict");
    expect(await bundles().find(C)).toBeUndefined();
  });

  test("delete takes the entries along", async () => {
    await federated();
    await bundles().delete(B, "delete");
    expect(await associations()).toEqual([[C]]);
  });

  test("dissociate keeps the entries, and raises their revision so that agents notice", async () => {
    await federated();
    await bundles().delete(B, "dissociate");
    expect(await associations()).toEqual([[C], [C]]);
    const { items } = await current().store.entries.list({});
    expect(items.map(({ revisionNumber }) => revisionNumber)).toEqual([1, 0]);
  });

  test("a bundle that is not there cannot be deleted", async () => {
    for (const mode of ["restrict", "delete", "dissociate"] as const) {
      expect(await faultFrom(bundles().delete(B, mode))).toMatchObject(refusal("not_found", "bundle-not-found"));
    }
  });

  test("a foreign bundle keeps the sequence number of its publisher, also a smaller one", async () => {
    const put = (sequenceNumber: bigint, ...bytes: readonly number[]) =>
      bundles().changeForeign(B, () => ({ ...bundleOf(...bytes), sequenceNumber }));
    expect(await put(18_446_744_073_709_551_615n, 1)).toMatchObject({ sequenceNumber: 18_446_744_073_709_551_615n });
    const made = await put(7n, 1, 2);
    expect(made).toEqual({ ...bundleOf(1, 2), trustDomain: B, sequenceNumber: 7n });
    expect(await bundles().find(B)).toEqual(made);
  });

  test("the same foreign bundle again writes nothing, another sequence number alone does", async () => {
    const put = (sequenceNumber: bigint) => bundles().changeForeign(B, () => ({ ...bundleOf(1), sequenceNumber }));
    await put(1n);
    const cursor = await current().store.changes.load(async (snapshot) => snapshot.cursor);
    await put(1n);
    expect(await current().store.changes.since(cursor)).toMatchObject({ bundles: new Map() });
    const next = await put(2n);
    expect(await current().store.changes.since(cursor)).toMatchObject({ bundles: new Map([[B, next]]) });
  });

  test("bundles are listed in pages", async () => {
    for (const name of ["x.test", "y.test", "z.test"])
      await bundles().change(parseTrustDomain(name), () => bundleOf(1));
    const first = await bundles().list({}, { size: 2, token: "" });
    expect(first.items.map(({ trustDomain }) => trustDomain)).toEqual(["x.test", "y.test"]);
    const rest = await bundles().list({}, { size: 2, token: first.nextPageToken });
    expect(rest).toMatchObject({ items: [{ trustDomain: "z.test" }], nextPageToken: "" });
    expect((await bundles().list({})).items).toHaveLength(3);
  });

  test("a list without one of them fills its pages all the same", async () => {
    for (const name of ["x.test", "y.test", "z.test"])
      await bundles().change(parseTrustDomain(name), () => bundleOf(1));
    const page = await bundles().list({ except: parseTrustDomain("x.test") }, { size: 2, token: "" });
    expect(page).toMatchObject({ items: [{ trustDomain: "y.test" }, { trustDomain: "z.test" }], nextPageToken: "" });
  });
}
