import { describe, expect, test } from "vitest";
import { contextTag } from "../../../src/crypto/der.ts";
import { encode, encodeUnsigned, explicit, sequence } from "../../../src/crypto/der-writer.ts";
import { encodeName } from "../../../src/crypto/name.ts";
import {
  type ConstrainedNames,
  checkNameConstraints,
  readNameConstraints,
} from "../../../src/crypto/name-constraints.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { directoryName, dnsName, emailName, ipRange, nameConstraints, uriName } from "../../support/pki.ts";

const REFUSED = refusal("denied", "name-constraint");
const NO_NAMES: ConstrainedNames = { uris: [], dnsNames: [], ipAddresses: [], otherNames: 0, subject: encodeName({}) };

interface Trees {
  readonly permitted?: readonly Uint8Array[];
  readonly excluded?: readonly Uint8Array[];
}

function check(trees: Trees, names: Partial<ConstrainedNames>): void {
  checkNameConstraints(readNameConstraints(nameConstraints(trees).value), { ...NO_NAMES, ...names });
}

function verdict(trees: Trees, names: Partial<ConstrainedNames>): string {
  try {
    check(trees, names);
    return "allowed";
  } catch (error) {
    expect(error).toMatchObject(REFUSED);
    return "refused";
  }
}

describe("T-X2 X509-16 URI names", () => {
  test.each([
    { tree: "example.org", uri: "spiffe://example.org/web", permitted: "allowed", excluded: "refused" },
    { tree: "EXAMPLE.org", uri: "spiffe://example.org/web", permitted: "allowed", excluded: "refused" },
    { tree: "example.org", uri: "spiffe://EXAMPLE.ORG/web", permitted: "allowed", excluded: "refused" },
    { tree: "example.org", uri: "spiffe://sub.example.org/web", permitted: "refused", excluded: "allowed" },
    { tree: ".example.org", uri: "spiffe://sub.example.org/web", permitted: "allowed", excluded: "refused" },
    { tree: ".example.org", uri: "spiffe://a.b.example.org/web", permitted: "allowed", excluded: "refused" },
    { tree: ".example.org", uri: "spiffe://example.org/web", permitted: "refused", excluded: "allowed" },
    { tree: ".example.org", uri: "spiffe://badexample.org/web", permitted: "refused", excluded: "allowed" },
    { tree: "example.org", uri: "spiffe://partner.test/example.org", permitted: "refused", excluded: "allowed" },
    {
      tree: "example.org",
      uri: "spiffe://partner.test/x?spiffe://example.org/",
      permitted: "refused",
      excluded: "allowed",
    },
    { tree: "example.org", uri: "https://example.org:8443/web", permitted: "allowed", excluded: "refused" },
    { tree: "example.org", uri: "spiffe://example.org", permitted: "allowed", excluded: "refused" },
    { tree: "example.org", uri: "urn:example.org", permitted: "refused", excluded: "refused" },
    { tree: "example.org", uri: "spiffe://user@example.org/web", permitted: "refused", excluded: "refused" },
    { tree: "example.org", uri: "spiffe://partner.test\\@example.org/web", permitted: "refused", excluded: "refused" },
    { tree: "example.org", uri: "spiffe://[fe80::1%25eth0]/web", permitted: "refused", excluded: "refused" },
    { tree: "example.org", uri: "", permitted: "refused", excluded: "refused" },
    { tree: "", uri: "spiffe://example.org/web", permitted: "refused", excluded: "allowed" },
  ])("$uri under $tree: $permitted when permitted, $excluded when excluded", ({ tree, uri, permitted, excluded }) => {
    expect(verdict({ permitted: [uriName(tree)] }, { uris: [uri] })).toBe(permitted);
    expect(verdict({ excluded: [uriName(tree)] }, { uris: [uri] })).toBe(excluded);
  });
});

describe("T-X2 DNS names", () => {
  test.each([
    { tree: "example.org", name: "example.org", permitted: "allowed", excluded: "refused" },
    { tree: "example.org", name: "web.example.org", permitted: "allowed", excluded: "refused" },
    { tree: "example.org", name: "WEB.EXAMPLE.ORG", permitted: "allowed", excluded: "refused" },
    { tree: "Example.Org", name: "web.example.org", permitted: "allowed", excluded: "refused" },
    { tree: "example.org", name: "badexample.org", permitted: "refused", excluded: "allowed" },
    { tree: "example.org", name: "org", permitted: "refused", excluded: "allowed" },
    { tree: "example.org", name: "example.org.evil.test", permitted: "refused", excluded: "allowed" },
    { tree: "example.org", name: "", permitted: "refused", excluded: "allowed" },
    { tree: "", name: "anything.test", permitted: "allowed", excluded: "refused" },
    { tree: ".example.org", name: "web.example.org", permitted: "allowed", excluded: "refused" },
    { tree: ".example.org", name: "example.org", permitted: "refused", excluded: "allowed" },
    { tree: "example.org", name: "*.example.org", permitted: "allowed", excluded: "refused" },
    { tree: ".example.org", name: "*.example.org", permitted: "allowed", excluded: "refused" },
    { tree: "example.org", name: "*.org", permitted: "refused", excluded: "refused" },
    { tree: "web.example.org", name: "*.example.org", permitted: "refused", excluded: "refused" },
    { tree: ".web.example.org", name: "*.example.org", permitted: "refused", excluded: "refused" },
    { tree: "a.web.example.org", name: "*.example.org", permitted: "refused", excluded: "allowed" },
    { tree: "other.test", name: "*.example.org", permitted: "refused", excluded: "allowed" },
  ])("$name under $tree: $permitted when permitted, $excluded when excluded", ({ tree, name, permitted, excluded }) => {
    expect(verdict({ permitted: [dnsName(tree)] }, { dnsNames: [name] })).toBe(permitted);
    expect(verdict({ excluded: [dnsName(tree)] }, { dnsNames: [name] })).toBe(excluded);
  });
});

