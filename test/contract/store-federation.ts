import { beforeEach, expect, test } from "vitest";
import type { Bundle } from "../../src/spiffe/bundle.ts";
import type { FederationRelationship } from "../../src/spiffe/federation.ts";
import { parseSpiffeId, parseTrustDomain, type TrustDomain } from "../../src/spiffe/id.ts";
import { faultFrom, refusal } from "../support/faults.ts";
import { bundleOf, emptyStore } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

const B = parseTrustDomain("b.test");
const C = parseTrustDomain("c.test");

export function federationContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));
  const federation = () => current().store.federation;
  const bundles = () => current().store.bundles;

  const web = (trustDomain: TrustDomain): FederationRelationship => ({
    trustDomain,
    bundleEndpointUrl: `https://${trustDomain}:8443/bundle?x=1`,
    profile: { type: "https_web" },
  });
  const spiffe = (trustDomain: TrustDomain): FederationRelationship => ({
    ...web(trustDomain),
    profile: { type: "https_spiffe", endpointSpiffeId: parseSpiffeId(`spiffe://${trustDomain}/spire/server`) },
  });
  const bundle = (trustDomain: TrustDomain, sequenceNumber: bigint, ...bytes: readonly number[]): Bundle => ({
    ...bundleOf(...bytes),
    trustDomain,
    sequenceNumber,
  });

  test.each([web(B), spiffe(B)])("a relationship of profile $profile.type comes back as it went in", async (given) => {
    const made = await federation().create(given);
    expect(made).toEqual({ ...given, bundle: undefined });
    expect(await federation().find(B)).toEqual(made);
    expect(await federation().find(C)).toBeUndefined();
  });

  test("a bundle that comes with it replaces the one that is held, and every answer has the held one", async () => {
    await bundles().changeForeign(B, () => bundle(B, 9n, 1));
    expect((await federation().create(web(C))).bundle).toBeUndefined();
    const made = await federation().create(web(B), bundle(B, 18_446_744_073_709_551_615n, 2));
    expect(made.bundle).toEqual(bundle(B, 18_446_744_073_709_551_615n, 2));
    expect(await bundles().find(B)).toEqual(made.bundle);
    expect((await federation().list()).items.map((each) => each.bundle)).toEqual([undefined, made.bundle]);
  });

  test("a second relationship with a trust domain is refused, and its bundle with it", async () => {
    await federation().create(web(B), bundle(B, 1n, 1));
    expect(await faultFrom(federation().create(spiffe(B), bundle(B, 2n, 2)))).toMatchObject(
      refusal("already_exists", "relationship-exists"),
    );
    expect(await federation().find(B)).toEqual({ ...web(B), bundle: bundle(B, 1n, 1) });
  });

  test("T-F1 what was fetched is stored while the relationship by which it was fetched is, and no longer", async () => {
    await federation().create(spiffe(B), bundle(B, 1n, 1));
    const fetched = (given: FederationRelationship) => federation().changeBundle(given, () => bundle(B, 2n, 2));
    expect(await faultFrom(fetched(web(B)))).toMatchObject(refusal("aborted", "relationship-changed"));
    expect(await bundles().find(B)).toEqual(bundle(B, 1n, 1));
    expect(await fetched(spiffe(B))).toEqual(bundle(B, 2n, 2));
    expect(await bundles().find(B)).toEqual(bundle(B, 2n, 2));
    await federation().delete(B);
    await bundles().delete(B, "delete");
    expect(await faultFrom(fetched(spiffe(B)))).toMatchObject(refusal("aborted", "relationship-changed"));
    expect(await bundles().find(B)).toBeUndefined();
  });

  test("an update changes what it names", async () => {
    await federation().create(spiffe(B), bundle(B, 1n, 1));
    const bundleEndpointUrl = "https://elsewhere.test/";
    const held = bundle(B, 1n, 1);
    expect(await federation().update(B, { bundleEndpointUrl })).toEqual({
      ...spiffe(B),
      bundleEndpointUrl,
      bundle: held,
    });
    const { profile } = web(B);
    expect(await federation().update(B, { profile })).toEqual({ ...web(B), bundleEndpointUrl, bundle: held });
    const next = bundle(B, 2n, 2);
    expect(await federation().update(B, {}, next)).toEqual({ ...web(B), bundleEndpointUrl, bundle: next });
    expect(await federation().find(B)).toEqual({ ...web(B), bundleEndpointUrl, bundle: next });
  });

  test("what is not there can neither be updated, bundle included, nor deleted", async () => {
    const missing = refusal("not_found", "relationship-not-found");
    expect(await faultFrom(federation().update(B, {}, bundle(B, 1n, 1)))).toMatchObject(missing);
    expect(await faultFrom(federation().delete(B))).toMatchObject(missing);
    expect(await bundles().find(B)).toBeUndefined();
  });

  test("the bundle outlives its relationship", async () => {
    await federation().create(web(B), bundle(B, 1n, 1));
    await federation().delete(B);
    expect(await federation().find(B)).toBeUndefined();
    expect(await bundles().find(B)).toEqual(bundle(B, 1n, 1));
  });

  test("relationships are listed in pages that survive deletion", async () => {
    const names = ["z.test", "y.test", "x.test"].map(parseTrustDomain);
    for (const name of names) await federation().create(web(name));
    const first = await federation().list({ size: 2, token: "" });
    expect(first.items.map(({ trustDomain }) => trustDomain)).toEqual(["z.test", "y.test"]);
    await federation().delete(parseTrustDomain("y.test"));
    const rest = await federation().list({ size: 2, token: first.nextPageToken });
    expect(rest).toMatchObject({ items: [{ trustDomain: "x.test" }], nextPageToken: "" });
    expect((await federation().list()).items).toHaveLength(2);
  });

  test("of many that create the same relationship at once one succeeds", async () => {
    const outcomes = await Promise.allSettled(
      Array.from({ length: 8 }, (_, at) => federation().create(web(B), bundle(B, BigInt(at), at))),
    );
    expect(outcomes.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    expect((await federation().list()).items).toHaveLength(1);
  });
}
