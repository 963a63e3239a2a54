import { describe, expect, test } from "vitest";
import { brokerAddress, endpointAddress, parseEndpointAddress } from "../../../src/client/address.ts";
import { faultOf, refusal } from "../../support/faults.ts";

const NONE = {};
const long = (bytes: number): string => `/${"a".repeat(bytes - 1)}`;

describe("WEP-11 without explicit configuration SPIFFE_ENDPOINT_SOCKET names the endpoint", () => {
  const environment = { SPIFFE_ENDPOINT_SOCKET: "unix:///env.sock" };

  test("an explicit address wins over the variable", () => {
    expect(endpointAddress("unix:///arg.sock", environment)).toEqual({ transport: "unix", path: "/arg.sock" });
  });

  test("the variable alone is used", () => {
    expect(endpointAddress(undefined, environment)).toEqual({ transport: "unix", path: "/env.sock" });
  });

  test("with neither, no well-known path is guessed", () => {
    expect(() => endpointAddress(undefined, NONE)).toThrow(
      expect.objectContaining(refusal("invalid", "endpoint-address-missing")),
    );
  });

  test("a malformed explicit address does not fall back to the variable", () => {
    expect(() => endpointAddress("", environment)).toThrow(
      expect.objectContaining(refusal("invalid", "endpoint-address-scheme")),
    );
  });
});

describe("a valid endpoint address", () => {
  test.each([
    { id: "WEP-12", text: "unix:///a.sock", address: { transport: "unix", path: "/a.sock" } },
    { id: "WEP-12", text: "tcp://127.0.0.1:8000", address: { transport: "tcp", host: "127.0.0.1", port: 8000 } },
    { id: "WEP-13", text: "unix:/a.sock", address: { transport: "unix", path: "/a.sock" } },
    { id: "WEP-14", text: "unix:///a%20b.sock", address: { transport: "unix", path: "/a b.sock" } },
    { id: "WEP-14", text: `unix://${long(107)}`, address: { transport: "unix", path: long(107) } },
    { id: "WEP-16", text: "tcp://[::1]:8000", address: { transport: "tcp", host: "::1", port: 8000 } },
    { id: "WEP-17", text: "tcp://127.0.0.1:65535", address: { transport: "tcp", host: "127.0.0.1", port: 65535 } },
    { id: "WEP-17", text: "tcp://127.0.0.1:1", address: { transport: "tcp", host: "127.0.0.1", port: 1 } },
  ])("$id $text", ({ text, address }) => {
    expect(parseEndpointAddress(text)).toEqual(address);
  });
});

