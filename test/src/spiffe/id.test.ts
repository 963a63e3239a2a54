import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  checkMemberId,
  checkWorkloadId,
  isAgentId,
  isReserved,
  isSpiffeId,
  MAX_ID_BYTES,
  parseSpiffeId,
  parseTrustDomain,
  parseTrustDomainOrId,
  pathOf,
  type SpiffeId,
  spiffeId,
  trustDomainId,
  trustDomainOf,
} from "../../../src/spiffe/id.ts";
import { faultOf } from "../../support/faults.ts";
import { vectors } from "../../support/vectors.ts";

const A = parseTrustDomain("example.org");
const TRUST_DOMAIN_CHARACTERS = [..."abcdefghijklmnopqrstuvwxyz0123456789.-_"];
const SEGMENT_CHARACTERS = [...TRUST_DOMAIN_CHARACTERS, ..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
/** As they come out of a decoder: one character per byte, and the decoded form of bytes that stand for themselves only. */
const BYTES = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte)).filter(
  (character) => character !== "/",
);

/** A path of exactly so many bytes, of segments of 63. */
function pathOfBytes(length: number): string {
  return Array.from({ length }, (_, i) => (i % 64 === 0 && i < length - 1 ? "/" : "a")).join("");
}

describe("vectors", () => {
  test.each(vectors("spiffe-id.valid.txt"))("$group: $text is accepted and kept byte for byte", ({ text }) => {
    expect(parseSpiffeId(text)).toBe(text);
  });

  test.each(vectors("spiffe-id.invalid.txt"))("$group: $text is refused, never normalised", ({ text }) => {
    expect(faultOf(() => parseSpiffeId(text))).toMatchObject({ kind: "invalid" });
    expect(isSpiffeId(text)).toBe(false);
  });
});

describe("reasons are those of go-spiffe", () => {
  test.each([
    { text: "", message: "cannot be empty" },
    { text: "http://example.org/a", message: "scheme is missing or invalid" },
    { text: "SPIFFE://example.org/a", message: "scheme is missing or invalid" },
    { text: "spiffe:///a", message: "trust domain is missing" },
    {
      text: "spiffe://example.org:1/a",
      message: "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
    },
    { text: "spiffe://example.org//a", message: "path cannot contain empty segments" },
    { text: "spiffe://example.org/../a", message: "path cannot contain dot segments" },
    { text: "spiffe://example.org/a/..", message: "path cannot contain dot segments" },
    { text: "spiffe://example.org/a/", message: "path cannot have a trailing slash" },
    { text: "spiffe://example.org/", message: "path cannot have a trailing slash" },
    {
      text: "spiffe://example.org/a%20",
      message: "path segment characters are limited to letters, numbers, dots, dashes, and underscores",
    },
    { text: "spiffe://example.org/a//b/", message: "path cannot contain empty segments" },
    { text: "spiffe://example.org//", message: "path cannot contain empty segments" },
    {
      text: "spiffe://example.org/a%/../b",
      message: "path segment characters are limited to letters, numbers, dots, dashes, and underscores",
    },
  ])("ID-01 ID-12 ID-14 $text: $message", ({ text, message }) => {
    expect(faultOf(() => parseSpiffeId(text)).message).toBe(message);
  });
});

describe("characters", () => {
  test("ID-08 of 255 bytes in a trust domain exactly 39 are accepted", () => {
    const accepted = BYTES.filter((character) => isSpiffeId(`spiffe://td${character}/p`));
    expect(accepted.sort()).toEqual([...TRUST_DOMAIN_CHARACTERS].sort());
    expect(accepted).toHaveLength(39);
  });

  test("ID-15 of 255 bytes in a path segment exactly 65 are accepted", () => {
    const accepted = BYTES.filter((character) => isSpiffeId(`spiffe://td/p${character}`));
    expect(accepted.sort()).toEqual([...SEGMENT_CHARACTERS].sort());
    expect(accepted).toHaveLength(65);
  });

  test("ID-08 ID-15 no character beyond ASCII is accepted", () => {
    for (let code = 0x80; code <= 0xffff; code++) {
      const character = String.fromCharCode(code);
      if (isSpiffeId(`spiffe://td${character}/p`) || isSpiffeId(`spiffe://td/p${character}`)) {
        expect.fail(`U+${code.toString(16)} is accepted`);
      }
    }
  });
});

