import { describe, expect, test } from "vitest";
import { checkEntryDraft, type EntryDraft, MAX_HINT_BYTES } from "../../../src/spiffe/entry.ts";
import { parseSpiffeId, parseTrustDomain, type SpiffeId } from "../../../src/spiffe/id.ts";
import { faultOf } from "../../support/faults.ts";

const A = parseTrustDomain("example.org");
const id = (text: string): SpiffeId => parseSpiffeId(text);
const DRAFT: EntryDraft = {
  id: "",
  spiffeId: id("spiffe://example.org/web"),
  parentId: id("spiffe://example.org/spire/agent/join_token/abc"),
  selectors: [{ type: "unix", value: "uid:1000" }],
  x509SvidTtl: 0,
  jwtSvidTtl: 0,
  federatesWith: [],
  admin: false,
  downstream: false,
  storeSvid: false,
  expiresAt: 0,
  dnsNames: [],
  hint: "",
  disableX509SvidPrefetch: false,
  jwtSvidIncludeJti: false,
};
const draft = (change: Partial<EntryDraft>): EntryDraft => ({ ...DRAFT, ...change });
const selectors = (count: number) => Array.from({ length: count }, (_, i) => ({ type: "unix", value: `gid:${i}` }));
const names = (count: number) => Array.from({ length: count }, (_, i) => `n${i}.example`);
const domains = (count: number) => Array.from({ length: count }, (_, i) => parseTrustDomain(`td-${i}.test`));

test("a sound draft comes back unchanged", () => {
  const full = draft({
    id: "my-entry_1.0",
    parentId: id("spiffe://example.org/spire/server"),
    x509SvidTtl: 3600,
    jwtSvidTtl: 2 ** 31 - 1,
    federatesWith: [parseTrustDomain("partner.test")],
    admin: true,
    downstream: true,
    expiresAt: 4_000_000_000,
    dnsNames: ["web.example.org", "*.web.example.org"],
    hint: "internal",
    jwtSvidIncludeJti: true,
    disableX509SvidPrefetch: true,
  });
  expect(checkEntryDraft(DRAFT, A)).toEqual(DRAFT);
  expect(checkEntryDraft(full, A)).toEqual(full);
});

test("selectors are sorted, and nothing is listed twice", () => {
  const partner = parseTrustDomain("partner.test");
  const checked = checkEntryDraft(
    draft({
      selectors: [
        { type: "unix", value: "uid:2" },
        { type: "unix", value: "uid:1" },
        { type: "unix", value: "uid:2" },
      ],
      dnsNames: ["b.example", "a.example", "b.example"],
      federatesWith: [partner, partner],
    }),
    A,
  );
  expect(checked.selectors.map(({ value }) => value)).toEqual(["uid:1", "uid:2"]);
  expect(checked.dnsNames).toEqual(["b.example", "a.example"]);
  expect(checked.federatesWith).toEqual([partner]);
});

test("a wildcard beside a name that it covers is an entry, as in SPIRE", () => {
  const dnsNames = ["a.example", "*.example"];
  expect(checkEntryDraft(draft({ dnsNames }), A).dnsNames).toEqual(dnsNames);
});