describe("T-X2 other names", () => {
  const ten = ipRange(10, 0, 0, 0, 255, 0, 0, 0);
  const v6 = ipRange(0x20, 1, ...new Array(14).fill(0), 0xff, 0xff, ...new Array(14).fill(0));
  test.each([
    { what: "an address in the range", tree: ten, ip: [10, 1, 2, 3], permitted: "allowed", excluded: "refused" },
    { what: "an address outside", tree: ten, ip: [11, 1, 2, 3], permitted: "refused", excluded: "allowed" },
    {
      what: "an IPv6 address where IPv4 is named",
      tree: ten,
      ip: new Array(16).fill(10),
      permitted: "refused",
      excluded: "allowed",
    },
    {
      what: "an IPv6 address in the range",
      tree: v6,
      ip: [0x20, 1, ...new Array(14).fill(9)],
      permitted: "allowed",
      excluded: "refused",
    },
  ])("$what: $permitted when permitted, $excluded when excluded", ({ tree, ip, permitted, excluded }) => {
    const names = { ipAddresses: [Buffer.from(ip)] };
    expect(verdict({ permitted: [tree] }, names)).toBe(permitted);
    expect(verdict({ excluded: [tree] }, names)).toBe(excluded);
  });

  const spiffe = directoryName({ organization: "SPIFFE" });
  test.each([
    { what: "the same name", subject: { organization: "SPIFFE" }, permitted: "allowed", excluded: "refused" },
    {
      what: "a name below",
      subject: { organization: "SPIFFE", commonName: "x" },
      permitted: "allowed",
      excluded: "refused",
    },
    { what: "another name", subject: { organization: "OTHER" }, permitted: "refused", excluded: "allowed" },
    { what: "no name", subject: {}, permitted: "allowed", excluded: "allowed" },
  ])("the subject is $what: $permitted when permitted, $excluded when excluded", ({ subject, permitted, excluded }) => {
    const names = { subject: encodeName(subject) };
    expect(verdict({ permitted: [spiffe] }, names)).toBe(permitted);
    expect(verdict({ excluded: [spiffe] }, names)).toBe(excluded);
  });

  test("names of kinds that cannot be compared are refused beside a constraint of directories", () => {
    expect(verdict({ excluded: [spiffe] }, { otherNames: 1 })).toBe("refused");
    expect(verdict({ excluded: [dnsName("x")] }, { otherNames: 1 })).toBe("allowed");
  });

  test("X509-16 a constraint of a kind that is not understood refuses everything, and is not ignored", () => {
    expect(verdict({ permitted: [emailName("example.org")] }, {})).toBe("refused");
    expect(
      verdict({ excluded: [explicit(0, encode(0x06, Buffer.from([42])))] }, { uris: ["spiffe://example.org/web"] }),
    ).toBe("refused");
  });
});

test("T-X2 permitted trees add up, an excluded one wins, and kinds do not mix", () => {
  const trees: Trees = {
    permitted: [uriName("a.test"), uriName("b.test"), dnsName("a.test")],
    excluded: [uriName("b.test")],
  };
  expect(verdict(trees, { uris: ["spiffe://a.test/x"] })).toBe("allowed");
  expect(verdict(trees, { uris: ["spiffe://b.test/x"] })).toBe("refused");
  expect(verdict(trees, { uris: ["spiffe://a.test/x", "spiffe://c.test/x"] })).toBe("refused");
  expect(verdict(trees, { dnsNames: ["b.test"] })).toBe("refused");
  expect(verdict({ permitted: [uriName("a.test")] }, { dnsNames: ["anything"] })).toBe("allowed");
});

describe("shape", () => {
  const MALFORMED = refusal("invalid", "asn1-malformed");
  const withLimit = (tag: number) =>
    sequence(explicit(0, sequence(uriName("x"), encode(contextTag(tag), Buffer.from([1])))));
  test.each([
    { what: "a minimum", value: withLimit(0) },
    { what: "a maximum", value: withLimit(1) },
    { what: "something else than trees", value: sequence(encodeUnsigned(1n)) },
    { what: "a range of nine octets", value: sequence(explicit(0, sequence(encode(contextTag(7), Buffer.alloc(9))))) },
  ])("$what is refused", ({ value }) => {
    expect(faultOf(() => readNameConstraints(value))).toMatchObject(MALFORMED);
  });
});