describe("lengths", () => {
  test.each([2047, 2048])("ID-17 an ID of %i bytes is accepted and kept", (length) => {
    const text = `spiffe://example.org${pathOfBytes(length - "spiffe://example.org".length)}`;
    expect(text).toHaveLength(length);
    expect(parseSpiffeId(text)).toBe(text);
    expect(spiffeId(A, pathOf(parseSpiffeId(text)))).toBe(text);
  });

  test("ID-18 an ID of 2049 bytes is refused, parsed or joined", () => {
    const path = pathOfBytes(MAX_ID_BYTES + 1 - "spiffe://example.org".length);
    const text = `spiffe://example.org${path}`;
    expect(text).toHaveLength(2049);
    expect(faultOf(() => parseSpiffeId(text))).toMatchObject({ kind: "invalid", code: "spiffe-id-too-long" });
    expect(faultOf(() => spiffeId(A, path))).toMatchObject({ kind: "invalid", code: "spiffe-id-too-long" });
  });

  test("ID-19 T-S7 a trust domain has 1 to 255 bytes, and an ID fills up to 2048 after it", () => {
    const longest = "a".repeat(255);
    expect(parseTrustDomain("a")).toBe("a");
    expect(parseTrustDomain(longest)).toBe(longest);
    expect(faultOf(() => parseTrustDomain(""))).toMatchObject({ kind: "invalid", code: "trust-domain-missing" });
    expect(faultOf(() => parseTrustDomain(`${longest}a`))).toMatchObject({ code: "trust-domain-too-long" });
    expect(faultOf(() => parseSpiffeId(`spiffe://${longest}a/p`))).toMatchObject({ code: "trust-domain-too-long" });
    const full = `spiffe://${longest}${pathOfBytes(2048 - 9 - 255)}`;
    expect(parseSpiffeId(full)).toHaveLength(2048);
  });
});

test("ID-10 names that look like addresses are compared as they are written", () => {
  expect(parseTrustDomain("1.2.3.4")).not.toBe(parseTrustDomain("01.2.3.4"));
  expect(trustDomainOf(parseSpiffeId("spiffe://01.2.3.4/a"))).toBe("01.2.3.4");
});

test("ID-16 a path of 200 segments is accepted, and a shorter path is another identity", () => {
  const path = "/x".repeat(200);
  expect(pathOf(parseSpiffeId(`spiffe://example.org${path}`))).toBe(path);
  expect(parseSpiffeId("spiffe://example.org/ns/x")).not.toBe(parseSpiffeId("spiffe://example.org/ns/x/y"));
});

test("ID-20 paths that differ in case are different identities", () => {
  expect(parseSpiffeId("spiffe://example.org/A")).not.toBe(parseSpiffeId("spiffe://example.org/a"));
});

const segment = fc
  .string({ unit: fc.constantFrom(...SEGMENT_CHARACTERS), minLength: 1, maxLength: 20 })
  .filter((text) => text !== "." && text !== "..");
const trustDomain = fc.string({ unit: fc.constantFrom(...TRUST_DOMAIN_CHARACTERS), minLength: 1, maxLength: 60 });

test("T-S2 ID-13 what is joined from parts parses to the same parts and prints the same bytes", () => {
  fc.assert(
    fc.property(trustDomain, fc.array(segment, { maxLength: 20 }), (name, segments) => {
      const path = segments.map((one) => `/${one}`).join("");
      const id = spiffeId(parseTrustDomain(name), path);
      expect(parseSpiffeId(id)).toBe(id);
      expect(trustDomainOf(id)).toBe(name);
      expect(pathOf(id)).toBe(path);
      expect(parseTrustDomainOrId(id)).toBe(name);
    }),
    { numRuns: 1000 },
  );
});

