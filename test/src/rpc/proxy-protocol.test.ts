import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { canonicalAddress, readProxyHeader } from "../../../src/rpc/proxy-protocol.ts";
import { faultOf, refusal } from "../../support/faults.ts";

const V2 = Buffer.from([0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
const HELLO = Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00]);

const v1 = (line: string): Buffer => Buffer.from(`${line}\r\n`, "latin1");

function v2(command: number, family: number, body: Uint8Array, length = body.length): Buffer {
  const fixed = Buffer.from([command, family, length >> 8, length & 255]);
  return Buffer.concat([V2, fixed, body]);
}

const IPV4 = Buffer.from([203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x67, 0x1f, 0x91]);
const IPV6 = Buffer.concat([
  Buffer.from("20010db8000000000000000000000007", "hex"),
  Buffer.from("20010db8000000000000000000000001", "hex"),
  Buffer.from([0x12, 0x67, 0x1f, 0x91]),
]);

describe("a PROXY header", () => {
  test.each([
    ["v1 IPv4", v1("PROXY TCP4 203.0.113.7 192.0.2.1 4711 8081"), "203.0.113.7"],
    ["v1 IPv6", v1("PROXY TCP6 2001:DB8:0:0::7 2001:db8::1 4711 8081"), "2001:db8::7"],
    ["v1 IPv4 inside IPv6", v1("PROXY TCP6 ::ffff:203.0.113.7 2001:db8::1 4711 8081"), "203.0.113.7"],
    ["v2 IPv4", v2(0x21, 0x11, IPV4), "203.0.113.7"],
    ["v2 IPv6", v2(0x21, 0x21, IPV6), "2001:db8::7"],
    ["v2 with more that the proxy tells", v2(0x21, 0x11, Buffer.concat([IPV4, Buffer.alloc(4084, 4)])), "203.0.113.7"],
  ])("%s names the client, and what follows is left alone", (_, header, address) => {
    const expected = { length: header.length, source: { address, port: 4711 } };
    expect(readProxyHeader(header)).toEqual(expected);
    expect(readProxyHeader(Buffer.concat([header, HELLO]))).toEqual(expected);
  });

  test.each([
    ["v1 UNKNOWN", v1("PROXY UNKNOWN")],
    ["v1 UNKNOWN with anything behind it", v1("PROXY UNKNOWN ffff::1 ffff::2 65535 65535")],
    ["v2 LOCAL", v2(0x20, 0x00, Buffer.alloc(0))],
    ["v2 LOCAL with an address to be skipped", v2(0x20, 0x11, IPV4)],
  ])("%s names nobody", (_, header) => {
    expect(readProxyHeader(header)).toEqual({ length: header.length });
  });

  test.each([
    ["a TLS client", HELLO],
    ["HTTP", Buffer.from("PRI * HTTP/2.0")],
    ["version 2 with one byte wrong", Buffer.concat([V2.subarray(0, 11), Buffer.from([0]), Buffer.alloc(20)])],
  ])("%s sends none", (_, bytes) => expect(readProxyHeader(bytes)).toBe("absent"));

  test("any beginning of one is unfinished, never wrong", () => {
    for (const header of [v1("PROXY TCP4 203.0.113.7 192.0.2.1 4711 8081"), v2(0x21, 0x21, IPV6)])
      for (let length = 1; length < header.length; length += 1)
        expect(readProxyHeader(header.subarray(0, length))).toBe("unfinished");
  });

  test.each([
    ["another first word", v1("PROXYX TCP4 203.0.113.7 192.0.2.1 1 2")],
    ["an unknown family", v1("PROXY TCP5 203.0.113.7 192.0.2.1 1 2")],
    ["an address of the other family", v1("PROXY TCP4 2001:db8::1 192.0.2.1 1 2")],
    ["an address with a zone", v1("PROXY TCP6 fe80::1%eth0\u0000 2001:db8::1 1 2")],
    ["an address that is none", v1("PROXY TCP4 203.0.113.256 192.0.2.1 1 2")],
    ["a port that is too large", v1("PROXY TCP4 203.0.113.7 192.0.2.1 65536 2")],
    ["a port with a sign", v1("PROXY TCP4 203.0.113.7 192.0.2.1 +1 2")],
    ["a port with a leading zero", v1("PROXY TCP4 203.0.113.7 192.0.2.1 01 2")],
    ["a word too few", v1("PROXY TCP4 203.0.113.7 192.0.2.1 1")],
    ["a word too many", v1("PROXY TCP4 203.0.113.7 192.0.2.1 1 2 3")],
    ["two spaces", v1("PROXY  TCP4 203.0.113.7 192.0.2.1 1 2")],
    ["a line without end", Buffer.from(`PROXY UNKNOWN ${"x".repeat(200)}`)],
    ["a line of 108 bytes", v1(`PROXY UNKNOWN ${"x".repeat(92)}`)],
    ["another version", v2(0x11, 0x11, IPV4)],
    ["an unknown command", v2(0x22, 0x11, IPV4)],
    ["no family", v2(0x21, 0x00, Buffer.alloc(0))],
    ["UDP", v2(0x21, 0x12, IPV4)],
    ["a Unix socket", v2(0x21, 0x31, Buffer.alloc(216))],
    ["IPv4 cut short", v2(0x21, 0x11, IPV4.subarray(0, 11))],
    ["IPv6 with the room of IPv4", v2(0x21, 0x21, IPV4)],
    ["64 KiB announced", v2(0x21, 0x11, IPV4, 0xffff)],
  ])("T-X9 %s is refused", (_, header) => {
    expect(faultOf(() => readProxyHeader(header))).toMatchObject(refusal("invalid", "proxy-header"));
  });

  test("T-X9 no bytes do more than be refused, and never make an address that is none", () => {
    const starts = fc.constantFrom(
      Buffer.alloc(0),
      Buffer.from("PROXY "),
      V2,
      Buffer.concat([V2, Buffer.from([0x21])]),
    );
    fc.assert(
      fc.property(starts, fc.uint8Array({ maxLength: 300 }), (start, rest) => {
        const bytes = Buffer.concat([start, rest]);
        try {
          const header = readProxyHeader(bytes);
          if (typeof header === "string") return;
          expect(header.length).toBeLessThanOrEqual(bytes.length);
          if (header.source !== undefined) expect(canonicalAddress(header.source.address)).toBe(header.source.address);
        } catch (error) {
          expect(error).toMatchObject(refusal("invalid", "proxy-header"));
        }
      }),
    );
  });
});

test("an address has one spelling", () => {
  for (const same of ["2001:db8::1", "2001:DB8:0:0:0:0:0:1", "2001:0db8::0001"])
    expect(canonicalAddress(same)).toBe("2001:db8::1");
  expect(canonicalAddress("::FFFF:c000:0201")).toBe("192.0.2.1");
  expect(canonicalAddress("fe80::1%eth0")).toBe("fe80::1");
  expect(canonicalAddress("192.0.2.1")).toBe("192.0.2.1");
});
