import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseCertificate } from "../../../src/crypto/certificate.ts";
import { dialTls } from "../../../src/rpc/dial.ts";
import { AgentApi, BundleApi } from "../../../src/rpc/protos.ts";
import { validateX509Svid } from "../../../src/spiffe/x509-svid.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { startProxy } from "../../support/proxy.ts";
import { collect, from, startServer, type TestServer } from "../../support/server.ts";

const PROXY = "127.0.0.2";
const STRANGER = "127.0.0.3";

let server: TestServer;
beforeAll(async () => {
  server = await startServer({
    server: {
      audit_log_enabled: true,
      proxy_protocol_trusted_cidrs: [`${PROXY}/32`],
      ratelimit: { attestation: true, signing: true },
    },
  });
});
afterAll(() => server[Symbol.asyncDispose]());

const v1 = (line: string): Buffer => Buffer.from(`${line}\r\n`);

function v2(family: number, source: string): Buffer {
  const signature = Buffer.from("0d0a0d0a000d0a515549540a", "hex");
  const half = Buffer.from(source, "hex");
  const body = Buffer.concat([half, half, Buffer.from([0x12, 0x67, 0x1f, 0x91])]);
  return Buffer.concat([signature, Buffer.from([0x21, family, 0, body.length]), body]);
}

const VIA = { header: v1("PROXY TCP4 203.0.113.7 192.0.2.1 4711 8081"), from: PROXY };

async function dial(port: number) {
  const { x509_authorities } = await server.admin.bundle.GetBundle({});
  const roots = x509_authorities.map(({ asn1 }) => parseCertificate(asn1));
  return dialTls({
    address: "127.0.0.1",
    port,
    verifyServer: (chain) => void validateX509Svid({ chain, authorities: () => roots, at: new Date() }),
    backoff: { firstMs: 50, maxMs: 200 },
  });
}

/** The address that the server sees, by its audit log. */
async function seenAddress(options: { header: Buffer; from: string; inBytes?: boolean }): Promise<unknown> {
  using proxy = await startProxy({ to: server.port, ...options });
  using channel = await dial(proxy.port);
  const calls = () => server.logged("API accessed", { method: "CountBundles" });
  const before = calls().length;
  await faultFrom(channel.client(BundleApi).CountBundles({}));
  return eventually("the call is recorded", () => calls()[before]?.["caller_addr"]);
}

describe("the true address behind a load balancer", () => {
  test.each([
    ["version 1, IPv4", VIA.header, "203.0.113.7:4711"],
    ["version 1, IPv6", v1("PROXY TCP6 2001:DB8::7 2001:db8::1 4711 8081"), "[2001:db8::7]:4711"],
    ["version 2, IPv4", v2(0x11, "cb007107"), "203.0.113.7:4711"],
    ["version 2, IPv6", v2(0x21, "20010db8000000000000000000000007"), "[2001:db8::7]:4711"],
  ])("%s", async (_, header, address) => {
    expect(await seenAddress({ header, from: PROXY })).toBe(address);
  });

  test("a header that comes byte by byte", async () => {
    expect(await seenAddress({ ...VIA, inBytes: true })).toBe("203.0.113.7:4711");
  });

  test.each([
    ["no header", Buffer.alloc(0)],
    ["UNKNOWN", v1("PROXY UNKNOWN")],
    ["LOCAL", Buffer.from("0d0a0d0a000d0a515549540a20000000", "hex")],
  ])("%s: the balancer itself", async (_, header) => {
    expect(await seenAddress({ header, from: PROXY })).toMatch(/^127\.0\.0\.2:\d+$/);
  });

  test("rate limits count it: one client behind the balancer does not hold up another", async () => {
    using crowd = await startProxy({ to: server.port, ...VIA });
    using single = await startProxy({ to: server.port, from: PROXY, header: v2(0x11, "cb007108") });
    using many = await dial(crowd.port);
    using one = await dial(single.port);
    const ended: string[] = [];
    const attest = async (name: string, channel: typeof many, signal?: AbortSignal): Promise<void> => {
      const request = from([{ params: { data: { type: "none", payload: Buffer.from("x") } } }]);
      await collect(channel.client(AgentApi).AttestAgent(request, signal && { signal })).catch(() => {});
      ended.push(name);
    };
    const leave = new AbortController();
    const queue = Array.from({ length: 30 }, (_, index) => attest(`many ${index}`, many, leave.signal));
    await eventually("the first has had its turn", () => ended.length > 0);
    await attest("one", one);
    expect(ended.filter((name) => name.startsWith("many")).length).toBeLessThan(30);
    leave.abort();
    await Promise.all(queue);
  });
});

describe("T-X9 what is no header", () => {
  /** True when the server ends the connection without a word. */
  function isRefused(localAddress: string, bytes: Uint8Array): Promise<boolean> {
    return new Promise((done) => {
      let answered = false;
      const socket = connect({ port: server.port, host: "127.0.0.1", localAddress }, () => socket.write(bytes));
      socket
        .on("error", () => {})
        .on("data", () => {
          answered = true;
        });
      socket.once("close", () => done(!answered));
    });
  }

  test.each([
    ["a family that is not known", v1("PROXY TCP5 203.0.113.7 192.0.2.1 1 2")],
    ["an address that is none", v1("PROXY TCP4 1.2.3.400 192.0.2.1 1 2")],
    ["a line without end", Buffer.from(`PROXY ${"x".repeat(300)}`)],
    ["a version 2 header of 64 KiB", Buffer.from("0d0a0d0a000d0a515549540a2111ffff", "hex")],
    ["a version 2 header of a Unix socket", Buffer.from("0d0a0d0a000d0a515549540a21310000", "hex")],
  ])("%s ends the connection", async (_, bytes) => {
    expect(await isRefused(PROXY, bytes)).toBe(true);
    await server.untilLogged("Connection refused");
  });

  test("a balancer that hangs up half way leaves nothing behind", async () => {
    const socket = connect({ port: server.port, host: "127.0.0.1", localAddress: PROXY }, () => socket.end("PROXY TC"));
    socket.resume();
    await new Promise((done) => socket.once("close", done));
    expect(await seenAddress(VIA)).toBe("203.0.113.7:4711");
  });

  test("a header from anybody else is refused, and a client of its own is served under its own address", async () => {
    using lying = await startProxy({ to: server.port, from: STRANGER, header: VIA.header });
    using refused = await dial(lying.port);
    expect(await faultFrom(refused.client(BundleApi).GetBundle({}))).toMatchObject({ kind: "unavailable" });
    expect(await seenAddress({ header: Buffer.alloc(0), from: STRANGER })).toMatch(/^127\.0\.0\.3:\d+$/);
  });
});
