import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCertificateRequest } from "../../src/crypto/csr.ts";
import { generateKey } from "../../src/crypto/key.ts";
import { eventually } from "../support/eventually.ts";
import { faultFrom } from "../support/faults.ts";
import { entryMessage, protoId, startServer, type TestServer, type TestSvid } from "../support/server.ts";
import type { LogRecord } from "../support/server-process.ts";

let server: TestServer;
let agent: TestSvid;
let entryId = "";
let csr: Buffer;
beforeAll(async () => {
  server = await startServer({ server: { audit_log_enabled: true } });
  agent = await server.attest();
  entryId = (await server.createEntry({ spiffeId: "spiffe://example.org/w", parentId: agent.id })).id;
  csr = Buffer.from(await createCertificateRequest({ signer: await generateKey("ec-p256") }));
});
afterAll(() => server[Symbol.asyncDispose]());

const HERE = { caller_pid: process.pid, caller_uid: process.getuid?.(), caller_gid: process.getgid?.() };
const LOCAL = { ...HERE, caller_path: process.execPath, authorized_as: "local", authorized_via: "transport" };
const sha256 = (data: string | Uint8Array): string => createHash("sha256").update(data).digest("hex");

/** The records of the calls that `work` makes, without what every line has. */
async function records(method: string, work: () => Promise<unknown>, count = 1): Promise<Record<string, unknown>[]> {
  const of = (): readonly LogRecord[] => server.logged("API accessed", { method });
  const before = of().length;
  await work();
  const all = await eventually(`${count} records of ${method}`, () => of().length >= before + count && of());
  return all.slice(before).map((record) => {
    const { time: _, level, msg: __, subsystem_name: ___, request_id, ...rest } = record;
    expect(level).toBe("info");
    expect(request_id).toMatch(/^[0-9a-f-]{36}$/);
    return rest;
  });
}

const ok = { type: "audit", status: "success" };

describe("one audit record for each call", () => {
  test.each<[string, string, () => Promise<unknown>, object]>([
    [
      "entry.v1.Entry",
      "ListEntries",
      () => server.admin.entry.ListEntries({ filter: { by_spiffe_id: protoId("spiffe://example.org/w") } as never }),
      { spiffe_id: "spiffe://example.org/w" },
    ],
    ["entry.v1.Entry", "CountEntries", () => server.admin.entry.CountEntries({}), {}],
    [
      "entry.v1.Entry",
      "GetEntry",
      () => server.admin.entry.GetEntry({ id: entryId }),
      { entry_id: expect.any(String) },
    ],
    [
      "agent.v1.Agent",
      "ListAgents",
      () =>
        server.admin.agent.ListAgents({ filter: { by_banned: { value: false }, by_attestation_type: "t" } as never }),
      { by_banned: false, node_attestor_type: "t" },
    ],
    [
      "agent.v1.Agent",
      "GetAgent",
      () => server.admin.agent.GetAgent({ id: protoId(agent.id) }),
      { spiffe_id: "AGENT" },
    ],
    [
      "agent.v1.Agent",
      "CreateJoinToken",
      () => server.createToken({ ttl: 600, agentId: "spiffe://example.org/alias" }),
      { ttl: 600, spiffe_id: "spiffe://example.org/alias" },
    ],
    [
      "steeple.api.server.quarantine.v1.Quarantine",
      "QuarantineAgent",
      () => server.admin.quarantine.QuarantineAgent({ id: protoId(agent.id), reason: "why not" }),
      { spiffe_id: "AGENT", reason: "why not" },
    ],
    [
      "steeple.api.server.quarantine.v1.Quarantine",
      "ReleaseAgent",
      () => server.admin.quarantine.ReleaseAgent({ id: protoId(agent.id), x509svid_serial_number: agent.serialNumber }),
      { spiffe_id: "AGENT", serial_num: "SERIAL" },
    ],
    ["bundle.v1.Bundle", "CountBundles", () => server.admin.bundle.CountBundles({}), {}],
  ])("%s %s, as SPIRE writes it", async (service, method, work, fields) => {
    const known: Readonly<Record<string, string>> = { AGENT: agent.id, SERIAL: agent.serialNumber };
    const shown = Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, known[value] ?? value]));
    expect(await records(method, work)).toEqual([{ ...ok, ...LOCAL, service, method, ...shown }]);
  });

  test("what anyone may ask says who asked", async () => {
    const call = { ...ok, service: "bundle.v1.Bundle", method: "GetBundle", trust_domain_id: "example.org" };
    const nobody = { authorized_as: "nobody", authorized_via: "" };
    expect(await records("GetBundle", () => server.admin.bundle.GetBundle({}))).toEqual([
      { ...call, ...HERE, caller_path: process.execPath, ...nobody },
    ]);
  });

  test("a minted SVID with the hash of its CSR and its end", async () => {
    const [record] = await records("MintX509SVID", () => server.mint("spiffe://example.org/minted"));
    expect(record).toEqual({
      ...ok,
      ...LOCAL,
      service: "svid.v1.SVID",
      method: "MintX509SVID",
      csr: expect.stringMatching(/^[0-9a-f]{64}$/),
      ttl: 600,
      spiffe_id: "spiffe://example.org/minted",
      expires_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/),
    });
  });

  test("an attestation, with address and outcome", async () => {
    const [record] = await records("AttestAgent", () => server.attest());
    expect(record).toMatchObject({
      ...ok,
      node_attestor_type: "join_token",
      agent_id: expect.stringContaining("spiffe://example.org/spire/agent/join_token/"),
      authorized_as: "nobody",
      caller_addr: expect.stringContaining("127.0.0.1"),
    });
  });

  test("an agent's status, with its ID and version", async () => {
    using apis = server.connect(agent.tls);
    const [record] = await records("PostStatus", () => apis.agent.PostStatus({ agent_version: "1.2.3" }));
    expect(record).toMatchObject({ ...ok, spiffe_id: agent.id, caller_id: agent.id, agent_version: "1.2.3" });
  });

  test("a probe that finds all well has none", async () => {
    await server.admin.health.Check({});
    await records("CountBundles", () => server.admin.bundle.CountBundles({}));
    expect(server.logged("API accessed", { method: "Check" })).toEqual([]);
  });

  test("what failed, with code and words", async () => {
    const [record] = await records("GetEntry", () => faultFrom(server.admin.entry.GetEntry({ id: "none" })));
    expect(record).toMatchObject({
      entry_id: "none",
      status: "error",
      status_code: 5,
      status_message: "entry not found",
    });
  });

  test("T-C3 what was refused, with the caller", async () => {
    using apis = server.connect(agent.tls);
    const [record] = await records("BatchDeleteEntry", () => faultFrom(apis.entry.BatchDeleteEntry({ ids: ["x"] })));
    expect(record).toMatchObject({ status: "error", status_code: 7, caller_id: agent.id });
    expect(record).not.toHaveProperty("authorized_as");
  });
});