describe("an invalid endpoint address", () => {
  test.each([
    { id: "WEP-12", text: "/a.sock", code: "endpoint-address-scheme" },
    { id: "WEP-12", text: "http://127.0.0.1:80", code: "endpoint-address-scheme" },
    { id: "WEP-12", text: "npipe:x", code: "endpoint-address-scheme" },
    { id: "WEP-12", text: "unix-abstract:x", code: "endpoint-address-scheme" },
    { id: "WEP-12", text: "", code: "endpoint-address-scheme" },
    { id: "WEP-12", text: " unix:///a.sock", code: "endpoint-address-scheme" },
    { id: "WEP-13", text: "unix://host/a.sock", code: "endpoint-address-authority" },
    { id: "WEP-13", text: "unix://foo", code: "endpoint-address-authority" },
    { id: "WEP-14", text: "unix:a.sock", code: "endpoint-address-path" },
    { id: "WEP-14", text: "unix:./a", code: "endpoint-address-path" },
    { id: "WEP-14", text: "unix://", code: "endpoint-address-authority" },
    { id: "WEP-14", text: "unix:", code: "endpoint-address-path" },
    { id: "WEP-14", text: "unix:///", code: "endpoint-address-path" },
    { id: "WEP-14", text: `unix://${long(108)}`, code: "endpoint-address-path" },
    { id: "WEP-14", text: "unix:///a%00b", code: "endpoint-address-path" },
    { id: "WEP-14", text: "unix:///a%zz", code: "endpoint-address-path" },
    { id: "WEP-15", text: "unix:///a?x", code: "endpoint-address-extra" },
    { id: "WEP-15", text: "unix:///a#f", code: "endpoint-address-extra" },
    { id: "WEP-15", text: "unix://u@/a", code: "endpoint-address-authority" },
    { id: "WEP-16", text: "tcp://localhost:8000", code: "endpoint-address-host" },
    { id: "WEP-16", text: "tcp://:8000", code: "endpoint-address-host" },
    { id: "WEP-16", text: "tcp://[fe80::1%25eth0]:8000", code: "endpoint-address-host" },
    { id: "WEP-16", text: "tcp://127.1:8000", code: "endpoint-address-host" },
    { id: "WEP-16", text: "tcp://::1:8000", code: "endpoint-address-host" },
    { id: "WEP-16", text: "tcp:127.0.0.1:8000", code: "endpoint-address-host" },
    { id: "WEP-17", text: "tcp://127.0.0.1", code: "endpoint-address-port" },
    { id: "WEP-17", text: "tcp://127.0.0.1:", code: "endpoint-address-port" },
    { id: "WEP-17", text: "tcp://127.0.0.1:65536", code: "endpoint-address-port" },
    { id: "WEP-17", text: "tcp://127.0.0.1:0", code: "endpoint-address-port" },
    { id: "WEP-18", text: "tcp://127.0.0.1:8000/foo", code: "endpoint-address-extra" },
    { id: "WEP-18", text: "tcp://127.0.0.1:8000/", code: "endpoint-address-extra" },
    { id: "WEP-18", text: "tcp://127.0.0.1:8000?q", code: "endpoint-address-extra" },
    { id: "WEP-18", text: "tcp://127.0.0.1:8000#f", code: "endpoint-address-extra" },
    { id: "WEP-18", text: "tcp://u@127.0.0.1:8000", code: "endpoint-address-extra" },
  ])("$id $text is refused", ({ text, code }) => {
    expect(() => parseEndpointAddress(text)).toThrow(expect.objectContaining(refusal("invalid", code)));
  });
});

describe("BEP-10 without explicit configuration SPIFFE_BROKER_SOCKET names the broker endpoint", () => {
  const environment = { SPIFFE_BROKER_SOCKET: "unix:///env.sock", SPIFFE_ENDPOINT_SOCKET: "unix:///workload.sock" };

  test("an explicit address wins over the variable", () => {
    expect(brokerAddress("unix:///arg.sock", environment)).toEqual({ transport: "unix", path: "/arg.sock" });
  });

  test("the variable alone is used", () => {
    expect(brokerAddress(undefined, environment)).toEqual({ transport: "unix", path: "/env.sock" });
  });

  test("with neither, nothing is guessed, and the Workload API's variable does not count", () => {
    const only = { SPIFFE_ENDPOINT_SOCKET: "unix:///workload.sock" };
    expect(() => brokerAddress(undefined, only)).toThrow(
      expect.objectContaining(refusal("invalid", "endpoint-address-missing")),
    );
  });

  test("a malformed explicit address does not fall back to the variable", () => {
    expect(() => brokerAddress("", environment)).toThrow(
      expect.objectContaining(refusal("invalid", "endpoint-address-scheme")),
    );
  });
});

