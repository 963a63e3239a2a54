import { beforeAll, describe, expect, test } from "vitest";
import { followContinuity } from "../../../agent/node/continuity.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import { type BundleLink, LINK_GRACE_MS, signBundleLink } from "../../../src/spiffe/bundle-link.ts";
import { parseTrustDomain, type TrustDomain } from "../../../src/spiffe/id.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa, type TestCa } from "../../support/pki.ts";

const HOME = parseTrustDomain("example.org");
const OTHER = parseTrustDomain("other.test");
const DAY = 24 * 3_600_000;
const NOW = new Date("2030-06-15T00:00:00Z");

/** Root number n: valid for two days, the next one from a day later. The last ones are valid now. */
let roots: TestCa[];
let links: Map<string, BundleLink>;

const rootAt = (number: number, options: Parameters<typeof createCa>[0] = {}) =>
  createCa({
    notBefore: new Date(NOW.getTime() + (number - 4) * DAY),
    notAfter: new Date(NOW.getTime() + (number - 2) * DAY),
    uris: ["spiffe://example.org"],
    ...options,
  });

function bundleOf(sequence: number, authorities: readonly TestCa[], trustDomain: TrustDomain = HOME): Bundle {
  return {
    trustDomain,
    x509Authorities: authorities.map(({ der }) => ({ asn1: der, tainted: false })),
    jwtAuthorities: [],
    witAuthorities: [],
    refreshHint: 0,
    sequenceNumber: BigInt(sequence),
  };
}

const idOf = ({ certificate }: TestCa) => certificate.subjectKeyId;
const say = (signer: TestCa, bundle: Bundle, at = signer.certificate.notBefore) =>
  signBundleLink(bundle, { id: idOf(signer), key: signer.signer }, at);

function root(number: number): TestCa {
  const found = roots[number];
  if (found === undefined) throw new Error(`no root ${number}`);
  return found;
}

beforeAll(async () => {
  roots = [];
  for (let number = 0; number < 5; number += 1) roots.push(await rootAt(number));
  links = new Map();
  for (let number = 0; number < 4; number += 1)
    links.set(idOf(root(number)), await say(root(number), bundleOf(10 + number, [root(number), root(number + 1)])));
});

/** From root 0, until root 4 is there. */
function follow(given: ReadonlyMap<string, BundleLink>, held = bundleOf(9, [root(0)]), now = NOW) {
  return followContinuity({
    ...{ held, now },
    ask: async (ids) => ids.flatMap((id) => given.get(id) ?? []),
    suffices: ({ x509Authorities }) => x509Authorities.some((der) => Buffer.compare(der, root(4).der) === 0),
  });
}

const replaced = (at: number, link: BundleLink) => new Map(links).set(idOf(root(at)), link);
const without = (at: number) => new Map([...links].filter(([id]) => id !== idOf(root(at))));

/** The whole chain is refused, at a link for this reason. */
async function expectRefused(work: Promise<unknown>, reason: string): Promise<void> {
  const fault = await faultFrom(work);
  expect(fault).toMatchObject({ kind: "denied", code: "bundle-chain" });
  expect(fault.message).toContain(reason);
}

