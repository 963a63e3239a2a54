import { beforeEach, describe, expect, test } from "vitest";
import { MAX_PAGE_SIZE } from "../../server/store/paging.ts";
import type { EntryFilter, EntryStore } from "../../server/store/store.ts";
import { Fault } from "../../src/runtime/fault.ts";
import type { Entry, EntryDraft } from "../../src/spiffe/entry.ts";
import { parseTrustDomain } from "../../src/spiffe/id.ts";
import { faultFrom, refusal } from "../support/faults.ts";
import { bundleOf, draftOf, emptyStore, idOf, selectorsOf } from "../support/store-data.ts";
import type { StoreUnderTest } from "./store.ts";

const B = parseTrustDomain("b.test");
const C = parseTrustDomain("c.test");
const EVERYTHING: EntryDraft = draftOf("everything", {
  id: "chosen.by_the-caller",
  selectors: selectorsOf("unix:uid:1000", "docker:label:a:b", "k8s:ns:größe"),
  x509SvidTtl: 3600,
  jwtSvidTtl: 300,
  federatesWith: [B, C],
  admin: true,
  downstream: true,
  storeSvid: true,
  expiresAt: 4_102_444_800,
  dnsNames: ["z.example", "a.example"],
  hint: 'internal, "quoted", back\\slash, {braces}, NULL',
  disableX509SvidPrefetch: true,
  jwtSvidIncludeJti: true,
});

