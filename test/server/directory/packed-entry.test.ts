import fc from "fast-check";
import { expect, test } from "vitest";
import { hasField, hasId, PackedEntry, packed } from "../../../server/directory/packed-entry.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { selectorSet } from "../../../src/spiffe/selector.ts";
import { id, makeEntry } from "../ca/support.ts";

const anyText = fc.string({ unit: "grapheme", maxLength: 12 }).map((text) => text.replaceAll("\0", ""));
const anyPath = fc.stringMatching(/^(\/[a-z0-9._-]{1,8}x){1,3}$/).map(id);
const anyNumber = fc.oneof(fc.constant(0), fc.nat(), fc.constantFrom(2 ** 40, Number.MAX_SAFE_INTEGER));
const anySelector = fc.record({
  type: fc.stringMatching(/^[a-z]{1,5}$/),
  value: anyText.map((text) => `${text}:`),
});
const anyEntry: fc.Arbitrary<Entry> = fc
  .record({
    id: fc.stringMatching(/^[A-Za-z0-9._-]{1,20}$/),
    spiffeId: anyPath,
    parentId: anyPath,
    selectors: fc.array(anySelector, { minLength: 1, maxLength: 4 }).map(selectorSet),
    x509SvidTtl: anyNumber,
    jwtSvidTtl: anyNumber,
    federatesWith: fc.subarray(["a.test", "b.test"].map(parseTrustDomain)),
    admin: fc.boolean(),
    downstream: fc.boolean(),
    storeSvid: fc.boolean(),
    expiresAt: anyNumber,
    dnsNames: fc.subarray(["a.example", "b.example"]),
    hint: anyText,
    disableX509SvidPrefetch: fc.boolean(),
    jwtSvidIncludeJti: fc.boolean(),
    revisionNumber: anyNumber,
    createdAt: anyNumber,
  })
  .map(makeEntry);

function fieldsOf(entry: Entry): object {
  const fields = Object.keys(makeEntry()) as (keyof Entry)[];
  return Object.fromEntries(fields.map((field) => [field, entry[field]]));
}

test("every field of an entry is read back from its packed form", () => {
  fc.assert(
    fc.property(anyEntry, (entry) => {
      expect(fieldsOf(new PackedEntry(packed(entry)))).toEqual(entry);
      expect(packed(new PackedEntry(packed(entry)))).toBe(packed(entry));
    }),
    { numRuns: 500 },
  );
});

test("entries that differ in any field differ when they are packed", () => {
  const changed = fc.tuple(anyEntry, anyEntry, fc.constantFrom(...(Object.keys(makeEntry()) as (keyof Entry)[])));
  fc.assert(
    fc.property(changed, ([one, other, field]) => {
      const next = { ...one, [field]: other[field] };
      expect(packed(next) === packed(one)).toBe(JSON.stringify(next) === JSON.stringify(one));
    }),
    { numRuns: 500 },
  );
});

test("a packed entry has its own id and SPIFFE IDs, and none that begins or ends alike", () => {
  fc.assert(
    fc.property(anyEntry, fc.stringMatching(/^[a-z0-9]{1,3}$/), (entry, more) => {
      const text = packed(entry);
      const { spiffeId, parentId } = entry;
      expect([
        hasId(text, entry.id),
        hasField(text, "spiffeId", spiffeId),
        hasField(text, "parentId", parentId),
      ]).toEqual([true, true, true]);
      for (const other of [`${entry.id}${more}`, `${more}${entry.id}`, entry.id.slice(0, -1)])
        expect(hasId(text, other)).toBe(other === entry.id);
      for (const other of [`${spiffeId}${more}`, spiffeId.slice(0, -1)]) {
        expect(hasField(text, "spiffeId", other)).toBe(false);
        expect(hasField(text, "parentId", other)).toBe(other === parentId);
      }
    }),
  );
});

test("a stored selector that no rule would let in keeps nobody from reading the entry", () => {
  const selectors = [{ type: "odd", value: "" }];
  expect(new PackedEntry(packed(makeEntry({ selectors }))).selectors).toEqual(selectors);
});