describe("refused, in SPIRE's words", () => {
  const rows: readonly { what: string; change: Partial<EntryDraft>; message: string }[] = [
    {
      what: "a parent of another trust domain",
      change: { parentId: id("spiffe://partner.test/agent") },
      message: 'invalid parent ID: "spiffe://partner.test/agent" is not a member of trust domain "example.org"',
    },
    {
      what: "a parent without a path",
      change: { parentId: id("spiffe://example.org") },
      message: 'invalid parent ID: "spiffe://example.org" is not a member of trust domain "example.org"; path is empty',
    },
    {
      what: "an ID of another trust domain",
      change: { spiffeId: id("spiffe://partner.test/web") },
      message: 'invalid spiffe ID: "spiffe://partner.test/web" is not a member of trust domain "example.org"',
    },
    {
      what: "X509-05 an ID without a path",
      change: { spiffeId: id("spiffe://example.org") },
      message:
        'invalid spiffe ID: "spiffe://example.org" is not a workload in trust domain "example.org"; path is empty',
    },
    {
      what: "T-S10 the ID of the server",
      change: { spiffeId: id("spiffe://example.org/spire/server") },
      message:
        'invalid spiffe ID: "spiffe://example.org/spire/server" is not a workload in trust domain "example.org"; path is in the reserved namespace',
    },
    {
      what: "T-S10 the ID of an agent",
      change: { spiffeId: id("spiffe://example.org/spire/agent/x") },
      message:
        'invalid spiffe ID: "spiffe://example.org/spire/agent/x" is not a workload in trust domain "example.org"; path is in the reserved namespace',
    },
    {
      what: "T-S10 the reserved namespace itself",
      change: { spiffeId: id("spiffe://example.org/spire") },
      message:
        'invalid spiffe ID: "spiffe://example.org/spire" is not a workload in trust domain "example.org"; path is in the reserved namespace',
    },
    { what: "T-W8 no selectors", change: { selectors: [] }, message: "selector list is empty" },
    {
      what: "a selector without a type",
      change: { selectors: [{ type: "", value: "x" }] },
      message: "missing selector type",
    },
    {
      what: "a selector without a value",
      change: { selectors: [{ type: "x", value: "" }] },
      message: "missing selector value",
    },
    {
      what: "a colon in a selector's type",
      change: { selectors: [{ type: "a:b", value: "x" }] },
      message: "selector type contains ':'",
    },
    {
      what: "a DNS name beyond ASCII",
      change: { dnsNames: ["bücher"] },
      message: "invalid DNS name: name must be ascii",
    },
    {
      what: "a DNS name with two wildcards",
      change: { dnsNames: ["*.*.a"] },
      message: "invalid DNS name: too many wildcards",
    },
    {
      what: "T-S5 a DNS name with a quote",
      change: { dnsNames: ['a"b'] },
      message: 'invalid DNS name: idna error\nidna: invalid label "a\\"b"',
    },
    {
      what: "WAPI-63 a hint of 1025 bytes",
      change: { hint: "a".repeat(1025) },
      message: "hint is too long, max length is 1024 characters",
    },
    {
      what: "WAPI-63 a hint of 1026 bytes in 513 characters",
      change: { hint: "ü".repeat(513) },
      message: "hint is too long, max length is 1024 characters",
    },
    {
      what: "a NUL in the hint",
      change: { hint: "\0" },
      message: "invalid registration entry: hint contains a NUL byte",
    },
    {
      what: "T-S7 an entry ID of 256 characters",
      change: { id: "a".repeat(256) },
      message: "invalid registration entry: entry ID too long",
    },
    {
      what: "an entry ID with a slash",
      change: { id: "a/b" },
      message: "invalid registration entry: entry ID contains invalid characters",
    },
    {
      what: "an entry ID with a line end",
      change: { id: "a\n" },
      message: "invalid registration entry: entry ID contains invalid characters",
    },
    {
      what: "T-S7 a caret, which lies between Z and a",
      change: { id: "a^b" },
      message: "invalid registration entry: entry ID contains invalid characters",
    },
    {
      what: "a negative X.509 TTL",
      change: { x509SvidTtl: -1 },
      message: "invalid registration entry: X509SvidTtl is not set",
    },
    {
      what: "an X.509 TTL beyond 31 bits",
      change: { x509SvidTtl: 2 ** 31 },
      message: "invalid registration entry: X509SvidTtl is not set",
    },
    {
      what: "a broken JWT TTL",
      change: { jwtSvidTtl: 1.5 },
      message: "invalid registration entry: JwtSvidTtl is not set",
    },
    {
      what: "a JWT TTL that is no number",
      change: { jwtSvidTtl: Number.NaN },
      message: "invalid registration entry: JwtSvidTtl is not set",
    },
    {
      what: "an expiry before all time",
      change: { expiresAt: -1 },
      message: "invalid registration entry: expiry is not a time",
    },
    {
      what: "an expiry beyond what a number holds",
      change: { expiresAt: 2 ** 53 },
      message: "invalid registration entry: expiry is not a time",
    },
    {
      what: "a stored SVID with selectors of two types",
      change: {
        storeSvid: true,
        selectors: [
          { type: "a", value: "x" },
          { type: "b", value: "x" },
        ],
      },
      message: "invalid registration entry: selector types must be the same when store SVID is enabled",
    },
    {
      what: "a stored SVID that is not fetched ahead",
      change: { storeSvid: true, disableX509SvidPrefetch: true },
      message: "specifying cache behaviour is incompatible with storable SVIDs",
    },
    {
      what: "T-S7 257 selectors",
      change: { selectors: selectors(257) },
      message: "invalid registration entry: more than 256 selectors",
    },
    {
      what: "T-S7 257 DNS names",
      change: { dnsNames: names(257) },
      message: "invalid registration entry: more than 256 DNS names",
    },
    {
      what: "T-S7 257 federated trust domains",
      change: { federatesWith: domains(257) },
      message: "invalid registration entry: more than 256 federated trust domains",
    },
    {
      what: "T-S7 DNS names that no certificate could hold",
      change: { dnsNames: Array.from({ length: 40 }, (_, i) => `${"a.".repeat(120)}n${i}`) },
      message: "invalid registration entry: DNS names are longer than 8192 bytes in all",
    },
  ];
  test.each(rows)("$what", ({ change, message }) => {
    const fault = faultOf(() => checkEntryDraft(draft(change), A));
    expect(fault.kind).toBe("invalid");
    expect(fault.message.replace(/^invalid DNS name: invalid registration/, "invalid registration")).toBe(message);
  });
});

describe("T-S7 the largest that is allowed", () => {
  const rows: readonly { what: string; change: Partial<EntryDraft> }[] = [
    { what: "an entry ID of 255 characters", change: { id: "a".repeat(255) } },
    { what: "an entry ID of one", change: { id: "-" } },
    { what: "WAPI-63 a hint of 1024 bytes", change: { hint: "a".repeat(MAX_HINT_BYTES) } },
    { what: "WAPI-63 a hint of 1024 bytes in 512 characters", change: { hint: "ü".repeat(512) } },
    { what: "256 selectors", change: { selectors: selectors(256) } },
    { what: "256 DNS names", change: { dnsNames: names(256) } },
    { what: "256 federated trust domains", change: { federatesWith: domains(256) } },
    { what: "X509-03 50 DNS names", change: { dnsNames: names(50) } },
    { what: "ID-17 an ID of 2048 bytes", change: { spiffeId: id(`spiffe://example.org/${"a".repeat(2048 - 21)}`) } },
    { what: "a stored SVID with selectors of one type", change: { storeSvid: true, selectors: selectors(3) } },
    { what: "an ID that only resembles a reserved one", change: { spiffeId: id("spiffe://example.org/spire-web") } },
  ];
  test.each(rows)("$what", ({ change }) => {
    expect(checkEntryDraft(draft(change), A)).toMatchObject({
      spiffeId: draft(change).spiffeId,
      hint: draft(change).hint,
    });
  });
});
