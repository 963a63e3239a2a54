import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Entry__Output } from "../../../src/rpc/gen/spire/api/types/Entry.ts";
import type { EntryMask } from "../../../src/rpc/gen/spire/api/types/EntryMask.ts";
import { type EntryInput, entryMessage, protoId, startServer, type TestServer } from "../../support/server.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

const MASK_FIELDS = [
  "spiffe_id",
  "parent_id",
  "selectors",
  "x509_svid_ttl",
  "federates_with",
  "admin",
  "downstream",
  "expires_at",
  "dns_names",
  "revision_number",
  "store_svid",
  "jwt_svid_ttl",
  "hint",
  "created_at",
  "additional_attributes",
] as const satisfies readonly (keyof EntryMask)[];

let made = 0;
/** An ID that no other entry has. */
function fresh(name = "w"): string {
  made += 1;
  return `spiffe://example.org/${name}-${made}`;
}

function create(rest: Partial<EntryInput>): Promise<Entry__Output> {
  return server.createEntry({ spiffeId: fresh(), parentId: "spiffe://example.org/node", ...rest });
}

describe("T-S9 masks", () => {
  test("an output mask shows what it names and moves nothing, whatever the privileges", async () => {
    const masks = fc.subarray([...MASK_FIELDS]);
    const property = fc.asyncProperty(masks, fc.boolean(), fc.boolean(), async (fields, admin, downstream) => {
      const whole = await create({ admin, downstream, hint: "h", x509_svid_ttl: 1, dns_names: ["a.test"] });
      const { id } = whole;
      const output_mask = Object.fromEntries(fields.map((field) => [field, true]));
      const seen = await server.admin.entry.GetEntry({ id, output_mask });
      expect(seen.admin).toBe(fields.includes("admin") && admin);
      expect(seen.downstream).toBe(fields.includes("downstream") && downstream);
      expect(seen).toEqual(project(whole, fields));
      const { entries } = await server.admin.entry.ListEntries({
        output_mask,
        filter: { by_spiffe_id: whole.spiffe_id },
      });
      expect(entries).toEqual([seen]);
    });
    await fc.assert(property, { numRuns: 60 });
  });

  test("an input mask changes what it names and nothing else, whatever the privileges", async () => {
    const fields = MASK_FIELDS.filter(
      (field) =>
        !["revision_number", "created_at", "federates_with", "store_svid", "additional_attributes"].includes(field),
    );
    const property = fc.asyncProperty(
      fc.subarray([...fields]),
      fc.boolean(),
      fc.boolean(),
      async (named, admin, downstream) => {
        const entry = await create({ admin, downstream });
        const { id } = entry;
        const change = entryMessage({
          id,
          spiffeId: fresh("changed"),
          parentId: "spiffe://example.org/changed",
          selectors: ["unix:uid:7"],
          admin: !admin,
          downstream: !downstream,
          hint: "new",
          x509_svid_ttl: 7,
          jwt_svid_ttl: 8,
          dns_names: ["new.test"],
          expires_at: 4_000_000_000,
        });
        const input_mask = Object.fromEntries(named.map((field) => [field, true]));
        const { results } = await server.admin.entry.BatchUpdateEntry({ entries: [change], input_mask });
        expect(results[0]?.status?.code).toBe(0);
        const expected = {
          ...entry,
          ...Object.fromEntries(named.map((field) => [field, change[field]])),
          revision_number: "1",
        };
        expect(results[0]?.entry).toEqual({ ...expected, expires_at: String(expected.expires_at) });
      },
    );
    await fc.assert(property, { numRuns: 60 });
  });
});

test("T-S9 a filter chooses among entries and changes none of them, whatever the privileges", async () => {
  const parentId = fresh("filtered");
  const byId = new Map<string, Entry__Output>();
  for (const [admin, downstream] of [0, 1, 2, 3].map((bits) => [(bits & 1) > 0, (bits & 2) > 0] as const)) {
    const hint = `h${byId.size}`;
    const entry = await create({ parentId, admin, downstream, hint, selectors: ["t:all", `t:${hint}`] });
    byId.set(entry.id, entry);
  }
  const values = fc.subarray(["all", "h0", "h1", "h2", "h3"], { minLength: 1 });
  const match = fc.constantFrom("MATCH_EXACT", "MATCH_SUBSET", "MATCH_SUPERSET", "MATCH_ANY");
  const filters = fc.record(
    {
      by_downstream: fc.record({ value: fc.boolean() }),
      by_hint: fc.record({ value: fc.constantFrom("", "h0", "h1", "h2", "h3") }),
      by_selectors: fc
        .tuple(values, match)
        .map(([some, how]) => ({ match: how, selectors: some.map((value) => ({ type: "t", value })) })),
    },
    { requiredKeys: [] },
  );
  const by_parent_id = protoId(parentId);
  const property = fc.asyncProperty(filters, fc.integer({ min: 0, max: 5 }), async (some, page_size) => {
    const filter = { by_parent_id, ...some };
    const { entries } = await server.admin.entry.ListEntries({ filter, page_size });
    expect(entries).toEqual(entries.map(({ id }) => byId.get(id)));
    const { by_downstream } = some;
    if (by_downstream?.value === true) expect(entries.every(({ downstream }) => downstream)).toBe(true);
    if (page_size === 0) expect(await server.admin.entry.CountEntries({ filter })).toEqual({ count: entries.length });
  });
  await fc.assert(property, { numRuns: 80 });
});

/** What the mask leaves: the named fields, the id, and the defaults of all others. */
function project(entry: Entry__Output, fields: readonly string[]): Record<string, unknown> {
  const empty: Record<string, unknown> = {
    spiffe_id: null,
    parent_id: null,
    selectors: [],
    x509_svid_ttl: 0,
    federates_with: [],
    admin: false,
    downstream: false,
    expires_at: "0",
    dns_names: [],
    revision_number: "0",
    store_svid: false,
    jwt_svid_ttl: 0,
    hint: "",
    created_at: "0",
  };
  const shown = Object.entries(entry).filter(([field]) => field === "id" || fields.includes(field));
  return { ...empty, ...Object.fromEntries(shown) };
}
