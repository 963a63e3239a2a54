import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { AgentMask } from "../../../src/rpc/gen/spire/api/types/AgentMask.ts";
import { denialReason } from "../../../src/rpc/status.ts";
import { faultFrom } from "../../support/faults.ts";
import { protoId, startServer, type TestServer, type TestSvid } from "../../support/server.ts";

const MASK_FIELDS = [
  "attestation_type",
  "x509svid_serial_number",
  "x509svid_expires_at",
  "selectors",
  "banned",
  "can_reattest",
  "agent_version",
] as const satisfies readonly (keyof AgentMask)[];

describe("agents that attested by join token", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await startServer();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const get = (id: string, output_mask: AgentMask | null = null) =>
    server.admin.agent.GetAgent({ id: protoId(id), output_mask });

  test("GetAgent shows what the attestation recorded", async () => {
    const svid = await server.attest();
    expect(await get(svid.id)).toEqual({
      id: protoId(svid.id),
      attestation_type: "join_token",
      x509svid_serial_number: svid.serialNumber,
      x509svid_expires_at: String(Math.floor((svid.chain[0]?.notAfter.getTime() ?? 0) / 1000)),
      selectors: [],
      banned: false,
      can_reattest: false,
      agent_version: "",
    });
  });

  test("T-S9 an output mask shows what it names and nothing else", async () => {
    const svid = await server.attest();
    const whole = await get(svid.id);
    const empty: Record<string, unknown> = {
      attestation_type: "",
      x509svid_serial_number: "",
      x509svid_expires_at: "0",
      selectors: [],
      banned: false,
      can_reattest: false,
      agent_version: "",
    };
    const property = fc.asyncProperty(fc.subarray([...MASK_FIELDS]), async (fields) => {
      const seen = await get(svid.id, Object.fromEntries(fields.map((field) => [field, true])));
      expect(seen).toEqual({
        ...empty,
        id: whole.id,
        ...Object.fromEntries(fields.map((field) => [field, whole[field]])),
      });
    });
    await fc.assert(property, { numRuns: 40 });
  });

  test.each([
    { what: "no ID", id: null, message: "invalid agent ID: request must specify SPIFFE ID" },
    {
      what: "another trust domain",
      id: { trust_domain: "other.test", path: "/spire/agent/x" },
      message: 'invalid agent ID: "spiffe://other.test/spire/agent/x" is not a member of trust domain "example.org"',
    },
    { what: "no path", id: { trust_domain: "example.org", path: "" }, message: /^invalid agent ID: .*path is empty$/ },
    {
      what: "the server's ID",
      id: { trust_domain: "example.org", path: "/spire/server" },
      message: /path is not in the agent namespace$/,
    },
    {
      what: "a workload's ID",
      id: { trust_domain: "example.org", path: "/spire-agent/x" },
      message: /path is not in the agent namespace$/,
    },
    {
      what: "a path that walks out of the namespace",
      id: { trust_domain: "example.org", path: "/spire/agent/../server" },
      message: "invalid agent ID: path cannot contain dot segments",
    },
  ])("GetAgent, BanAgent and DeleteAgent refuse $what", async ({ id, message }) => {
    const expected = {
      kind: "invalid",
      message: typeof message === "string" ? message : expect.stringMatching(message),
    };
    expect(await faultFrom(server.admin.agent.GetAgent({ id }))).toMatchObject(expected);
    expect(await faultFrom(server.admin.agent.BanAgent({ id }))).toMatchObject(expected);
    expect(await faultFrom(server.admin.agent.DeleteAgent({ id }))).toMatchObject(expected);
  });

  test("GetAgent, BanAgent and DeleteAgent do not find an agent that never attested", async () => {
    const id = protoId("spiffe://example.org/spire/agent/join_token/nobody");
    for (const method of ["GetAgent", "BanAgent", "DeleteAgent"] as const) {
      expect(await faultFrom(server.admin.agent[method]({ id }) as Promise<unknown>)).toMatchObject({
        kind: "not_found",
        message: "agent not found",
      });
    }
  });

  describe("BanAgent", () => {
    test("turns the agent away from the next call on, keeps its record, and refuses to attest it again", async () => {
      const svid = await server.attest();
      using agent = server.connect(svid.tls);
      await agent.agent.PostStatus({ agent_version: "1.2.3" });
      await server.admin.agent.BanAgent({ id: protoId(svid.id) });
      const fault = await faultFrom(agent.entry.GetAuthorizedEntries({}));
      expect([fault.kind, denialReason(fault)]).toEqual(["denied", "banned"]);
      expect(await get(svid.id)).toMatchObject({ banned: true, x509svid_serial_number: "", agent_version: "1.2.3" });
      await server.untilLogged("Agent banned", { spiffe_id: svid.id, subsystem_name: "api" });
      const token = await server.createToken({ token: svid.id.split("/").at(-1) ?? "" });
      expect(await faultFrom(server.attest(token))).toMatchObject({
        kind: "denied",
        message: "failed to attest: agent is banned",
      });
      expect(await get(svid.id)).toMatchObject({ banned: true });
    });

    test("is lifted by DeleteAgent", async () => {
      const svid = await server.attest();
      await server.admin.agent.BanAgent({ id: protoId(svid.id) });
      await server.admin.agent.DeleteAgent({ id: protoId(svid.id) });
      const token = await server.createToken({ token: svid.id.split("/").at(-1) ?? "" });
      expect((await server.attest(token)).id).toBe(svid.id);
      expect(await get(svid.id)).toMatchObject({ banned: false });
    });
  });

  describe("DeleteAgent", () => {
    test("turns the agent away from the next call on, and lets it attest again", async () => {
      const svid = await server.attest();
      using agent = server.connect(svid.tls);
      await agent.entry.GetAuthorizedEntries({});
      await server.admin.agent.DeleteAgent({ id: protoId(svid.id) });
      const fault = await faultFrom(agent.entry.GetAuthorizedEntries({}));
      expect([fault.kind, denialReason(fault)]).toEqual(["denied", "not_attested"]);
      await server.untilLogged("Agent deleted", { spiffe_id: svid.id });
      expect(await faultFrom(get(svid.id))).toMatchObject({ kind: "not_found" });
    });

    test("deletes the alias entry that the join token made, and no other", async () => {
      const token = await server.createToken({ agentId: "spiffe://example.org/alias" });
      const svid = await server.attest(token);
      const own = await server.createEntry({ spiffeId: "spiffe://example.org/own", parentId: svid.id });
      const alias = (
        await server.admin.entry.ListEntries({ filter: { by_spiffe_id: protoId("spiffe://example.org/alias") } })
      ).entries[0];
      await server.admin.agent.DeleteAgent({ id: protoId(svid.id) });
      expect(await faultFrom(server.admin.entry.GetEntry({ id: alias?.id ?? "" }))).toMatchObject({
        kind: "not_found",
      });
      expect(await server.admin.entry.GetEntry({ id: own.id })).toEqual(own);
    });
  });

  describe("CreateJoinToken", () => {
    test("makes a UUID that attests once, with an end", async () => {
      const before = Math.floor(Date.now() / 1000);
      const token = await server.admin.agent.CreateJoinToken({ ttl: 60 });
      expect(token.value).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
      expect(Number(token.expires_at) - before).toBeGreaterThanOrEqual(60);
      expect(Number(token.expires_at) - before).toBeLessThan(70);
      expect((await server.attest(token.value)).id).toBe(`spiffe://example.org/spire/agent/join_token/${token.value}`);
    });

    test("with an agent ID it makes the alias entry, and the agent is entitled to it", async () => {
      const token = await server.createToken({ agentId: "spiffe://example.org/host/one" });
      const svid = await server.attest(token);
      const child = await server.createEntry({
        spiffeId: "spiffe://example.org/on/host/one",
        parentId: "spiffe://example.org/host/one",
      });
      using agent = server.connect(svid.tls);
      const { entries } = await agent.entry.GetAuthorizedEntries({});
      expect(entries.map(({ spiffe_id }) => spiffe_id?.path).sort()).toEqual(["/host/one", "/on/host/one"]);
      expect(entries.find(({ id }) => id !== child.id)).toMatchObject({
        parent_id: protoId(svid.id),
        selectors: [{ type: "spiffe_id", value: svid.id }],
      });
    });

    test.each([
      { what: "no TTL", request: {}, message: "ttl is required, you must provide one" },
      { what: "a negative TTL", request: { ttl: -1 }, message: "ttl is required, you must provide one" },
      {
        what: "an agent ID of another trust domain",
        request: { ttl: 1, agent_id: { trust_domain: "other.test", path: "/x" } },
        message: /^invalid agent ID: .* is not a member/,
      },
      {
        what: "T-S10 an agent ID in the reserved namespace",
        request: { ttl: 1, agent_id: { trust_domain: "example.org", path: "/spire/agent/x" } },
        message: /^invalid agent ID: .* reserved namespace/,
      },
    ])("refuses $what", async ({ request, message }) => {
      const before = await server.admin.entry.CountEntries({});
      expect(await faultFrom(server.admin.agent.CreateJoinToken(request))).toMatchObject({
        kind: "invalid",
        message: typeof message === "string" ? message : expect.stringMatching(message),
      });
      expect(await server.admin.entry.CountEntries({})).toEqual(before);
    });

    test.each([
      "..",
      ".",
      "a/b",
      "a//b",
      "%2e%2e",
      "a%2Fb",
      "a?b",
      "a#b",
      "a\u0000b",
      "é",
      "a b",
      "../../server",
      "\uff0e\uff0e",
      "x".repeat(256),
    ])("T-S1 T-S3 refuses the token %j, which could not be one segment of an agent ID", async (token) => {
      const fault = await faultFrom(server.admin.agent.CreateJoinToken({ ttl: 60, token }));
      expect(fault).toMatchObject({ kind: "invalid", message: expect.stringMatching(/^invalid token: /) });
      expect(fault.message).not.toContain(token);
    });

    test("T-S7 takes a token of the greatest length", async () => {
      const token = "x".repeat(255);
      expect((await server.attest(await server.createToken({ token }))).id).toMatch(/x{255}$/);
    });

    test("refuses a token that exists", async () => {
      await server.createToken({ token: "taken" });
      expect(await faultFrom(server.admin.agent.CreateJoinToken({ ttl: 60, token: "taken" }))).toMatchObject({
        kind: "already_exists",
        message: "failed to create token: join token already exists",
      });
    });
  });

  describe("PostStatus", () => {
    let svid: TestSvid;
    beforeAll(async () => {
      svid = await server.attest();
    });

    test("takes ten a second from one address, and lets the others wait", async () => {
      using agent = server.connect(svid.tls);
      await agent.agent.PostStatus({});
      const started = performance.now();
      await Promise.all(Array.from({ length: 25 }, () => agent.agent.PostStatus({})));
      expect(performance.now() - started).toBeGreaterThan(1400);
    });

    test("stores the version for the caller and for nobody else", async () => {
      const other = await server.attest();
      using agent = server.connect(svid.tls);
      await agent.agent.PostStatus({ agent_version: "9.9.9", current_bundle_serial: 7 });
      expect((await get(svid.id)).agent_version).toBe("9.9.9");
      expect((await get(other.id)).agent_version).toBe("");
      await agent.agent.PostStatus({});
      expect((await get(svid.id)).agent_version).toBe("9.9.9");
    });

    test.each([
      { what: "255 bytes", version: "v".repeat(255), message: undefined },
      { what: "256 bytes", version: "v".repeat(256), message: "agent version is too long (max 255 characters)" },
      {
        what: "128 characters of 2 bytes",
        version: "é".repeat(128),
        message: "agent version is too long (max 255 characters)",
      },
      { what: "an escape sequence", version: "1.0\u001b[2J", message: "agent version contains control characters" },
      { what: "a NUL", version: "1.0\u0000", message: "agent version contains control characters" },
    ])("T-S7 a version of $what: $message", async ({ version, message }) => {
      using agent = server.connect(svid.tls);
      const answer = agent.agent.PostStatus({ agent_version: version });
      if (message === undefined) expect(await answer).toEqual({});
      else expect(await faultFrom(answer)).toMatchObject({ kind: "invalid", message });
    });
  });
});
