import { connect as connectHttp2 } from "node:http2";
import { connect as connectSocket } from "node:net";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Entry } from "../../../src/rpc/gen/spire/api/types/Entry.ts";
import { entryMessage, startServer, type TestServer } from "../../support/server.ts";
import { vectors } from "../../support/vectors.ts";

let server: TestServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

const INVALID = 3;

async function refusal(change: Partial<Entry>): Promise<string> {
  const before = await server.admin.entry.CountEntries({});
  const sound = entryMessage({ spiffeId: "spiffe://example.org/sound", parentId: "spiffe://example.org/parent" });
  const { results } = await server.admin.entry.BatchCreateEntry({ entries: [{ ...sound, ...change }] });
  expect(results[0]?.status?.code).toBe(INVALID);
  expect(results[0]?.entry).toBeNull();
  expect(await server.admin.entry.CountEntries({})).toEqual(before);
  return results[0]?.status?.message ?? "";
}

function idMessage(id: string): { readonly trust_domain: string; readonly path: string } {
  const slash = id.indexOf("/", "spiffe://".length);
  return slash < 0
    ? { trust_domain: id.slice("spiffe://".length), path: "" }
    : { trust_domain: id.slice("spiffe://".length, slash), path: id.slice(slash) };
}

describe("malformed entries are refused whole, with what is wrong", () => {
  const malformedIds = vectors("spiffe-id.invalid.txt").filter(({ text }) => text.startsWith("spiffe://"));

  test.each(malformedIds.map(({ text }) => text))("T-S1 T-S2 the ID %j, as SPIFFE ID and as parent", async (text) => {
    const id = idMessage(text);
    expect(await refusal({ spiffe_id: id })).toMatch(/^failed to convert entry: invalid spiffe ID: /);
    expect(await refusal({ parent_id: id })).toMatch(/^failed to convert entry: invalid parent ID: /);
  });

  test.each([
    "/spire",
    "/spire/server",
    "/spire/agent",
    "/spire/agent/join_token/x",
    "/spire/agent/x509pop/0123",
    "/spire/anything/at/all",
  ])("T-S10 the reserved path %s", async (path) => {
    expect(await refusal({ spiffe_id: { trust_domain: "example.org", path } })).toMatch(
      /is not a workload in trust domain "example.org"; path is in the reserved namespace$/,
    );
  });

  test.each([
    "/%73pire/server",
    "/spire%2Fserver",
    "//spire/server",
    "/./spire/server",
    "/x/../spire/server",
    "/spire\u0000/server",
    "/\u017fpire/server",
    "/spire/server/",
    "/spire\\server",
    "/spire/server?x",
  ])("T-S10 the reserved path in disguise %j", async (path) => {
    expect(await refusal({ spiffe_id: { trust_domain: "example.org", path } })).toMatch(
      /^failed to convert entry: invalid spiffe ID: path /,
    );
  });

  test.each(["/Spire/server", "/SPIRE/agent/x", "/spire-x", "/spired/server", "/x/spire/server"])(
    "%s only looks like a reserved path, is one in no reading of the standard, and stays as it is",
    async (path) => {
      const entry = entryMessage({ spiffeId: `spiffe://example.org${path}`, parentId: "spiffe://example.org/parent" });
      const { results } = await server.admin.entry.BatchCreateEntry({ entries: [entry] });
      expect(results[0]?.entry?.spiffe_id).toEqual({ trust_domain: "example.org", path });
    },
  );

  test.each([
    {
      what: "the SPIFFE ID of another trust domain",
      change: { spiffe_id: { trust_domain: "other.test", path: "/x" } },
      message:
        /^failed to convert entry: invalid spiffe ID: "spiffe:\/\/other.test\/x" is not a member of trust domain "example.org"$/,
    },
    {
      what: "a SPIFFE ID without a path",
      change: { spiffe_id: { trust_domain: "example.org", path: "" } },
      message: /path is empty$/,
    },
    {
      what: "the parent of another trust domain",
      change: { parent_id: { trust_domain: "other.test", path: "/x" } },
      message: /^failed to convert entry: invalid parent ID: .* is not a member/,
    },
    {
      what: "an ID of 2049 bytes",
      change: { spiffe_id: { trust_domain: "example.org", path: `/${"x".repeat(2049 - 21)}` } },
      message: /SPIFFE ID is too long/,
    },
    { what: "no selectors", change: { selectors: [] }, message: /^failed to convert entry: selector list is empty$/ },
    {
      what: "a selector without a type",
      change: { selectors: [{ type: "", value: "x" }] },
      message: /^failed to convert entry: missing selector type$/,
    },
    {
      what: "a selector without a value",
      change: { selectors: [{ type: "x", value: "" }] },
      message: /^failed to convert entry: missing selector value$/,
    },
    {
      what: "a colon in a selector's type",
      change: { selectors: [{ type: "a:b", value: "x" }] },
      message: /^failed to convert entry: selector type contains ':'$/,
    },
    {
      what: "a NUL in a selector",
      change: { selectors: [{ type: "x", value: "a\u0000b" }] },
      message: /^failed to convert entry: selector contains a NUL byte$/,
    },
    {
      what: "a good selector and a bad one",
      change: {
        selectors: [
          { type: "x", value: "a" },
          { type: "x", value: "" },
        ],
      },
      message: /missing selector value$/,
    },
    {
      what: "a negative X.509 TTL",
      change: { x509_svid_ttl: -1 },
      message: /invalid registration entry: X509SvidTtl is not set$/,
    },
    {
      what: "a negative JWT TTL",
      change: { jwt_svid_ttl: -2147483648 },
      message: /invalid registration entry: JwtSvidTtl is not set$/,
    },
    { what: "a negative end", change: { expires_at: "-1" }, message: /expires_at -1 is out of range$/ },
    {
      what: "an end past all numbers",
      change: { expires_at: "9223372036854775807" },
      message: /expires_at 9223372036854775807 is out of range$/,
    },
    {
      what: "a malformed DNS name",
      change: { dns_names: ["a..b"] },
      message: /^failed to convert entry: invalid DNS name: /,
    },
    {
      what: "a DNS name with a NUL",
      change: { dns_names: ["a.test\u0000.evil"] },
      message: /^failed to convert entry: invalid DNS name: /,
    },
    {
      what: "a malformed federated trust domain",
      change: { federates_with: ["Not A Domain"] },
      message: /^failed to convert entry: invalid federated trust domain: /,
    },
    { what: "T-S7 an entry ID of 256 characters", change: { id: "x".repeat(256) }, message: /entry ID too long$/ },
    { what: "an entry ID with a slash", change: { id: "a/b" }, message: /entry ID contains invalid characters$/ },
    {
      what: "T-S7 a hint of 1025 bytes",
      change: { hint: "h".repeat(1025) },
      message: /hint is too long, max length is 1024 characters$/,
    },
    { what: "a hint with a NUL", change: { hint: "a\u0000b" }, message: /hint contains a NUL byte$/ },
    {
      what: "selectors of two kinds with store_svid",
      change: {
        store_svid: true,
        selectors: [
          { type: "a", value: "x" },
          { type: "b", value: "x" },
        ],
      },
      message: /selector types must be the same when store SVID is enabled$/,
    },
  ] satisfies readonly { what: string; change: Partial<Entry>; message: RegExp }[])(
    "$what",
    async ({ change, message }) => {
      expect(await refusal(change)).toMatch(message);
    },
  );

  test("T-S7 the greatest lengths are taken", async () => {
    const change = {
      id: "x".repeat(255),
      hint: "h".repeat(1024),
      spiffe_id: { trust_domain: "example.org", path: `/${"x".repeat(2048 - 21)}` },
    };
    const { results } = await server.admin.entry.BatchCreateEntry({
      entries: [
        { ...entryMessage({ spiffeId: "spiffe://example.org/x", parentId: "spiffe://example.org/parent" }), ...change },
      ],
    });
    expect(results[0]?.status).toEqual({ code: 0, message: "OK" });
    expect(results[0]?.entry).toMatchObject(change);
  });

  test("T-S6 pattern characters in names are characters", async () => {
    await server.createEntry({
      spiffeId: "spiffe://example.org/a.c",
      parentId: "spiffe://example.org/parent",
      selectors: ["t:%", "t:.*"],
    });
    await server.createEntry({
      spiffeId: "spiffe://example.org/abc",
      parentId: "spiffe://example.org/parent",
      selectors: ["t:x"],
    });
    const nothing = { by_parent_id: null, by_federates_with: null, by_hint: null, by_downstream: null };
    const byId = await server.admin.entry.ListEntries({
      filter: { ...nothing, by_selectors: null, by_spiffe_id: { trust_domain: "example.org", path: "/a.c" } },
    });
    const bySelector = await server.admin.entry.ListEntries({
      filter: {
        ...nothing,
        by_spiffe_id: null,
        by_selectors: { match: "MATCH_ANY", selectors: [{ type: "t", value: "%" }] },
      },
    });
    expect([byId, bySelector].map(({ entries }) => entries.map(({ spiffe_id }) => spiffe_id?.path))).toEqual([
      ["/a.c"],
      ["/a.c"],
    ]);
  });
});

