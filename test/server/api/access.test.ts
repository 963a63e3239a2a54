import { readFileSync } from "node:fs";
import { Client, credentials } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Rule } from "../../../server/api/access.ts";
import { served } from "../../../server/api/routes.ts";
import type { Channel } from "../../../src/rpc/dial.ts";
import {
  AgentApi,
  BundleApi,
  ContinuityApi,
  EntryApi,
  HealthApi,
  LocalAuthorityApi,
  PushApi,
  QuarantineApi,
  ReflectionAlphaApi,
  ReflectionApi,
  ServerDebugApi,
  ServerLoggerApi,
  type Service,
  SvidApi,
  TrustDomainApi,
} from "../../../src/rpc/protos.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { eventually } from "../../support/eventually.ts";
import { createCa } from "../../support/pki.ts";
import { type Apis, collect, from, startServer, type TestServer } from "../../support/server.ts";
import { identityOf } from "./handshakes.ts";

const STATIC_ADMIN = "spiffe://example.org/static/admin";
const FOREIGN_ADMIN = "spiffe://other.test/foreign/admin";
const SERVICES: readonly Service<object>[] = [
  AgentApi,
  BundleApi,
  ContinuityApi,
  EntryApi,
  SvidApi,
  LocalAuthorityApi,
  TrustDomainApi,
  PushApi,
  QuarantineApi,
  HealthApi,
  ServerLoggerApi,
  ServerDebugApi,
  ReflectionApi,
  ReflectionAlphaApi,
];

/** Rows of the vector file: full method name, and who may call it. */
const ROWS = readFileSync(new URL("../../vectors/server-access.txt", import.meta.url), "utf8")
  .split("\n")
  .filter((line) => line !== "" && !line.startsWith("#"))
  .map((line) => {
    const [name = "", ...letters] = line.split(" ");
    const path = /^(grpc|steeple)\./.test(name) ? `/${name}` : `/spire.api.server.${name}`;
    return { name, path, who: new Set(letters.filter((letter) => letter !== "!")), localOnly: letters.includes("!") };
  });

type ClassName =
  | "local"
  | "static admin"
  | "foreign admin"
  | "entry admin"
  | "downstream"
  | "agent"
  | "workload"
  | "nobody";

/** The letter of the vector file that lets each kind of caller in, besides `*`. */
const LETTER: Readonly<Record<ClassName, string>> = {
  local: "L",
  "static admin": "A",
  "foreign admin": "A",
  "entry admin": "A",
  downstream: "D",
  agent: "G",
  workload: "-",
  nobody: "-",
};

let server: TestServer;
const callers = new Map<ClassName, Apis>();

beforeAll(async () => {
  server = await startServer({ server: { admin_ids: [STATIC_ADMIN, FOREIGN_ADMIN] } });
  const agent = await server.attest();
  const [admin, downstream] = ["spiffe://example.org/entry/admin", "spiffe://example.org/entry/downstream"];
  await server.createEntry({ spiffeId: admin, parentId: agent.id, admin: true });
  await server.createEntry({ spiffeId: downstream, parentId: agent.id, downstream: true });
  const other = await createCa({ trustDomain: "other.test" });
  const bundle = [{ trust_domain: "other.test", x509_authorities: [{ asn1: Buffer.from(other.der) }] }];
  await server.admin.bundle.BatchSetFederatedBundle({ bundle });
  callers.set("foreign admin", server.connect(identityOf(await other.issue({ id: FOREIGN_ADMIN }))));
  callers.set("local", server.admin);
  callers.set("nobody", server.connect());
  callers.set("agent", server.connect(agent.tls));
  for (const [name, id] of [
    ["static admin", STATIC_ADMIN],
    ["entry admin", admin],
    ["downstream", downstream],
    ["workload", "spiffe://example.org/entry/none"],
  ] as const) {
    callers.set(name, server.connect((await server.mint(id)).tls));
  }
});
afterAll(async () => {
  for (const apis of callers.values()) apis[Symbol.dispose]();
  await server[Symbol.asyncDispose]();
});

/** Calls with an empty message, which no method that matters takes, and tells what came of it. */
async function outcomeOf(channel: Channel, path: string): Promise<Fault | undefined> {
  const [serviceName, methodName] = path.slice(1).split("/");
  const api = SERVICES.find(({ name }) => name === serviceName);
  const method = api?.methods()[methodName ?? ""];
  if (api === undefined || method === undefined) throw new Error(`${path} is not served`);
  const client = channel.client(api) as Readonly<
    Record<string, (request: unknown) => Promise<unknown> | AsyncIterable<unknown>>
  >;
  const request = method.requestStream ? from([{}]) : {};
  const answer = client[methodName ?? ""]?.(request);
  try {
    await (method.responseStream ? collect(answer as AsyncIterable<unknown>) : answer);
    return undefined;
  } catch (error) {
    return Fault.from(error);
  }
}