describe("one audit record for each item of a batch", () => {
  test("entries as they were asked for, each with its outcome, under one request id", async () => {
    const good = entryMessage({
      ...{ spiffeId: "spiffe://example.org/e", parentId: agent.id, selectors: ["unix:uid:7", "unix:gid:8"] },
      ...{ admin: true, expires_at: 1_999_999_999, dns_names: ["a.test", "b.test"], hint: "h", x509_svid_ttl: 60 },
    });
    const bad = entryMessage({ spiffeId: "spiffe://other.test/e", parentId: agent.id });
    const create = () => server.admin.entry.BatchCreateEntry({ entries: [good, bad] });
    const [first, second] = await records("BatchCreateEntry", create, 2);
    expect(first).toEqual({
      ...ok,
      ...LOCAL,
      service: "entry.v1.Entry",
      method: "BatchCreateEntry",
      spiffe_id: "spiffe://example.org/e",
      parent_id: agent.id,
      selectors_sha256: sha256("unix:gid:8\nunix:uid:7"),
      ...{ admin: true, downstream: false, store_svid: false, expires_at: 1_999_999_999, dns_name: "a.test,b.test" },
      ...{ hint: "h", x509_svid_ttl: 60, jwt_svid_ttl: 0, revision_number: 0, created_at: 0 },
    });
    expect(second).toMatchObject({ status: "error", status_code: 3, spiffe_id: "spiffe://other.test/e" });
  });

  test("an update says only what its mask names", async () => {
    const update = () =>
      server.admin.entry.BatchUpdateEntry({
        entries: [{ id: entryId, hint: "new", admin: true }],
        input_mask: { hint: true },
      });
    expect(await records("BatchUpdateEntry", update)).toEqual([
      { ...ok, ...LOCAL, service: "entry.v1.Entry", method: "BatchUpdateEntry", entry_id: entryId, hint: "new" },
    ]);
  });

  test("SVIDs as they were signed", async () => {
    using apis = server.connect(agent.tls);
    const params = [
      { entry_id: entryId, csr },
      { entry_id: "none", csr },
    ];
    const [signed, refused] = await records("BatchNewX509SVID", () => apis.svid.BatchNewX509SVID({ params }), 2);
    expect(signed).toEqual({
      ...ok,
      service: "svid.v1.SVID",
      method: "BatchNewX509SVID",
      caller_id: agent.id,
      caller_addr: expect.stringMatching(/^127\.0\.0\.1/),
      ...{ authorized_as: "agent", authorized_via: "datastore" },
      ...{ entry_id: entryId, spiffe_id: "spiffe://example.org/w", csr: sha256(csr), expires_at: expect.any(Number) },
    });
    expect(refused).toMatchObject({ status: "error", status_code: 5, entry_id: "none", csr: sha256(csr) });
  });
});

test("T-J8 no record holds a token, used or not, a key or a selector", async () => {
  const token = await server.createToken({ token: "canary-token" });
  const parentId = `spiffe://example.org/spire/agent/join_token/${token}`;
  const entry = { spiffeId: "spiffe://example.org/c", parentId, selectors: ["canary:selector"] };
  await records("BatchCreateEntry", () => server.createEntry(entry));
  const filter = {
    by_parent_id: protoId(parentId),
    by_selectors: { match: "MATCH_ANY", selectors: [{ type: "canary", value: "selector" }] },
  };
  await records("ListEntries", () => server.admin.entry.ListEntries({ filter: filter as never }));
  const lines = server.output().split("\n");
  expect(lines.filter((line) => line.includes("canary"))).toEqual([]);
  expect(lines.some((line) => line.includes("spire/agent/join_token/…"))).toBe(true);
});
