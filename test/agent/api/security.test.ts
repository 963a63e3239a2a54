import { once } from "node:events";
import { request as httpRequest } from "node:http";
import type { OutgoingHttpHeaders } from "node:http2";
import { connect } from "node:net";
import { join } from "node:path";
import { connect as tlsConnect } from "node:tls";
import { loadFileDescriptorSetFromBuffer } from "@grpc/proto-loader";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { fetchX509Svid } from "../../../src/client/workload-api.ts";
import { dialUnix } from "../../../src/rpc/dial.ts";
import { HealthApi, ReflectionAlphaApi, ReflectionApi } from "../../../src/rpc/protos.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { bundlesOf, cachedEntry, Endpoint } from "../../support/endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { RawClient, SECURITY_HEADER } from "../../support/raw-client.ts";
import { isRoot, NOBODY, startWorkload } from "../../support/workload.ts";

const METHODS = [
  "FetchX509SVID",
  "FetchX509Bundles",
  "FetchJWTSVID",
  "FetchJWTBundles",
  "ValidateJWTSVID",
  "FetchWITSVID",
  "FetchWITBundles",
] as const;
const OFFERED = METHODS.slice(0, 2);
const NOT_OFFERED = METHODS.slice(5);
const REFUSED = { code: 3, message: "security header missing from request" };
const UNATTESTED = { code: 14, message: "workload attestation failed" };

const web = cachedEntry({ id: "web", selectors: [`unix:uid:${process.getuid?.()}`] });

let root: TestCa;
let svid: Issued;
let endpoint: Endpoint;
let client: RawClient;
beforeAll(async () => {
  root = await createCa({ trustDomain: "example.org" });
  svid = await root.issue({ id: web.spiffeId });
  endpoint = await Endpoint.start({ bundles: bundlesOf(root) });
  client = new RawClient(endpoint.path);
  await endpoint.replace([web], bundlesOf(root));
  await endpoint.accept([web, svid]);
});
afterAll(async () => {
  await client[Symbol.asyncDispose]();
  await endpoint[Symbol.asyncDispose]();
});

const served = async (raw = client): Promise<boolean> => {
  const call = raw.svids();
  const { svids } = await call.x509Svids();
  call.cancel();
  return svids[0]?.spiffe_id === "spiffe://example.org/web";
};

describe("WEP-08 WEP-09 T-W5 the security header", () => {
  const headers: readonly { readonly what: string; readonly headers: OutgoingHttpHeaders }[] = [
    { what: "none", headers: {} },
    { what: "True", headers: { "workload.spiffe.io": "True" } },
    { what: "TRUE", headers: { "workload.spiffe.io": "TRUE" } },
    { what: "false", headers: { "workload.spiffe.io": "false" } },
    { what: "an empty value", headers: { "workload.spiffe.io": "" } },
    { what: "1", headers: { "workload.spiffe.io": "1" } },
    { what: "true,false in one", headers: { "workload.spiffe.io": "true,false" } },
    { what: "true and false", headers: { "workload.spiffe.io": ["true", "false"] } },
    { what: "true twice", headers: { "workload.spiffe.io": ["true", "true"] } },
    { what: "another key", headers: { "workload-spiffe-io": "true" } },
  ];

  test.each(headers)("$what is refused with InvalidArgument by every method, before attestation", async (row) => {
    const before = (await endpoint.look()).attestations;
    for (const method of METHODS) {
      const call = client.call(`/SpiffeWorkloadAPI/${method}`, row.headers);
      expect(await call.status).toEqual(REFUSED);
      expect(call.messages).toHaveLength(0);
    }
    expect((await endpoint.look()).attestations).toBe(before);
    expect(await served()).toBe(true);
  });

  test("a value with a space before it is refused, with whatever code the transport has for it", async () => {
    await using raw = new RawClient(endpoint.path);
    const before = (await endpoint.look()).attestations;
    const call = raw.svids({ "workload.spiffe.io": " true" });
    expect((await call.status).code).not.toBe(0);
    expect(call.messages).toHaveLength(0);
    expect((await endpoint.look()).attestations).toBe(before);
  });

  test("one true passes", async () => {
    const before = (await endpoint.look()).attestations;
    expect(await served()).toBe(true);
    expect((await endpoint.look()).attestations).toBe(before + 1);
  });

  test("reflection asks for it too (D-13), health does not, so that stock probes work", async () => {
    using channel = dialUnix(endpoint.path);
    async function* list() {
      yield { list_services: "" };
    }
    const answers = async (metadata: Record<string, string>) => {
      const found = [];
      for await (const answer of channel.client(ReflectionApi).ServerReflectionInfo(list(), { metadata }))
        found.push(answer);
      return found;
    };
    await expect(answers({})).rejects.toMatchObject({ kind: "invalid", message: REFUSED.message });
    expect(await answers(SECURITY_HEADER)).toHaveLength(1);
    expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
  });
});