describe("T-C3 every method is open to those whom the table names, and to nobody else", () => {
  test("the vector file has a row for every method of every service", () => {
    const methods = SERVICES.flatMap((api) => Object.values(api.methods()).map(({ path }) => path));
    expect(ROWS.map(({ path }) => path).sort()).toEqual(methods.sort());
  });

  const table = ROWS.flatMap((row) =>
    (Object.keys(LETTER) as ClassName[]).map((caller) => ({
      ...row,
      caller,
      allowed: row.who.has("*") || row.who.has(LETTER[caller]),
    })),
  );

  test.each(table)("$name called by $caller: allowed $allowed", async ({ path, caller, allowed, localOnly }) => {
    const apis = callers.get(caller);
    if (apis === undefined) throw new Error(`no ${caller}`);
    const fault = await outcomeOf(apis.channel, path);
    const hidden = localOnly && caller !== "local";
    if (hidden) expect(fault).toMatchObject({ kind: "unimplemented" });
    else if (allowed) expect(fault?.message ?? "").not.toContain("authorization denied");
    else expect(fault).toMatchObject({ kind: "denied", message: `authorization denied for method ${path}` });
  });

  test("T-C11 a foreign administrator is one by its listed ID alone, and only while its bundle is held", async () => {
    const foreign = callers.get("foreign admin") as Apis;
    expect(await foreign.entry.CountEntries({})).toEqual({ count: 2 });
    using samePath = server.connect((await server.mint("spiffe://example.org/foreign/admin")).tls);
    await expect(samePath.entry.CountEntries({})).rejects.toMatchObject({ kind: "denied" });
    const { bundles } = await server.admin.bundle.ListFederatedBundles({});
    await server.admin.bundle.BatchDeleteFederatedBundle({ trust_domains: ["other.test"] });
    await expect(foreign.entry.CountEntries({})).rejects.toMatchObject({ kind: "unauthenticated" });
    await server.admin.bundle.BatchSetFederatedBundle({ bundle: bundles });
    expect(await foreign.entry.CountEntries({})).toEqual({ count: 2 });
  });

  test("reflection names every service of the admin socket", async () => {
    const [answer] = await collect(
      server.admin.channel.client(ReflectionApi).ServerReflectionInfo(from([{ list_services: "" }])),
    );
    expect(answer?.list_services_response?.service.map(({ name }) => name)).toEqual(
      SERVICES.map(({ name }) => name).sort(),
    );
  });

  test("a workload that claims to be an agent is told that it is not attested", async () => {
    const fault = await outcomeOf(
      (callers.get("workload") as Apis).channel,
      "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
    );
    expect(fault && denialReason(fault)).toBe("not_attested");
  });

  test("a caller without a certificate gets no details", async () => {
    const fault = await outcomeOf(
      (callers.get("nobody") as Apis).channel,
      "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
    );
    expect(fault && denialReason(fault)).toBeUndefined();
  });

  test.each(["/spire.api.server.entry.v1.Entry/NoSuchMethod", "/spire.api.node.Node/FetchX509SVID", "/"])(
    "the unknown method %s is unimplemented for a local administrator too",
    async (path) => {
      const raw = new Client(`unix://${server.socketPath}`, credentials.createInsecure());
      const code = await new Promise((done) =>
        raw.makeUnaryRequest(
          path,
          (value: Buffer) => value,
          (value) => value,
          Buffer.alloc(0),
          (error) => done(error?.code),
        ),
      );
      raw.close();
      expect(code).toBe(12);
    },
  );

  test("a service without a row for one of its methods cannot be served", () => {
    const rules = { CountEntries: { allow: ["any"] } } as unknown as Parameters<typeof served<object>>[1] &
      Readonly<Record<string, Rule>>;
    expect(() => served(EntryApi as Service<object>, rules, {})).toThrow(/has no row in the access table/);
  });
});

describe("the right to administer follows its entry", () => {
  test("T-C5 it is gone with the next call after the entry lost its admin bit, on the connection that is open", async () => {
    const id = "spiffe://example.org/entry/short-lived-admin";
    const entry = await server.createEntry({ spiffeId: id, parentId: "spiffe://example.org/parent", admin: true });
    using admin = server.connect((await server.mint(id)).tls);
    expect(await admin.entry.GetEntry({ id: entry.id })).toMatchObject({ admin: true });
    await server.admin.entry.BatchUpdateEntry({
      entries: [{ id: entry.id, admin: false }],
      input_mask: { admin: true },
    });
    await expect(admin.entry.GetEntry({ id: entry.id })).rejects.toMatchObject({ kind: "denied" });
  });

  test("an entry that has ended gives no rights", async () => {
    const id = "spiffe://example.org/entry/ended-admin";
    const expires_at = Math.floor(Date.now() / 1000) + 2;
    const entry = await server.createEntry({
      spiffeId: id,
      parentId: "spiffe://example.org/parent",
      admin: true,
      expires_at,
    });
    using admin = server.connect((await server.mint(id)).tls);
    expect(await admin.entry.GetEntry({ id: entry.id })).toMatchObject({ admin: true });
    await eventually("the entry ends", () =>
      admin.entry.GetEntry({ id: entry.id }).then(
        () => false,
        (fault: Fault) => fault.kind === "denied",
      ),
    );
  });
});

test("each refusal is one log line with the caller and what was called", async () => {
  await outcomeOf((callers.get("workload") as Apis).channel, "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries");
  const record = await server.untilLogged("Agent is not attested", {
    caller_id: "spiffe://example.org/entry/none",
    method: "GetAuthorizedEntries",
  });
  expect(record).toMatchObject({
    level: "error",
    service: "entry.v1.Entry",
    subsystem_name: "api",
    caller_addr: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
    request_id: expect.any(String),
  });
  await server.untilLogged("Failed to authenticate caller", { request_id: record["request_id"] });
});
