import fc from "fast-check";
import { expect, test } from "vitest";
import {
  bundleFromProto,
  bundleToProto,
  entryToProto,
  idFromProto,
  idToProto,
  secondsFromProto,
  selectorsFromProto,
} from "../../../src/rpc/convert.ts";
import type { Bundle__Output } from "../../../src/rpc/gen/spire/api/types/Bundle.ts";
import type { BundleMask__Output } from "../../../src/rpc/gen/spire/api/types/BundleMask.ts";
import type { EntryMask__Output } from "../../../src/rpc/gen/spire/api/types/EntryMask.ts";
import { BundleApi, EntryApi } from "../../../src/rpc/protos.ts";
import type { Bundle } from "../../../src/spiffe/bundle.ts";
import type { Entry } from "../../../src/spiffe/entry.ts";
import { parseSpiffeId, parseTrustDomain } from "../../../src/spiffe/id.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { createCa } from "../../support/pki.ts";

const ENTRY: Entry = {
  id: "e-1",
  spiffeId: parseSpiffeId("spiffe://example.org/web"),
  parentId: parseSpiffeId("spiffe://example.org/spire/agent/join_token/abc"),
  selectors: [{ type: "unix", value: "uid:1000" }],
  x509SvidTtl: 60,
  jwtSvidTtl: 30,
  federatesWith: [parseTrustDomain("other.org")],
  admin: true,
  downstream: false,
  storeSvid: false,
  expiresAt: 1_900_000_000,
  dnsNames: ["web.example.org"],
  hint: "internal",
  disableX509SvidPrefetch: false,
  jwtSvidIncludeJti: true,
  revisionNumber: 7,
  createdAt: 1_700_000_000,
};
const ENTRY_FIELDS = [
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
] as const satisfies readonly (keyof EntryMask__Output)[];

test("an entry goes over the wire with every field", () => {
  expect(overTheWire(entryToProto(ENTRY))).toEqual({
    id: "e-1",
    spiffe_id: { trust_domain: "example.org", path: "/web" },
    parent_id: { trust_domain: "example.org", path: "/spire/agent/join_token/abc" },
    selectors: [{ type: "unix", value: "uid:1000" }],
    x509_svid_ttl: 60,
    federates_with: ["other.org"],
    admin: true,
    downstream: false,
    expires_at: "1900000000",
    dns_names: ["web.example.org"],
    revision_number: "7",
    store_svid: false,
    jwt_svid_ttl: 30,
    hint: "internal",
    created_at: "1700000000",
    additional_attributes: { disable_x509_svid_prefetch: false, jwt_svid_include_jti: true },
    _additional_attributes: "additional_attributes",
  });
});

test("additional attributes are absent while none is set", () => {
  expect(overTheWire(entryToProto({ ...ENTRY, jwtSvidIncludeJti: false }))).not.toHaveProperty(
    "additional_attributes.jwt_svid_include_jti",
  );
});

test("T-S9 a mask keeps exactly the fields it names, so no privilege bit appears or moves", () => {
  fc.assert(
    fc.property(
      fc.subarray([...ENTRY_FIELDS]),
      fc.boolean(),
      fc.boolean(),
      fc.boolean(),
      (fields, admin, downstream, storeSvid) => {
        const entry = { ...ENTRY, admin, downstream, storeSvid };
        const whole = overTheWire(entryToProto(entry)) as Readonly<Record<string, unknown>>;
        const masked = overTheWire(entryToProto(entry, maskOf(fields))) as Readonly<Record<string, unknown>>;
        const nothing = overTheWire({}) as Readonly<Record<string, unknown>>;
        expect(masked["id"]).toBe("e-1");
        for (const field of ENTRY_FIELDS)
          expect(masked[field]).toEqual((fields.includes(field) ? whole : nothing)[field]);
      },
    ),
  );
});

test("IDs survive the wire, byte for byte", () => {
  for (const text of ["spiffe://example.org", "spiffe://example.org/a/B..c/_-", "spiffe://a_b.c/x"]) {
    const id = parseSpiffeId(text);
    expect(idFromProto({ trust_domain: "", path: "", ...idToProto(id) } as never)).toBe(id);
  }
});

test.each([
  { what: "a missing ID", id: null, message: "request must specify SPIFFE ID" },
  { what: "no trust domain", id: { trust_domain: "", path: "/a" }, message: "trust domain is missing" },
  {
    what: "an upper-case trust domain",
    id: { trust_domain: "Example.org", path: "/a" },
    message: "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
  },
  {
    what: "a scheme in the trust domain",
    id: { trust_domain: "spiffe://example.org", path: "/a" },
    message: "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
  },
  {
    what: "a path without its slash",
    id: { trust_domain: "example.org", path: "a" },
    message: "path must have a leading slash",
  },
  {
    what: "a path that climbs",
    id: { trust_domain: "example.org", path: "/a/../b" },
    message: "path cannot contain dot segments",
  },
  {
    what: "a trailing slash",
    id: { trust_domain: "example.org", path: "/a/" },
    message: "path cannot have a trailing slash",
  },
  {
    what: "a path that would end the trust domain",
    id: { trust_domain: "example.org", path: "@evil/a" },
    message: "path must have a leading slash",
  },
])("ID-13 $what is refused in SPIRE's words", ({ id, message }) => {
  expect(faultOf(() => idFromProto(id))).toMatchObject({ kind: "invalid", message });
});

