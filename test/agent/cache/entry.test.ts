import { describe, expect, test } from "vitest";
import { byAge, entryFromServer, isStale, withUniqueHints } from "../../../agent/cache/entry.ts";
import type { Entry__Output } from "../../../src/rpc/gen/spire/api/types/Entry.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { entry } from "./support.ts";

const wire: Entry__Output = {
  id: "e1",
  spiffe_id: { trust_domain: "home.test", path: "/web" },
  parent_id: null,
  selectors: [
    { type: "unix", value: "uid:1000" },
    { type: "k8s", value: "ns:a:b" },
  ],
  x509_svid_ttl: 0,
  federates_with: ["other.test"],
  admin: true,
  downstream: false,
  expires_at: "0",
  dns_names: [],
  revision_number: "3",
  store_svid: false,
  jwt_svid_ttl: 0,
  hint: "internal",
  created_at: "1700000000",
  additional_attributes: { disable_x509_svid_prefetch: true, jwt_svid_include_jti: false },
};

describe("an entry from the server", () => {
  test("is held with its selectors in order", () => {
    expect(entryFromServer(wire)).toEqual({
      id: "e1",
      spiffeId: "spiffe://home.test/web",
      selectors: [
        { type: "k8s", value: "ns:a:b" },
        { type: "unix", value: "uid:1000" },
      ],
      federatesWith: ["other.test"],
      admin: true,
      downstream: false,
      storeSvid: false,
      hint: "internal",
      disableX509SvidPrefetch: true,
      jwtSvidIncludeJti: false,
      revisionNumber: 3,
      createdAt: 1700000000,
    });
  });

  test.each([
    { what: "no id", change: { id: "" }, reason: "missing entry ID" },
    { what: "no SPIFFE ID", change: { spiffe_id: null }, reason: "must specify SPIFFE ID" },
    {
      what: "a SPIFFE ID with dot segments",
      change: { spiffe_id: { trust_domain: "home.test", path: "/a/../b" } },
      reason: "dot segments",
    },
    { what: "no selectors", change: { selectors: [] }, reason: "selector list is empty" },
    {
      what: "a selector without a type",
      change: { selectors: [{ type: "", value: "x" }] },
      reason: "missing selector type",
    },
    {
      what: "a selector type with a colon",
      change: { selectors: [{ type: "a:b", value: "x" }] },
      reason: "selector type contains ':'",
    },
    {
      what: "a selector without a value",
      change: { selectors: [{ type: "unix", value: "" }] },
      reason: "missing selector value",
    },
    {
      what: "a malformed federated domain",
      change: { federates_with: ["Other.Test"] },
      reason: "trust domain characters",
    },
  ])("with $what is refused", ({ change, reason }) => {
    const read = () => entryFromServer({ ...wire, ...change });
    expect(read).toThrow(Fault);
    expect(read).toThrow(reason);
  });
});

test.each([
  { what: "the same revision and time", revision: "3", createdAt: "1000", stale: false },
  { what: "a higher revision", revision: "4", createdAt: "1000", stale: true },
  { what: "a lower revision", revision: "2", createdAt: "1000", stale: true },
  { what: "the same revision of an entry made anew", revision: "3", createdAt: "1001", stale: true },
  { what: "no time of creation, as old servers send", revision: "3", createdAt: "0", stale: false },
])("a held entry is stale against $what: $stale", ({ revision, createdAt, stale }) => {
  const held = entry("a", { revisionNumber: 3, createdAt: 1000 });
  expect(isStale(held, { id: "a", revision_number: revision, created_at: createdAt })).toBe(stale);
});

describe("the order and the hints of a workload's identities", () => {
  test("WAPI-62 the oldest entry comes first, and the id decides between equals", () => {
    const entries = [entry("c", { createdAt: 2 }), entry("b", { createdAt: 2 }), entry("z", { createdAt: 1 })];
    expect(entries.sort(byAge).map(({ id }) => id)).toEqual(["z", "b", "c"]);
  });

  test("WAPI-27 of entries with one hint only the oldest stays, and empty hints do not count", () => {
    const entries = [
      entry("a", { hint: "internal" }),
      entry("b"),
      entry("c", { hint: "internal" }),
      entry("d", { hint: "external" }),
      entry("e"),
    ];
    const { kept, ignored } = withUniqueHints(entries);
    expect(kept.map(({ id }) => id)).toEqual(["a", "b", "d", "e"]);
    expect(ignored.map(({ id }) => id)).toEqual(["c"]);
  });
});