export function entryContract(current: () => StoreUnderTest): void {
  beforeEach(() => emptyStore(current().store));
  const entries = () => current().store.entries;
  const create = async (name: string, fields?: Partial<EntryDraft>) =>
    (await entries().create(draftOf(name, fields))).entry;
  const makeBundles = async (): Promise<void> => {
    for (const name of [B, C]) await current().store.bundles.change(name, () => bundleOf(1));
  };

  test("every field comes back as it went in", async () => {
    await makeBundles();
    const { entry, existed } = await entries().create(EVERYTHING);
    expect(existed).toBe(false);
    expect(entry).toEqual({
      ...EVERYTHING,
      selectors: selectorsOf("docker:label:a:b", "k8s:ns:größe", "unix:uid:1000"),
      revisionNumber: 0,
      createdAt: expect.any(Number),
    });
    expect(await entries().find(entry.id)).toEqual(entry);
    expect((await entries().list({})).items).toEqual([entry]);
  });

  test("an entry without an id gets a UUID, revision 0 and the second of its creation", async () => {
    const before = Math.floor(Date.now() / 1000);
    const entry = await create("plain");
    expect(entry.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    expect(entry.revisionNumber).toBe(0);
    expect(entry.createdAt).toBeGreaterThanOrEqual(before);
    expect(entry.createdAt).toBeLessThanOrEqual(Date.now() / 1000);
  });

  test("a similar entry is returned instead of a second one, whatever the order of its selectors", async () => {
    const first = await create("twin", { selectors: selectorsOf("a:1", "b:2") });
    const again = await entries().create(
      draftOf("twin", { id: "another", hint: "other", selectors: selectorsOf("b:2", "a:1", "b:2") }),
    );
    expect(again).toEqual({ entry: first, existed: true });
    expect(await entries().count({})).toBe(1);
  });

  test.each([
    { what: "another SPIFFE ID", fields: { spiffeId: idOf("/workload/other") } },
    { what: "another parent", fields: { parentId: idOf("/spire/agent/two") } },
    { what: "one selector more", fields: { selectors: selectorsOf("a:1", "b:2", "c:3") } },
    { what: "two selectors run together", fields: { selectors: selectorsOf("a:1b:2") } },
    { what: "parent and SPIFFE ID swapped", fields: { spiffeId: idOf("/p"), parentId: idOf("/workload/base") } },
  ])("$what makes another entry", async ({ fields }) => {
    await create("base", { parentId: idOf("/p"), selectors: selectorsOf("a:1", "b:2") });
    const other = await entries().create(
      draftOf("base", { parentId: idOf("/p"), selectors: selectorsOf("a:1", "b:2"), ...fields }),
    );
    expect(other.existed).toBe(false);
  });

  test("of many servers that create one entry at once, one creates it and all get it", async () => {
    const results = await Promise.all(Array.from({ length: 20 }, () => entries().create(draftOf("raced"))));
    expect(results.filter(({ existed }) => !existed)).toHaveLength(1);
    expect(new Set(results.map(({ entry }) => entry.id)).size).toBe(1);
  });

  test("a taken id is refused", async () => {
    await create("one", { id: "taken" });
    const fault = await faultFrom(entries().create(draftOf("two", { id: "taken" })));
    expect(fault).toMatchObject(refusal("already_exists", "entry-exists"));
    expect(await entries().count({})).toBe(1);
  });

  test("a federated bundle that is not there is refused, and nothing is stored", async () => {
    await current().store.bundles.change(B, () => bundleOf(1));
    const fault = await faultFrom(entries().create(draftOf("one", { federatesWith: [B, C] })));
    expect(fault).toMatchObject(refusal("precondition", "bundle-missing"));
    expect(fault.message).toBe('unable to find federated bundle "spiffe://c.test"');
    expect(await entries().count({})).toBe(0);
    const entry = await create("one");
    expect(await faultFrom(entries().update(entry.id, (now) => ({ ...now, federatesWith: [C] })))).toMatchObject(
      refusal("precondition", "bundle-missing"),
    );
  });

  test("an update stores what it returns under the next revision, also when nothing changed", async () => {
    const entry = await create("one");
    const changed = await entries().update(entry.id, (now) => ({ ...now, hint: "new", id: "ignored" }));
    expect(changed).toEqual({ ...entry, hint: "new", revisionNumber: 1 });
    const same = await entries().update(entry.id, (now) => now);
    expect(same).toEqual({ ...changed, revisionNumber: 2 });
    expect(await entries().find(entry.id)).toEqual(same);
  });

  test("updates at the same time all count", async () => {
    const entry = await create("busy");
    const bump = () => entries().update(entry.id, (now) => ({ ...now, x509SvidTtl: now.x509SvidTtl + 1 }));
    await Promise.all(Array.from({ length: 30 }, bump));
    expect(await entries().find(entry.id)).toMatchObject({ x509SvidTtl: 30, revisionNumber: 30 });
  });

  describe("many at once", () => {
    const outcomes = (created: Awaited<ReturnType<EntryStore["createMany"]>>) =>
      created.map((each) => (each instanceof Fault ? each.code : [each.entry.spiffeId, each.existed]));
    const path = (name: string) => idOf(`/workload/${name}`);

    test("each has its own outcome, in order: stored, similar to one of the same call, similar to an older one, refused", async () => {
      const { entry: old } = await entries().create(draftOf("old"));
      const drafts = [
        draftOf("a", { id: "chosen" }),
        draftOf("b", { federatesWith: [parseTrustDomain("missing.test")] }),
        draftOf("a", { id: "chosen" }),
        draftOf("old", { hint: "other" }),
        draftOf("c", { id: "chosen" }),
        draftOf("d"),
        draftOf("d", { hint: "other" }),
      ];
      const created = await entries().createMany(drafts);
      expect(outcomes(created)).toEqual([
        [path("a"), false],
        "bundle-missing",
        [path("a"), true],
        [path("old"), true],
        "entry-exists",
        [path("d"), false],
        [path("d"), true],
      ]);
      expect(created[3]).toEqual({ entry: old, existed: true });
      const { items } = await entries().list({});
      expect(items.map(({ spiffeId }) => spiffeId).sort()).toEqual(["a", "d", "old"].map(path));
    });

    test("all that is sound is stored, in the order given, and is what comes back", async () => {
      const drafts = Array.from({ length: 1203 }, (_, at) => draftOf(`n${at}`, { hint: `h${at}` }));
      const created = await entries().createMany(drafts);
      expect(created.every((each) => !(each instanceof Fault) && !each.existed)).toBe(true);
      const { items } = await entries().list({});
      expect(items.map(({ hint }) => hint)).toEqual(drafts.map(({ hint }) => hint));
      expect(items).toEqual(created.map((each) => (each instanceof Fault ? undefined : each.entry)));
    });

    test("calls at the same time make each entry once", async () => {
      const drafts = Array.from({ length: 40 }, (_, at) => draftOf(`n${at}`));
      const calls = await Promise.all([drafts, drafts.toReversed(), drafts].map((each) => entries().createMany(each)));
      const made = calls.flat().filter((each) => !(each instanceof Fault) && !each.existed);
      expect(made).toHaveLength(40);
      expect(calls.flat().filter((each) => each instanceof Fault)).toEqual([]);
      expect(await entries().count({})).toBe(40);
    });

    test("none is none", async () => {
      expect(await entries().createMany([])).toEqual([]);
      expect(await entries().deleteMany([])).toEqual(new Set());
    });

    test("those that are there are deleted, and named", async () => {
      for (const name of ["a", "b", "c"]) await entries().create(draftOf(name, { id: name }));
      expect(await entries().deleteMany(["a", "nobody", "c", "c"])).toEqual(new Set(["a", "c"]));
      expect((await entries().list({})).items.map(({ id }) => id)).toEqual(["b"]);
    });

    test("changes are applied in order, two to one entry after each other; one that is refused changes nothing", async () => {
      const [a, b, c] = [await create("a"), await create("b"), await create("c")];
      const hint = (text: string) => (now: Entry) => ({ ...now, hint: now.hint + text });
      const updated = await entries().updateMany([
        { id: a.id, change: hint("1") },
        { id: "nobody", change: hint("1") },
        { id: b.id, change: () => ({ ...a, id: b.id }) },
        { id: a.id, change: hint("2") },
        { id: c.id, change: (now) => ({ ...now, federatesWith: [C] }) },
        {
          id: c.id,
          change: () => {
            throw new Fault("invalid", "refused");
          },
        },
        {
          id: c.id,
          change: (now) => ({ ...now, dnsNames: ["c.test", "d.test"], expiresAt: 4_000_000_000, admin: true }),
        },
      ]);
      expect(updated.map((each) => (each instanceof Fault ? each.kind : [each.hint, each.revisionNumber]))).toEqual([
        ["1", 1],
        "not_found",
        "already_exists",
        ["12", 2],
        "precondition",
        "invalid",
        ["", 1],
      ]);
      const last = { ...c, dnsNames: ["c.test", "d.test"], expiresAt: 4_000_000_000, admin: true, revisionNumber: 1 };
      expect(updated.at(-1)).toEqual(last);
      expect((await entries().list({})).items).toEqual([{ ...a, hint: "12", revisionNumber: 2 }, b, last]);
    });
  });

  test("an update that throws, that is similar to another entry, or of an unknown entry changes nothing", async () => {
    const one = await create("one");
    const two = await create("two");
    const refuse = new Error("refused");
    await expect(
      entries().update(one.id, () => {
        throw refuse;
      }),
    ).rejects.toMatchObject({ cause: refuse });
    const similar = await faultFrom(entries().update(two.id, () => ({ ...one, id: two.id })));
    expect(similar).toMatchObject(refusal("already_exists", "entry-similar"));
    const missing = await faultFrom(entries().update("unknown", (now) => now));
    expect(missing).toMatchObject(refusal("not_found", "entry-not-found"));
    expect((await entries().list({})).items).toEqual([one, two]);
  });

  test("T-C7 what was deleted is answered like what never was", async () => {
    const entry = await create("gone");
    expect(await entries().delete(entry.id)).toEqual(entry);
    for (const id of [entry.id, "never"]) {
      expect(await entries().delete(id)).toBeUndefined();
      expect(await entries().find(id)).toBeUndefined();
      expect(await faultFrom(entries().update(id, (now) => now))).toMatchObject(
        refusal("not_found", "entry-not-found"),
      );
    }
  });

  test("pruning takes expired entries, at most as many as asked for, and none that never expire", async () => {
    await create("never");
    await create("later", { expiresAt: 2000 });
    const old = await create("old", { expiresAt: 999 });
    await create("older", { expiresAt: 998 });
    const now = new Date(1_000_000);
    expect((await entries().prune(now, 1)).map(({ hint, spiffeId }) => spiffeId + hint)).toEqual([
      idOf("/workload/older"),
    ]);
    expect(await entries().prune(now, 10)).toEqual([old]);
    expect(await entries().prune(now, 10)).toEqual([]);
    expect(await entries().count({})).toBe(2);
  });

  const S = (...texts: readonly string[]) => selectorsOf(...texts);
  test.each<{ filter: EntryFilter; found: readonly string[]; title: string }>([
    { title: "no filter finds all", filter: {}, found: ["a", "ab", "abc", "d"] },
    { title: "spiffeId", filter: { spiffeId: idOf("/workload/ab") }, found: ["ab"] },
    { title: "parentId", filter: { parentId: idOf("/p") }, found: ["d"] },
    { title: "hint", filter: { hint: "d's hint" }, found: ["d"] },
    { title: "downstream", filter: { downstream: true }, found: ["abc"] },
    { title: "not downstream", filter: { downstream: false }, found: ["a", "ab", "d"] },
    { title: "exact", filter: { selectors: { match: "exact", selectors: S("x:b", "x:a") } }, found: ["ab"] },
    { title: "subset", filter: { selectors: { match: "subset", selectors: S("x:a", "x:b") } }, found: ["a", "ab"] },
    {
      title: "superset",
      filter: { selectors: { match: "superset", selectors: S("x:a", "x:b") } },
      found: ["ab", "abc"],
    },
    { title: "any", filter: { selectors: { match: "any", selectors: S("x:c", "x:d") } }, found: ["abc", "d"] },
    { title: "federates exactly", filter: { federatesWith: { match: "exact", trustDomains: [B] } }, found: ["ab"] },
    { title: "federates subset", filter: { federatesWith: { match: "subset", trustDomains: [B] } }, found: ["ab"] },
    {
      title: "federates superset",
      filter: { federatesWith: { match: "superset", trustDomains: [B] } },
      found: ["ab", "abc"],
    },
    { title: "federates any", filter: { federatesWith: { match: "any", trustDomains: [C] } }, found: ["abc"] },
    {
      title: "all filters together",
      filter: { downstream: false, selectors: { match: "any", selectors: S("x:a") }, spiffeId: idOf("/workload/a") },
      found: ["a"],
    },
  ])("listing and counting by filter: $title", async ({ filter, found }) => {
    await makeBundles();
    await create("a", { selectors: S("x:a") });
    await create("ab", { selectors: S("x:a", "x:b"), federatesWith: [B] });
    await create("abc", { selectors: S("x:a", "x:b", "x:c"), federatesWith: [B, C], downstream: true });
    await create("d", { selectors: S("x:d"), parentId: idOf("/p"), hint: "d's hint" });
    const { items, nextPageToken } = await entries().list(filter);
    expect(items.map(({ spiffeId }) => spiffeId)).toEqual(found.map((name) => idOf(`/workload/${name}`)));
    expect(nextPageToken).toBe("");
    expect(await entries().count(filter)).toBe(found.length);
  });

  test("a filter by an empty set is refused", async () => {
    const fault = await faultFrom(entries().list({ selectors: { match: "subset", selectors: [] } }));
    expect(fault).toMatchObject(refusal("invalid", "filter-empty"));
  });

  test("pages cover everything once, in order of creation, while entries come and go", async () => {
    const ids: string[] = [];
    for (let index = 0; index < 7; index += 1) ids.push((await create(`n${index}`)).id);
    const first = await entries().list({}, { size: 3, token: "" });
    expect(first.items.map(({ id }) => id)).toEqual(ids.slice(0, 3));
    expect(first.nextPageToken).toMatch(/^\d+$/);
    await entries().delete(ids[1] ?? "");
    await entries().delete(ids[2] ?? "");
    const late = await create("late");
    const second = await entries().list({}, { size: 3, token: first.nextPageToken });
    expect(second.items.map(({ id }) => id)).toEqual(ids.slice(3, 6));
    const third = await entries().list({}, { size: 3, token: second.nextPageToken });
    expect(third).toMatchObject({ items: [{ id: ids[6] }, { id: late.id }], nextPageToken: "" });
  });

  test("a full last page says that it is the last", async () => {
    for (const name of ["a", "b"]) await create(name);
    expect((await entries().list({}, { size: 2, token: "" })).nextPageToken).toBe("");
  });

  test("T-F4 a page is never larger than the cap, whatever size is asked for", async () => {
    const work = Array.from({ length: MAX_PAGE_SIZE + 1 }, (_, index) => create(`n${index}`));
    await Promise.all(work);
    const page = await entries().list({}, { size: 2_147_483_647, token: "" });
    expect(page.items).toHaveLength(MAX_PAGE_SIZE);
    const rest = await entries().list({}, { size: Number.MAX_SAFE_INTEGER, token: page.nextPageToken });
    expect(rest).toMatchObject({ items: [expect.anything()], nextPageToken: "" });
  });

  test.each([
    { token: "x", size: 1, code: "page-token", message: "could not parse token 'x'" },
    { token: "-1", size: 1, code: "page-token", message: "could not parse token '-1'" },
    {
      token: "1; drop table entries",
      size: 1,
      code: "page-token",
      message: "could not parse token '1; drop table entries'",
    },
    { token: "9".repeat(500), size: 1, code: "page-token", message: `could not parse token '${"9".repeat(64)}'` },
    { token: "", size: 0, code: "page-size", message: "cannot paginate with pagesize = 0" },
    { token: "", size: -5, code: "page-size", message: "cannot paginate with pagesize = -5" },
    { token: "", size: Number.NaN, code: "page-size", message: "cannot paginate with pagesize = NaN" },
  ])("T-F4 a page of $size after '$token' is refused: $code", async ({ token, size, code, message }) => {
    const fault = await faultFrom(entries().list({}, { size, token }));
    expect(fault).toMatchObject(refusal("invalid", code));
    expect(fault.message).toBe(message);
  });

  test("T-F4 a token past every position finds nothing", async () => {
    await create("a");
    const page = await entries().list({}, { size: 1, token: "18446744073709551615" });
    expect(page).toEqual({ items: [], nextPageToken: "" });
  });
}