describe("a valid address of a broker endpoint", () => {
  test.each([
    { id: "BEP-11 BEP-12b", text: "unix:///a.sock", address: { transport: "unix", path: "/a.sock" } },
    { id: "BEP-12a", text: "unix:/a.sock", address: { transport: "unix", path: "/a.sock" } },
    { id: "BEP-12b", text: `unix://${long(107)}`, address: { transport: "unix", path: long(107) } },
    { id: "BEP-11 BEP-13", text: "tcp://127.0.0.1:8000", address: { transport: "tcp", host: "127.0.0.1", port: 8000 } },
    { id: "BEP-13", text: "tcp://[::1]:1", address: { transport: "tcp", host: "::1", port: 1 } },
    {
      id: "BEP-13",
      text: "tcp://broker.example.com:8443",
      address: { transport: "tcp", host: "broker.example.com", port: 8443 },
    },
    { id: "BEP-13", text: "tcp://localhost:8443", address: { transport: "tcp", host: "localhost", port: 8443 } },
    { id: "BEP-14a", text: "tcp://127.0.0.1:65535", address: { transport: "tcp", host: "127.0.0.1", port: 65535 } },
  ])("$id $text", ({ text, address }) => {
    expect(brokerAddress(text)).toEqual(address);
  });
});

describe("an invalid address of a broker endpoint", () => {
  test.each([
    { id: "BEP-11", text: "/a.sock", code: "endpoint-address-scheme" },
    { id: "BEP-11", text: "https://broker.example.com:8443", code: "endpoint-address-scheme" },
    { id: "BEP-11", text: "dns:broker.example.com:8443", code: "endpoint-address-scheme" },
    { id: "BEP-12a", text: "unix://host/a.sock", code: "endpoint-address-authority" },
    { id: "BEP-12a", text: "unix://foo", code: "endpoint-address-authority" },
    { id: "BEP-12b", text: "unix:a.sock", code: "endpoint-address-path" },
    { id: "BEP-12b", text: "unix:./a", code: "endpoint-address-path" },
    { id: "BEP-12b", text: "unix:", code: "endpoint-address-path" },
    { id: "BEP-12b", text: `unix://${long(108)}`, code: "endpoint-address-path" },
    { id: "BEP-12c", text: "unix:///a?x", code: "endpoint-address-extra" },
    { id: "BEP-12c", text: "unix:///a#f", code: "endpoint-address-extra" },
    { id: "BEP-13", text: "tcp://:8443", code: "endpoint-address-host" },
    { id: "BEP-13", text: "tcp:broker.example.com:8443", code: "endpoint-address-host" },
    { id: "BEP-13", text: "tcp://bro ker:8443", code: "endpoint-address-host" },
    { id: "BEP-13", text: "tcp://broker..example.com:8443", code: "endpoint-address-host" },
    { id: "BEP-13", text: "tcp://-broker.example.com:8443", code: "endpoint-address-host" },
    { id: "BEP-13", text: `tcp://${"a.".repeat(127)}com:8443`, code: "endpoint-address-host" },
    { id: "BEP-13", text: "tcp://127.1:8443", code: "endpoint-address-host" },
    { id: "BEP-13", text: "tcp://[broker.example.com]:8443", code: "endpoint-address-host" },
    { id: "BEP-13", text: "tcp://[127.0.0.1]:8443", code: "endpoint-address-host" },
    { id: "BEP-14a", text: "tcp://broker.example.com", code: "endpoint-address-port" },
    { id: "BEP-14a", text: "tcp://broker.example.com:", code: "endpoint-address-port" },
    { id: "BEP-14a", text: "tcp://broker.example.com:0", code: "endpoint-address-port" },
    { id: "BEP-14a", text: "tcp://broker.example.com:65536", code: "endpoint-address-port" },
    { id: "BEP-14b", text: "tcp://broker.example.com:8443/", code: "endpoint-address-extra" },
    { id: "BEP-14b", text: "tcp://broker.example.com:8443/foo", code: "endpoint-address-extra" },
    { id: "BEP-14b", text: "tcp://broker.example.com:8443?q", code: "endpoint-address-extra" },
    { id: "BEP-14b", text: "tcp://broker.example.com:8443#f", code: "endpoint-address-extra" },
    { id: "BEP-14b", text: "tcp://u@broker.example.com:8443", code: "endpoint-address-extra" },
  ])("$id $text is refused", ({ text, code }) => {
    const found = faultOf(() => brokerAddress(text));
    expect(found).toMatchObject(refusal("invalid", code));
    expect(found.message).toMatch(/^broker endpoint /);
  });
});
