import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ListEntriesRequest } from "../../../src/rpc/gen/spire/api/server/entry/v1/ListEntriesRequest.ts";
import { faultFrom } from "../../support/faults.ts";
import { type EntryInput, protoId, startServer, type TestServer } from "../../support/server.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

type Filter = NonNullable<ListEntriesRequest["filter"]>;

describe("ListEntries and CountEntries", () => {
  const parent = "spiffe://example.org/list/parent";
  const byName: Record<string, string> = {};

  beforeAll(async () => {
    const rows: Readonly<Record<string, Partial<EntryInput>>> = {
      a: { selectors: ["t:a"], hint: "one" },
      b: { selectors: ["t:b"], hint: "two", downstream: true },
      ab: { selectors: ["t:a", "t:b"], downstream: true },
      abc: { selectors: ["t:a", "t:b", "t:c"] },
      d: { selectors: ["t:d"] },
    };
    for (const [name, row] of Object.entries(rows)) {
      const entry = await server.createEntry({
        spiffeId: `spiffe://example.org/list/${name}`,
        parentId: parent,
        ...row,
      });
      byName[entry.id] = name;
    }
  });

  const selectors = (...values: string[]) => values.map((value) => ({ type: "t", value }));
  const nothing = {
    by_spiffe_id: null,
    by_parent_id: null,
    by_selectors: null,
    by_federates_with: null,
    by_hint: null,
    by_downstream: null,
  };

  interface FilterRow {
    readonly what: string;
    readonly filter: Filter;
    readonly names?: readonly string[];
    readonly message?: string | RegExp;
  }

  test.each([
    {
      what: "exactly these selectors",
      filter: { by_selectors: { match: "MATCH_EXACT", selectors: selectors("b", "a", "a") } },
      names: ["ab"],
    },
    {
      what: "a subset of these selectors",
      filter: { by_selectors: { match: "MATCH_SUBSET", selectors: selectors("a", "b") } },
      names: ["a", "b", "ab"],
    },
    {
      what: "a superset of these selectors",
      filter: { by_selectors: { match: "MATCH_SUPERSET", selectors: selectors("a", "b") } },
      names: ["ab", "abc"],
    },
    {
      what: "any of these selectors",
      filter: { by_selectors: { match: "MATCH_ANY", selectors: selectors("c", "d") } },
      names: ["abc", "d"],
    },
    { what: "a SPIFFE ID", filter: { by_spiffe_id: protoId("spiffe://example.org/list/d") }, names: ["d"] },
    { what: "a hint", filter: { by_hint: { value: "two" } }, names: ["b"] },
    {
      what: "an empty hint, which is no filter",
      filter: { by_hint: { value: "" } },
      names: ["a", "b", "ab", "abc", "d"],
    },
    { what: "downstream", filter: { by_downstream: { value: true } }, names: ["b", "ab"] },
    {
      what: "false for downstream, which is no filter, as SPIRE's command line sends it",
      filter: { by_downstream: { value: false } },
      names: ["a", "b", "ab", "abc", "d"],
    },
    {
      what: "a trust domain nobody federates with",
      filter: { by_federates_with: { match: "MATCH_ANY", trust_domains: ["other.test"] } },
      names: [],
    },
    { what: "several at once", filter: { by_downstream: { value: true }, by_hint: { value: "two" } }, names: ["b"] },
  ] satisfies readonly FilterRow[])("find by $what", async ({ filter, names }) => {
    const wanted = { ...nothing, by_parent_id: protoId(parent), ...filter };
    const { entries } = await server.admin.entry.ListEntries({ filter: wanted });
    expect(entries.map(({ id }) => byName[id])).toEqual(names);
    expect(await server.admin.entry.CountEntries({ filter: wanted })).toEqual({ count: names.length });
  });

  test.each([
    {
      what: "no selectors",
      filter: { by_selectors: { match: "MATCH_ANY", selectors: [] } },
      message: "malformed selectors filter: empty selector set",
    },
    {
      what: "a selector without a type",
      filter: { by_selectors: { match: "MATCH_ANY", selectors: [{ type: "", value: "x" }] } },
      message: "malformed selectors filter: missing selector type",
    },
    {
      what: "no trust domains",
      filter: { by_federates_with: { match: "MATCH_ANY", trust_domains: [] } },
      message: "malformed federates with filter: empty trust domain set",
    },
    {
      what: "a malformed trust domain",
      filter: { by_federates_with: { match: "MATCH_ANY", trust_domains: ["A B"] } },
      message: /^malformed federates with filter: trust domain characters/,
    },
    {
      what: "a parent of another trust domain",
      filter: { by_parent_id: protoId("spiffe://other.test/x") },
      message: /^malformed parent ID filter: "spiffe:\/\/other.test\/x" is not a member/,
    },
    {
      what: "a reserved SPIFFE ID",
      filter: { by_spiffe_id: protoId("spiffe://example.org/spire/server") },
      message: /^malformed SPIFFE ID filter: .* reserved namespace/,
    },
    {
      what: "a match behavior that does not exist",
      filter: { by_selectors: { match: 9 as 0, selectors: selectors("a") } },
      message: "malformed selectors filter: unknown match behavior 9",
    },
  ] satisfies readonly FilterRow[])("refuse a filter with $what", async ({ filter, message }) => {
    const wanted = { ...nothing, ...filter };
    const expected = {
      kind: "invalid",
      message: typeof message === "string" ? message : expect.stringMatching(message),
    };
    expect(await faultFrom(server.admin.entry.ListEntries({ filter: wanted }))).toMatchObject(expected);
    expect(await faultFrom(server.admin.entry.CountEntries({ filter: wanted }))).toMatchObject(expected);
  });

  test("pages follow each other without gaps or repeats, also when entries come and go between them", async () => {
    const wanted = { filter: { ...nothing, by_parent_id: protoId(parent) }, page_size: 2 };
    const first = await server.admin.entry.ListEntries(wanted);
    expect(first.entries.map(({ id }) => byName[id])).toEqual(["a", "b"]);
    const entry = await server.createEntry({ spiffeId: "spiffe://example.org/short-lived", parentId: parent });
    await server.admin.entry.BatchDeleteEntry({ ids: [entry.id] });
    const second = await server.admin.entry.ListEntries({ ...wanted, page_token: first.next_page_token });
    expect(second.entries.map(({ id }) => byName[id])).toEqual(["ab", "abc"]);
    const last = await server.admin.entry.ListEntries({ ...wanted, page_token: second.next_page_token });
    expect(last.entries.map(({ id }) => byName[id])).toEqual(["d"]);
    expect(last.next_page_token).toBe("");
  });

  test.each(["x", "-1", "1e3", "9".repeat(30), "1; drop table entries"])(
    "refuse the page token %j",
    async (page_token) => {
      expect(await faultFrom(server.admin.entry.ListEntries({ page_size: 1, page_token }))).toMatchObject({
        kind: "invalid",
        message: expect.stringContaining("could not parse token"),
      });
    },
  );
});