test.each([
  { selector: { type: "", value: "a" }, message: "missing selector type" },
  { selector: { type: "a:b", value: "c" }, message: "selector type contains ':'" },
  { selector: { type: "a", value: "" }, message: "missing selector value" },
])("a selector is refused: $message", ({ selector, message }) => {
  expect(faultOf(() => selectorsFromProto([selector]))).toMatchObject({ kind: "invalid", message });
});

test("a bundle survives the wire", async () => {
  const bundle = await exampleBundle();
  expect(bundleFromProto(bundleOverTheWire(bundleToProto(bundle)))).toEqual(bundle);
});

test("a mask keeps the named fields of a bundle, and the trust domain", async () => {
  const bundle = await exampleBundle();
  const fields = ["x509_authorities", "jwt_authorities", "refresh_hint", "sequence_number", "wit_authorities"] as const;
  for (const field of fields) {
    const mask = Object.fromEntries(fields.map((name) => [name, name === field])) as unknown as BundleMask__Output;
    expect(Object.keys(bundleToProto(bundle, mask)).sort()).toEqual(["trust_domain", field].sort());
  }
});

test("several certificates in one authority become an authority each", async () => {
  const [first, second] = [await createCa(), await createCa()];
  const asn1 = Buffer.concat([first.der, second.der]);
  const bundle = bundleFromProto(bundleMessage({ x509_authorities: [{ asn1, tainted: true }] }));
  expect(bundle.x509Authorities.map((one) => [Buffer.from(one.asn1), one.tainted])).toEqual([
    [Buffer.from(first.der), true],
    [Buffer.from(second.der), true],
  ]);
});

test.each([
  { what: "nothing", message: null, text: /^no bundle provided$/ },
  { what: "a bad trust domain", message: { trust_domain: "A" }, text: /^invalid trust domain: / },
  {
    what: "a certificate that is none",
    message: { x509_authorities: [{ asn1: Buffer.from("junk"), tainted: false }] },
    text: /^unable to parse X\.509 authority: /,
  },
  {
    what: "a key that is none",
    message: { jwt_authorities: [{ public_key: Buffer.from("junk"), key_id: "a", expires_at: "0", tainted: false }] },
    text: /^unable to parse JWT authority: /,
  },
  { what: "a negative refresh hint", message: { refresh_hint: "-1" }, text: /^refresh hint -1 is out of range$/ },
])("a bundle with $what is refused", ({ message, text }) => {
  const fault = faultOf(() => bundleFromProto(message === null ? null : bundleMessage(message)));
  expect(fault.kind).toBe("invalid");
  expect(fault.message).toMatch(text);
});

test("a key without an id is refused", async () => {
  const { signer } = await createCa();
  const key = { public_key: Buffer.from(signer.publicKey), key_id: "", expires_at: "0", tainted: false };
  expect(faultOf(() => bundleFromProto(bundleMessage({ jwt_authorities: [key] })))).toMatchObject({
    ...refusal("invalid", "key-id-missing"),
    message: "unable to parse JWT authority: missing key ID",
  });
});

test("64-bit numbers are read while they are exact, and refused beyond", () => {
  expect(secondsFromProto("0", "x")).toBe(0);
  expect(secondsFromProto(String(Number.MAX_SAFE_INTEGER), "x")).toBe(Number.MAX_SAFE_INTEGER);
  for (const text of ["-1", "9007199254740992", "9223372036854775807", "1.5", "abc"]) {
    expect(faultOf(() => secondsFromProto(text, "expiry"))).toMatchObject(refusal("invalid", "number-out-of-range"));
  }
});

function maskOf(fields: readonly string[]): EntryMask__Output {
  return Object.fromEntries(
    ENTRY_FIELDS.map((field) => [field, fields.includes(field)]),
  ) as unknown as EntryMask__Output;
}

function overTheWire(entry: object): object {
  const method = EntryApi.methods()["GetEntry"];
  if (method === undefined) throw new Error("there is no such method");
  return method.responseDeserialize(method.responseSerialize(entry));
}

function bundleOverTheWire(bundle: object): Bundle__Output {
  const method = BundleApi.methods()["GetBundle"];
  if (method === undefined) throw new Error("there is no such method");
  return method.responseDeserialize(method.responseSerialize(bundle)) as Bundle__Output;
}

function bundleMessage(fields: object): Bundle__Output {
  return bundleOverTheWire({ trust_domain: "example.org", ...fields });
}

async function exampleBundle(): Promise<Bundle> {
  const { der, signer } = await createCa();
  const key = (keyId: string, tainted: boolean) => ({
    publicKey: Buffer.from(signer.publicKey),
    keyId,
    expiresAt: 1_900_000_000,
    tainted,
  });
  return {
    trustDomain: parseTrustDomain("example.org"),
    x509Authorities: [{ asn1: Buffer.from(der), tainted: true }],
    jwtAuthorities: [key("j", false), key("k", true)],
    witAuthorities: [key("w", false)],
    refreshHint: 300,
    sequenceNumber: 2n ** 63n,
  };
}
