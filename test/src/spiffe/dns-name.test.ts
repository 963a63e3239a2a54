import { describe, expect, test } from "vitest";
import { checkDnsNames, checkWildcardOverlap } from "../../../src/spiffe/dns-name.ts";
import { faultOf, refusal } from "../../support/faults.ts";

const label = (length: number): string => "a".repeat(length);

describe("names", () => {
  test.each([
    "a",
    "localhost",
    "web.example.org",
    "A.example",
    "*.example.org",
    "*.com",
    "1.2.3.4",
    "a_b.example",
    "_sip._tcp.example",
    "xn--bcher-kva.example",
    "xn--ls8h",
    "0",
    label(63),
    `${label(63)}.${label(63)}.${label(63)}.${label(61)}`,
    `${"a.".repeat(126)}a`,
  ])("%s is accepted, as SPIRE accepts it", (name) => {
    expect(checkDnsNames([name])).toEqual([name]);
  });

  test.each([
    { name: "", message: "empty or only whitespace" },
    { name: "\t", message: "empty or only whitespace" },
    { name: "*.", message: "empty or only whitespace" },
    { name: "bücher", message: "name must be ascii" },
    { name: "**", message: "too many wildcards" },
    { name: "*.*.a", message: "too many wildcards" },
    { name: "*", message: "wildcard must be first label" },
    { name: "*a", message: "wildcard must be first label" },
    { name: "a.*", message: "wildcard must be first label" },
    { name: "a.", message: "domain ends with dot" },
    { name: "*.a.", message: "domain ends with dot" },
    { name: "a..b", message: "idna error\nidna: invalid label " },
    { name: ".a", message: "idna error\nidna: invalid label " },
    { name: "-a", message: "idna error\nidna: invalid label " },
    { name: "a-", message: "idna error\nidna: invalid label " },
    { name: "ab--cd", message: "idna error\nidna: invalid label " },
    { name: "xn--a", message: "idna error\nidna: invalid label " },
    { name: "xn--", message: "idna error\nidna: invalid label " },
    { name: "XN--bcher-kva", message: "idna error\nidna: invalid label " },
    { name: "xn--zzzz!!", message: "idna error\nidna: invalid label " },
    { name: label(64), message: "idna error\nidna: invalid label " },
    { name: `${"a.".repeat(126)}ab`, message: "idna error\nidna: invalid label " },
  ])("T-S7 $name is refused, in SPIRE's words: $message", ({ name, message }) => {
    const fault = faultOf(() => checkDnsNames(["sound.example", name]));
    expect(fault).toMatchObject(refusal("invalid", "dns-name"));
    expect(fault.message.startsWith(message)).toBe(true);
  });

  test.each(["a b", "a/b", "a@b", "a:b", "a\0b", "a,b", 'a"b', "a\nb", "~a", "!a", " a", "a ", "*. a", "%61"])(
    "T-S5 T-X3 %j is refused, other than by SPIRE",
    (name) => {
      expect(faultOf(() => checkDnsNames([name]))).toMatchObject(refusal("invalid", "dns-name"));
    },
  );
});

describe("wildcards beside the names they cover", () => {
  test.each([
    { names: ["a.example", "*.example"], overlap: true },
    { names: ["*.example", "a.example"], overlap: true },
    { names: ["a.b.example", "*.example"], overlap: false },
    { names: ["example", "*.example"], overlap: false },
    { names: ["a.example", "b.example"], overlap: false },
    { names: ["*.example", "*.a.example"], overlap: false },
    { names: [], overlap: false },
  ])("$names: $overlap", ({ names, overlap }) => {
    if (!overlap) checkWildcardOverlap(names);
    else
      expect(faultOf(() => checkWildcardOverlap(names))).toMatchObject({
        ...refusal("invalid", "dns-name-overlap"),
        message: 'name "a.example" overlaps with an existing wildcard name in the list: wildcard overlap',
      });
  });
});