test("T-S2 a text is accepted exactly when the grammar of the standard holds, and then kept", () => {
  const grammar = /^spiffe:\/\/[a-z0-9._-]{1,255}(?:\/(?!\.{1,2}(?:\/|$))[A-Za-z0-9._-]+)*$/;
  const piece = fc.constantFrom(
    "spiffe://",
    "a",
    "A",
    ".",
    "..",
    "/",
    "//",
    "%2e",
    ":",
    "@",
    "?",
    "#",
    "é",
    " ",
    "\0",
    "-",
    "_",
    "org",
  );
  const text = fc.oneof(
    fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join("")),
    fc.array(piece, { maxLength: 8 }).map((pieces) => `spiffe://td/${pieces.join("")}`),
  );
  fc.assert(
    fc.property(text, (candidate) => {
      const expected = candidate.length <= MAX_ID_BYTES && grammar.test(candidate);
      expect(isSpiffeId(candidate)).toBe(expected);
      if (expected) expect(parseSpiffeId(candidate)).toBe(candidate);
    }),
    { numRuns: 5000 },
  );
});

describe("roles", () => {
  const id = (text: string): SpiffeId => parseSpiffeId(text);

  test.each([
    { text: "spiffe://example.org/spire", reserved: true, agent: false },
    { text: "spiffe://example.org/spire/server", reserved: true, agent: false },
    { text: "spiffe://example.org/spire/agent/join_token/abc", reserved: true, agent: true },
    { text: "spiffe://example.org/spire/agent", reserved: true, agent: false },
    { text: "spiffe://example.org/spire-tools", reserved: false, agent: false },
    { text: "spiffe://example.org/web/spire/server", reserved: false, agent: false },
    { text: "spiffe://example.org/SPIRE/server", reserved: false, agent: false },
    { text: "spiffe://example.org/Spire/agent/x", reserved: false, agent: false },
  ])("T-S10 $text: reserved $reserved, agent $agent", ({ text, reserved, agent }) => {
    expect(isReserved(id(text))).toBe(reserved);
    expect(isAgentId(id(text))).toBe(agent);
  });

  test.each([
    "spiffe://example.org/%73pire/server",
    "spiffe://example.org//spire/server",
    "spiffe://example.org/./spire/server",
    "spiffe://example.org/x/../spire/server",
  ])("T-S10 the detour %s to a reserved ID does not parse", (text) => {
    expect(isSpiffeId(text)).toBe(false);
  });

  test.each([
    { text: "spiffe://example.org/web", wrong: undefined },
    {
      text: "spiffe://example.org",
      wrong: `"spiffe://example.org" is not a workload in trust domain "example.org"; path is empty`,
    },
    {
      text: "spiffe://example.org/spire/server",
      wrong: `"spiffe://example.org/spire/server" is not a workload in trust domain "example.org"; path is in the reserved namespace`,
    },
    {
      text: "spiffe://partner.test/web",
      wrong: `"spiffe://partner.test/web" is not a member of trust domain "example.org"`,
    },
  ])("T-S10 X509-05 as a workload, $text: $wrong", ({ text, wrong }) => {
    if (wrong === undefined) checkWorkloadId(id(text), A);
    else expect(faultOf(() => checkWorkloadId(id(text), A))).toMatchObject({ kind: "invalid", message: wrong });
  });

  test.each([
    { text: "spiffe://example.org/spire/server", wrong: undefined },
    {
      text: trustDomainId(A),
      wrong: `"spiffe://example.org" is not a member of trust domain "example.org"; path is empty`,
    },
    {
      text: "spiffe://partner.test/web",
      wrong: `"spiffe://partner.test/web" is not a member of trust domain "example.org"`,
    },
  ])("T-S10 as a member, $text: $wrong", ({ text, wrong }) => {
    if (wrong === undefined) checkMemberId(id(text), A);
    else expect(faultOf(() => checkMemberId(id(text), A))).toMatchObject({ kind: "invalid", message: wrong });
  });
});