describe("the process lives through malformed frames", () => {
  /** Writes the bytes and waits until the server has closed the connection, or has had a second to. */
  function throwAt(bytes: Uint8Array, place: "admin" | "tls" | "tcp"): Promise<void> {
    return new Promise((done) => {
      const socket =
        place === "admin"
          ? connectSocket(server.socketPath)
          : place === "tcp"
            ? connectSocket(server.port, "127.0.0.1")
            : connectTls({ host: "127.0.0.1", port: server.port, rejectUnauthorized: false, ALPNProtocols: ["h2"] });
      const timer = setTimeout(() => socket.destroy(), 300);
      socket.on("error", () => {});
      socket.on("data", () => {});
      socket.on("close", () => {
        clearTimeout(timer);
        done();
      });
      socket.on(place === "tls" ? "secureConnect" : "connect", () => socket.write(bytes));
    });
  }

  const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  const frame = (type: number, flags: number, stream: number, body: Uint8Array, length = body.length): Buffer =>
    Buffer.concat([
      Buffer.from([(length >> 16) & 255, (length >> 8) & 255, length & 255, type, flags, 0, 0, 0, stream]),
      body,
    ]);
  const settings = frame(4, 0, 0, Buffer.alloc(0));
  const rows: readonly { readonly what: string; readonly bytes: Uint8Array }[] = [
    { what: "an HTTP/1.1 request", bytes: Buffer.from("GET / HTTP/1.1\r\nHost: x\r\n\r\n") },
    { what: "noise", bytes: Buffer.from(Array.from({ length: 4096 }, (_, index) => (index * 31 + 7) & 255)) },
    {
      what: "a frame of 16 MiB that never comes",
      bytes: Buffer.concat([preface, settings, frame(0, 0, 1, Buffer.alloc(0), 0xffffff)]),
    },
    {
      what: "headers that do not decode",
      bytes: Buffer.concat([preface, settings, frame(1, 5, 1, Buffer.from([255, 255, 255, 255, 127]))]),
    },
    {
      what: "data on a stream that was never opened",
      bytes: Buffer.concat([preface, settings, frame(0, 1, 9, Buffer.from("x"))]),
    },
    {
      what: "a thousand pings",
      bytes: Buffer.concat([preface, settings, ...Array.from({ length: 1000 }, () => frame(6, 0, 0, Buffer.alloc(8)))]),
    },
    {
      what: "a thousand empty settings",
      bytes: Buffer.concat([preface, ...Array.from({ length: 1000 }, () => settings)]),
    },
  ];

  test.each(rows.flatMap((row) => (["admin", "tls", "tcp"] as const).map((place) => ({ ...row, place }))))(
    "$what at the $place port",
    async ({ bytes, place }) => {
      await throwAt(bytes, place);
      expect((await server.admin.bundle.GetBundle({})).trust_domain).toBe("example.org");
    },
  );

  /** One gRPC call with a body of our own; resolves with its status code. */
  function call(path: string, body: Uint8Array): Promise<number> {
    return new Promise((done) => {
      const session = connectHttp2("http://localhost", { createConnection: () => connectSocket(server.socketPath) });
      const stream = session.request({
        ":method": "POST",
        ":path": path,
        "content-type": "application/grpc",
        te: "trailers",
      });
      const take = (headers: object): void => {
        const code = (headers as Record<string, string>)["grpc-status"];
        if (code !== undefined) done(Number(code));
      };
      stream
        .on("response", take)
        .on("trailers", take)
        .on("error", () => {});
      stream.on("close", () => {
        session.close();
        done(-1);
      });
      stream.resume().end(body);
    });
  }

  const message = (bytes: Uint8Array): Buffer => Buffer.concat([Buffer.from([0, 0, 0, 0, bytes.length]), bytes]);
  const [OK, UNKNOWN_OR_INTERNAL, EXHAUSTED, UNIMPLEMENTED] = [[0], [2, 13], [8], [12]];
  test.each([
    { what: "a whole message", body: message(Buffer.alloc(0)), codes: OK },
    {
      what: "a message that is no protobuf",
      body: message(Buffer.from([0xff, 0xff, 0xff, 0xff])),
      codes: UNKNOWN_OR_INTERNAL,
    },
    { what: "a frame that says 4 GiB", body: Buffer.from([0, 0xff, 0xff, 0xff, 0xff]), codes: EXHAUSTED },
    { what: "no message", body: Buffer.alloc(0), codes: UNIMPLEMENTED },
  ])("$what gets a status of its own", async ({ body, codes }) => {
    expect(codes).toContain(await call("/spire.api.server.bundle.v1.Bundle/GetBundle", body));
    expect((await server.admin.bundle.GetBundle({})).trust_domain).toBe("example.org");
  });
});