test("T-X9 however many ask for the agent's health, it looks once, and again after a second", async () => {
  using channel = dialUnix(endpoint.path);
  const health = channel.client(HealthApi);
  await eventually("what was found before is old", async () => {
    const { attestations } = await endpoint.look();
    await health.Check({});
    return (await endpoint.look()).attestations > attestations;
  });
  await eventually("it is old again, and all find the same", async () => {
    const { attestations } = await endpoint.look();
    const answers = await Promise.all(Array.from({ length: 300 }, () => health.Check({})));
    expect(answers.every(({ status }) => status === "SERVING")).toBe(true);
    const looks = (await endpoint.look()).attestations - attestations;
    expect(looks).toBeLessThan(50);
    return looks > 0;
  });
});

describe("T-W5 what is not gRPC gets nothing", () => {
  test("a web request that some program was talked into (HTTP/1.1)", async () => {
    const sent = httpRequest({
      socketPath: endpoint.path,
      method: "POST",
      path: "/SpiffeWorkloadAPI/FetchX509SVID",
      headers: { ...SECURITY_HEADER, "content-type": "application/grpc", te: "trailers" },
    });
    const answer = once(sent, "response").catch((error: Error) => error);
    sent.end(Buffer.alloc(5));
    expect(await answer).toBeInstanceOf(Error);
    expect(await served()).toBe(true);
  });

  test("HTTP/2 that is not gRPC", async () => {
    const call = client.svids({ ...SECURITY_HEADER, "content-type": "application/json" });
    expect((await call.status).code).not.toBe(0);
    expect(call.messages).toHaveLength(0);
    expect(await served()).toBe(true);
  });

  test("WEP-10 a TLS client is turned away, plaintext is what is spoken", async () => {
    const socket = tlsConnect({ socket: connect(endpoint.path), rejectUnauthorized: false });
    const [error] = await once(socket, "error");
    expect(error).toBeInstanceOf(Error);
    expect(await served()).toBe(true);
  });

  test("bytes at random", async () => {
    const socket = connect(endpoint.path);
    socket.on("error", () => undefined);
    socket.end(Buffer.from(Array.from({ length: 4096 }, (_, index) => (index * 197) % 256)));
    await once(socket.resume(), "close");
    expect(await served()).toBe(true);
  });
});