describe("T-N12 the chain of bundles", () => {
  test("leads from an authority that has ended to the present one", async () => {
    const found = await follow(links);
    expect(found.sequenceNumber).toBe(13n);
    expect(found.x509Authorities.map((der) => Buffer.from(der))).toEqual(
      [root(3), root(4)].map(({ der }) => Buffer.from(der)),
    );
  });

  test("is followed from any authority that is held, by the newest that one says", async () => {
    expect((await follow(links, bundleOf(11, [root(0), root(1), root(2)]))).sequenceNumber).toBe(13n);
  });

  test.each(["ec-p256", "ec-p384", "rsa-2048"] as const)("is signed by keys of type %s", async (keyType) => {
    const first = await rootAt(0, { keyType });
    const link = await say(first, bundleOf(13, [root(4)]));
    const given = new Map([[idOf(first), link]]);
    expect((await follow(given, bundleOf(1, [first]))).sequenceNumber).toBe(13n);
  });

  test("with an end missing leads nowhere", async () => {
    await expectRefused(follow(without(0)), "the server knows of nothing that they said");
    for (const at of [1, 3]) await expectRefused(follow(without(at)), "it is not newer than what is known");
  });

  test("with links in the place of others is refused", async () => {
    const second = links.get(idOf(root(1))) as BundleLink;
    await expectRefused(follow(replaced(0, second)), "its signer is not trusted");
    const earlier = await say(root(1), bundleOf(10, [root(1), root(2)]));
    await expectRefused(follow(replaced(1, earlier)), "it is not newer than what is known");
  });

  test("that goes back to an older bundle is refused", async () => {
    await expectRefused(follow(links, bundleOf(10, [root(0)])), "it is not newer than what is known");
  });

  test("forged by somebody else's key, with the signature of another text or with other authorities, is refused", async () => {
    const evil = await rootAt(4);
    const forged = await signBundleLink(bundleOf(99, [evil]), { id: idOf(root(0)), key: evil.signer }, NOW);
    await expectRefused(follow(replaced(0, forged)), "its signature is wrong");
    const honest = links.get(idOf(root(0))) as BundleLink;
    const [header = "", , signature = ""] = honest.statement.split(".");
    const payload = forged.statement.split(".")[1] ?? "";
    const mixed = { ...forged, statement: [header, payload, signature].join(".") };
    await expectRefused(follow(replaced(0, mixed)), "its signature is wrong");
    const names = { ...honest, x509Authorities: [evil.der, root(1).der] };
    await expectRefused(follow(replaced(0, names)), "its authorities are not those of the statement");
    await expectRefused(
      follow(replaced(0, { ...honest, x509Authorities: [root(1).der] })),
      "not those of the statement",
    );
    await expectRefused(follow(replaced(0, { ...honest, statement: "a.b.c" })), "");
  });

  test("of another trust domain, or to its authorities, is refused", async () => {
    const elsewhere = await say(root(0), bundleOf(13, [root(4)], OTHER));
    await expectRefused(follow(replaced(0, elsewhere)), "it is of another trust domain");
    const theirs = await rootAt(4, { uris: ["spiffe://other.test"] });
    await expectRefused(
      follow(replaced(0, await say(root(0), bundleOf(13, [theirs])))),
      "an authority of somebody else",
    );
  });

  test("to what is no authority, or to nothing, is refused", async () => {
    const { der } = await root(4).issue();
    const leaf = { ...root(4), der };
    await expectRefused(follow(replaced(0, await say(root(0), bundleOf(13, [leaf])))), "no authority");
    await expectRefused(follow(replaced(0, await say(root(0), bundleOf(13, [])))), "names 0 authorities");
    const many = Array.from({ length: 65 }, () => root(4));
    await expectRefused(follow(replaced(0, await say(root(0), bundleOf(13, many)))), "names 65 authorities");
  });

  test("through an authority that is tainted, or was removed on the way, is refused", async () => {
    const { x509Authorities, ...rest } = bundleOf(9, [root(0)]);
    const tainted = { ...rest, x509Authorities: x509Authorities.map(({ asn1 }) => ({ asn1, tainted: true })) };
    await expectRefused(follow(links, tainted), "the server knows of nothing that they said");
    const past = await say(root(1), bundleOf(12, [root(3)]));
    const removed = new Map([
      [idOf(root(0)), links.get(idOf(root(0))) as BundleLink],
      [idOf(root(1)), past],
      [idOf(root(2)), await say(root(2), bundleOf(14, [root(4)]))],
    ]);
    await expectRefused(follow(removed), "the server knows of nothing that they said");
  });

  test("a signer leaves tainted authorities out", async () => {
    const bundle = bundleOf(10, [root(0), root(1)]);
    const [first, second] = bundle.x509Authorities;
    const marked = {
      ...bundle,
      x509Authorities: [{ asn1: first?.asn1 ?? root(0).der, tainted: true }, second ?? first],
    };
    const { x509Authorities } = await say(root(0), marked as Bundle);
    expect(x509Authorities).toEqual([root(1).der]);
  });

  test("counts for a month after its authority's end, and not before its beginning or from the future", async () => {
    const end = root(0).certificate.notAfter.getTime() + LINK_GRACE_MS;
    expect((await follow(links, bundleOf(9, [root(0)]), new Date(end))).sequenceNumber).toBe(13n);
    const late = new Date(end + 1000);
    await expectRefused(follow(links, bundleOf(9, [root(0)]), late), "its signer has ended too long ago");
    const future = await say(root(0), bundleOf(13, [root(4)]), new Date(NOW.getTime() + DAY));
    await expectRefused(follow(replaced(0, future)), "it is from the future");
    const before = new Date(root(0).certificate.notBefore.getTime() - DAY);
    await expectRefused(
      follow(replaced(0, await say(root(0), bundleOf(13, [root(4)]), before))),
      "older than its signer",
    );
  });

  test("T-F4 in more pieces than were asked for is refused before any is looked at", async () => {
    const given = new Map([[idOf(root(0)), links.get(idOf(root(0)))!]]);
    const flooded = followContinuity({
      ...{ held: bundleOf(9, [root(0)]), now: NOW },
      ask: async (ids) => Array.from({ length: 65 }, () => ids.flatMap((id) => given.get(id) ?? [])).flat(),
      suffices: () => true,
    });
    await expectRefused(flooded, "more than was asked for");
  });

  test("that never arrives is given up", async () => {
    let sequence = 99;
    const endless = followContinuity({
      ...{ held: bundleOf(9, [root(3)]), now: NOW },
      async ask() {
        sequence += 1;
        return [await say(root(3), bundleOf(sequence, [root(3)]))];
      },
      suffices: () => false,
    });
    await expectRefused(endless, "it has no end");
  });
});