describe("the API that is served", () => {
  test("WEP-03 WEP-19 WEP-21 WAPI-05 WAPI-01 answers plain HTTP/2 by its literal path, with no credentials", async () => {
    for (const method of OFFERED) {
      const call = client.call(`/SpiffeWorkloadAPI/${method}`);
      await call.first();
      call.cancel();
    }
    for (const path of ["/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID", "/SpiffeWorkloadAPI/FetchNothing"]) {
      expect(await client.call(path).status).toMatchObject({ code: 12 });
    }
  });

  test.each(NOT_OFFERED)(
    "WEP-30 WAPI-02 WAPI-03 WAPI-52 %s is there and answers Unimplemented without asking who calls",
    async (method) => {
      const before = (await endpoint.look()).attestations;
      const call = client.call(`/SpiffeWorkloadAPI/${method}`);
      expect(await call.status).toMatchObject({ code: 12 });
      expect(call.messages).toHaveLength(0);
      expect((await endpoint.look()).attestations).toBe(before);
    },
  );

  test.each([
    { version: "v1", api: ReflectionApi },
    { version: "v1alpha", api: ReflectionAlphaApi },
  ])("WEP-31 WEP-29 reflection $version lists what there is, each under its own name", async ({ api }) => {
    using channel = dialUnix(endpoint.path);
    async function* list() {
      yield { list_services: "" };
    }
    const names: string[] = [];
    for await (const { list_services_response } of channel
      .client(api)
      .ServerReflectionInfo(list(), { metadata: SECURITY_HEADER })) {
      names.push(...(list_services_response?.service ?? []).map(({ name }) => name));
    }
    expect(names.sort()).toEqual([
      "SpiffeWorkloadAPI",
      "envoy.service.secret.v3.SecretDiscoveryService",
      "grpc.health.v1.Health",
      "grpc.reflection.v1.ServerReflection",
      "grpc.reflection.v1alpha.ServerReflection",
    ]);
  });

  test("WEP-28 WAPI-04 its descriptor has the methods, fields and numbers of the standard, and no others", async () => {
    using channel = dialUnix(endpoint.path);
    async function* ask() {
      yield { file_containing_symbol: "SpiffeWorkloadAPI" };
    }
    const files: Buffer[] = [];
    for await (const answer of channel
      .client(ReflectionApi)
      .ServerReflectionInfo(ask(), { metadata: SECURITY_HEADER })) {
      files.push(...(answer.file_descriptor_response?.file_descriptor_proto ?? []));
    }
    expect(describeApi(files)).toEqual({
      "FetchX509SVID -> stream": { X509SVIDRequest: {}, X509SVIDResponse: { svids: 1, crl: 2, federated_bundles: 3 } },
      "FetchX509Bundles -> stream": { X509BundlesRequest: {}, X509BundlesResponse: { crl: 1, bundles: 2 } },
      "FetchJWTSVID -> one": { JWTSVIDRequest: { audience: 1, spiffe_id: 2 }, JWTSVIDResponse: { svids: 1 } },
      "FetchJWTBundles -> stream": { JWTBundlesRequest: {}, JWTBundlesResponse: { bundles: 1 } },
      "ValidateJWTSVID -> one": {
        ValidateJWTSVIDRequest: { audience: 1, svid: 2 },
        ValidateJWTSVIDResponse: { spiffe_id: 1, claims: 2 },
      },
      "FetchWITSVID -> stream": { WITSVIDRequest: { spiffe_id: 1 }, WITSVIDResponse: { svids: 1 } },
      "FetchWITBundles -> stream": { WITBundlesRequest: {}, WITBundlesResponse: { bundles: 1 } },
    });
  });
});

/** Reads serialised FileDescriptorProtos with the loader that any client would use. */
function describeApi(files: readonly Buffer[]): Record<string, Record<string, Record<string, number>>> {
  const set = Buffer.concat(files.flatMap((file) => [Buffer.of(0x0a), varint(file.length), file]));
  const definition = loadFileDescriptorSetFromBuffer(set, { keepCase: true })["SpiffeWorkloadAPI"];
  if (definition === undefined || "format" in definition) throw new Error("no service of that name");
  return Object.fromEntries(
    Object.entries(definition).map(([name, method]) => {
      const messages = [method.requestType, method.responseType].map((message) => {
        const { name: type, field } = message.type as { name: string; field: { name: string; number: number }[] };
        return [type, Object.fromEntries(field.map((each) => [each.name, each.number]))];
      });
      return [`${name} -> ${method.responseStream ? "stream" : "one"}`, Object.fromEntries(messages)];
    }),
  );
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (let rest = value; ; rest >>= 7) {
    bytes.push(rest > 0x7f ? (rest & 0x7f) | 0x80 : rest);
    if (rest <= 0x7f) return Buffer.from(bytes);
  }
}

describe("T-W1 WEP-20 a connection belongs to the process that made it", () => {
  async function handedOver() {
    await using scope = new AsyncDisposableStack();
    const relay = join(endpoint.folder, `relay-${performance.now()}.sock`);
    const workload = scope.use(await startWorkload({ socket: endpoint.path, relay, handOver: true }));
    const raw = scope.use(new RawClient(relay));
    const held = scope.move();
    return { workload, raw, [Symbol.asyncDispose]: () => held.disposeAsync() };
  }

  test("while it lives it answers for whoever holds its connection", async () => {
    await using at = await handedOver();
    expect(await served(at.raw)).toBe(true);
  });

  test("once it runs another program, whoever holds its connection gets nothing", async () => {
    await using at = await handedOver();
    await at.workload.order({ do: "exec", program: "/bin/sleep", args: ["60"] });
    await eventually("the other program runs", async () => {
      const call = at.raw.svids();
      const status = await Promise.race([call.status, call.first().then(() => undefined)]);
      call.cancel();
      return status?.code === UNATTESTED.code && call.messages.length === 0;
    });
    expect(await at.raw.svids().status).toEqual(UNATTESTED);
  });

  test("once it has exited, whoever holds its connection gets nothing", async () => {
    await using at = await handedOver();
    await at.workload.order({ do: "exit" });
    const call = at.raw.svids();
    expect((await call.status).code).not.toBe(0);
    expect(call.messages).toHaveLength(0);
  });

  test("an open stream ends instead of giving a new key to another program", async () => {
    await using at = await handedOver();
    const call = at.raw.svids();
    await call.x509Svids();
    await at.workload.order({ do: "exec", program: "/bin/sleep", args: ["60"] });
    await eventually("the other program runs", async () => (await at.raw.svids().status).code === UNATTESTED.code);
    await endpoint.accept([web, await root.issue({ id: web.spiffeId })]);
    expect(await call.status).toEqual(UNATTESTED);
    expect(call.messages).toHaveLength(1);
  });

  test("a stream that waited for its first SVID gives it to no other program either", async () => {
    await endpoint.replace(
      [{ ...web, revisionNumber: 1, spiffeId: parseSpiffeId("spiffe://example.org/late") }],
      bundlesOf(root),
    );
    await using at = await handedOver();
    const before = (await endpoint.look()).attestations;
    const call = at.raw.svids();
    await eventually("attestation", async () => (await endpoint.look()).attestations > before);
    await at.workload.order({ do: "exec", program: "/bin/sleep", args: ["60"] });
    await eventually("the other program runs", async () => (await at.raw.svids().status).code === UNATTESTED.code);
    await endpoint.replace([web], bundlesOf(root));
    await endpoint.accept([web, svid]);
    expect(await call.status).toEqual(UNATTESTED);
    expect(call.messages).toHaveLength(0);
  });

  test.skipIf(!isRoot)("once it has become another user it is neither the one nor the other", async () => {
    await using scope = new AsyncDisposableStack();
    const relay = join(endpoint.folder, "becoming.sock");
    const workload = scope.use(await startWorkload({ socket: endpoint.path, relay }));
    const raw = scope.use(new RawClient(relay));
    expect(await served(raw)).toBe(true);
    await workload.order({ do: "become", uid: NOBODY });
    expect(await raw.svids().status).toEqual(UNATTESTED);
  });
});

describe("our own client against the endpoint", () => {
  test("fetches, and gets the endpoint's own words when it may not", async () => {
    const { svids } = await fetchX509Svid({ socket: `unix://${endpoint.path}` });
    expect(svids.map(({ id }) => id)).toEqual(["spiffe://example.org/web"]);
    await endpoint.replace([], bundlesOf(root));
    await expect(fetchX509Svid({ socket: `unix://${endpoint.path}` })).rejects.toMatchObject({
      kind: "denied",
      message: "no identity issued",
      code: "no-identity-issued",
    });
    await endpoint.replace([web], bundlesOf(root));
    await endpoint.accept([web, svid]);
  });
});
